"""Debian's Prometheus with the rules of docs/monitoring/, their times shortened, beside a deployment of processes."""

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import aiohttp

from tests.faults.processes import free_ports
from tests.waiting import SECONDS, until

RULES: Final = Path(__file__).parents[2] / "docs/monitoring/alerts.yaml"
SHORTER: Final = {
    r"for: \w+": "for: 0s",
    r"\[5m\]": "[3s]",
    r"\[(?:15m|30m)\]": "[4s]",
    r"\[(?:1h|6h)\]": "[6s]",
    r"(?<=token_keys_read_timestamp_seconds) > 60\b": " > 5",
    r"(?<=daily MACs\"}\)) > 60\b": " > 20",
}
"""What a test replaces in the rules, so that a cause shows in seconds. No other threshold is changed."""


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def firing(self) -> set[str]:
        """The names of the alerts that fire."""
        async with self._session.get(f"{self._url}/api/v1/alerts") as answer:
            alerts: list[dict[str, Any]] = (await answer.json())["data"]["alerts"]
        return {alert["labels"]["alertname"] for alert in alerts if alert["state"] == "firing"}

    async def until_firing(self, *names: str) -> None:
        """Return once all of these fire."""
        await until(lambda: self._fires(set(names)))

    async def until_ended(self, *names: str) -> None:
        """Return once none of these fires. A cure may take a job's lease, which is as long as a test waits at most."""
        async with asyncio.timeout(2 * SECONDS):
            while set(names) & await self.firing():  # noqa: ASYNC110 - another program's state
                await asyncio.sleep(0.1)

    async def until_scraped(self) -> None:
        """Return once a replica answers and no alert fires."""
        await until(self._is_quiet)

    async def until_ready(self) -> None:
        """Return once it answers queries."""
        await until(self._is_ready)

    async def _is_ready(self) -> bool:
        try:
            async with self._session.get(f"{self._url}/-/ready") as answer:
                return answer.ok
        except aiohttp.ClientConnectionError:
            return False

    async def _fires(self, names: set[str]) -> bool:
        return names <= await self.firing()

    async def _is_quiet(self) -> bool:
        async with self._session.get(f"{self._url}/api/v1/query", params={"query": "up == 1"}) as answer:
            up = (await answer.json())["data"]["result"]
        return bool(up) and not await self.firing()


def shortened_rules() -> str:
    """The rules with every replacement of SHORTER. Fails when one replaces nothing."""
    rules = RULES.read_text()
    for pattern, shorter in SHORTER.items():
        rules, count = re.subn(pattern, shorter, rules)
        assert count, pattern
    return rules


@asynccontextmanager
async def prometheus(folder: Path, metrics: str) -> AsyncIterator[Prometheus]:
    """Scrape the metrics endpoint twice a second, and evaluate the rules as often."""
    rules, configuration = folder / "rules.yaml", folder / "prometheus.yaml"
    rules.write_text(shortened_rules())
    interval = {"scrape_interval": "500ms", "scrape_timeout": "450ms", "evaluation_interval": "500ms"}
    target = {"job_name": "pulsa", "static_configs": [{"targets": [metrics]}]}
    configuration.write_text(json.dumps({"global": interval, "rule_files": [str(rules)], "scrape_configs": [target]}))
    (port,) = free_ports(1)
    with _running(folder, configuration, port):
        async with aiohttp.ClientSession() as session:
            started = Prometheus(f"http://127.0.0.1:{port}", session)
            await started.until_ready()
            yield started


@contextmanager
def _running(folder: Path, configuration: Path, port: int) -> Iterator[None]:
    program = shutil.which("prometheus")
    assert program, "Debian's prometheus is needed: apt install prometheus"
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - Debian's
            [
                program,
                f"--config.file={configuration}",
                f"--storage.tsdb.path={folder / 'series'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait(SECONDS)
