"""`python -m server health` tells a container's health check how the server is."""

from pathlib import Path

from tests.fault_proxy import Fault, proxy_to
from tests.faults.process_deployment import ProcessDeployment, deployed_processes
from tests.faults.processes import Process
from tests.integration.api.certificate_authority import CertificateAuthority, write_tls
from tests.waiting import until


async def health(deployment: ProcessDeployment, service: str = "") -> tuple[int, str]:
    """The exit code and what was printed."""
    settings = {name: deployment.settings[name] for name in deployment.settings if "LISTEN" in name or "TLS" in name}
    process = Process(f"health {service}".strip(), settings, output=deployment.folder / "health.log")
    return await process.wait_for_exit(), process.output.strip()


async def test_a_server_is_serving_without_its_database_and_gone_when_it_was_killed(
    database_url: str, tmp_path: Path
) -> None:
    async with proxy_to(database_url) as (proxy, url), deployed_processes(url, tmp_path) as deployment:
        assert await health(deployment, "database") == (0, "SERVING")
        proxy.set(Fault.REFUSE)

        async def is_without_database() -> bool:
            return await health(deployment, "database") == (1, "NOT_SERVING")

        await until(is_without_database)
        assert await health(deployment) == (0, "SERVING")
        proxy.set(Fault.NONE)
        await deployment.kill("serve")
        code, printed = await health(deployment)

    assert (code, "does not answer" in printed) == (1, True)


async def test_with_tls_a_handshake_is_enough(database_url: str, tmp_path: Path) -> None:
    files = write_tls(tmp_path, CertificateAuthority())
    tls = {"PULSA_TLS_CERTIFICATE": str(files.certificate_chain), "PULSA_TLS_KEY": str(files.private_key)}
    async with deployed_processes(database_url, tmp_path, **tls) as deployment:
        assert await health(deployment) == (0, "")
