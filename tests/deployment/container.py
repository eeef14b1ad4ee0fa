"""The container image of docs/deployment/Containerfile: `make test-container`, after `make container BASE=…`."""

import json
import os
import re
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.deployment.stand_ins import StandIns, stand_ins
from tests.faults.processes import CHECKOUT, listens
from tests.waiting import until

IMAGE = "localhost/pulsa"
PODMAN = ["podman", *os.environ.get("PODMAN_FLAGS", "").split()]
"""PODMAN_FLAGS are podman's own, such as --storage-driver; PODMAN_RUN_FLAGS those of `podman run`."""
SETTINGS_OF_SECRETS = {
    "database-url": "PULSA_DATABASE_URL",
    "secret-keys": "PULSA_SECRET_KEYS",
    "digest-keys": "PULSA_SECRET_DIGEST_KEYS",
    "audit-keys": "PULSA_AUDIT_KEYS",
    "stripe-api-key": "PULSA_STRIPE_API_KEY",
    "stripe-webhook-secrets": "PULSA_STRIPE_WEBHOOK_SECRETS",
}


def podman(*arguments: str, with_errors: bool = False) -> str:
    """Run podman; returns what it printed, to standard error too if asked. Fails with its error."""
    done = subprocess.run([*PODMAN, *arguments], capture_output=True, text=True, check=False)  # noqa: S603
    assert done.returncode == 0, done.stderr
    return done.stdout + (done.stderr if with_errors else "")


@asynccontextmanager
async def running(around: StandIns, command: str) -> AsyncIterator[str]:
    """Run a command in a container without any right, its root read-only; yields the container's id."""
    settings = dict(around.plain)
    if command == "webhook":
        settings["PULSA_WEBHOOK_TOKEN"] = str(around.token)
    else:
        settings |= {name: around.secrets[secret] for secret, name in SETTINGS_OF_SECRETS.items()}
    environment = around.folder / f"{command}.env"
    environment.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    container = podman(
        *("run", "--detach", "--read-only", "--tmpfs", "/tmp", "--cap-drop=all", "--network=host"),  # noqa: S108
        *("--security-opt=no-new-privileges", "--env-file", str(environment)),
        *("--volume", f"{around.folder}:{around.folder}:ro"),
        *os.environ.get("PODMAN_RUN_FLAGS", "").split(),
        *(IMAGE, command),
    ).strip()
    try:
        yield container
    finally:
        podman("stop", "--time=40", container)
        ended = podman("inspect", "--format={{.State.ExitCode}}", container).strip()
        logged = podman("logs", container, with_errors=True)
        podman("rm", container)
        assert ended == "0", logged


def test_the_file_names_no_registry_and_the_image_has_no_root_and_a_health_check() -> None:
    text = (CHECKOUT / "docs/deployment/Containerfile").read_text()
    (image,) = json.loads(podman("image", "inspect", IMAGE))
    config: dict[str, Any] = image["Config"]
    (health,) = (value for name, value in image.items() if name.lower() == "healthcheck")  # versions of podman differ

    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) == {"${BASE}"}
    assert config["User"] == "65534:65534"
    assert health["Test"] == ["CMD", "/opt/pulsa/bin/python", "-m", "server", "health"]
    assert config["Entrypoint"] == ["/opt/pulsa/bin/python", "-m", "server"]


async def test_the_container_starts_the_whole_story(database_url: str) -> None:
    with TemporaryDirectory(prefix="pulsa-container-") as name:
        (folder := Path(name)).chmod(0o755)
        async with stand_ins(database_url, folder) as around:
            around.token.chmod(0o644)
            ports = [int(around.plain[name].rpartition(":")[2]) for name in ("PULSA_LISTEN", "PULSA_WEBHOOK_LISTEN")]
            async with running(around, "serve") as server, running(around, "webhook"):
                await until(lambda: all(map(listens, ports)))
                healthy = podman("exec", server, "/opt/pulsa/bin/python", "-m", "server", "health")
                written = podman("exec", server, "sh", "-c", "touch /opt/pulsa/written 2>&1 || true")
                printed = await around.play_demo()

    assert "Every step held." in printed, printed
    assert healthy == "SERVING\n"
    assert "Read-only file system" in written
