"""Where fuzzing happens: a server and a sidecar as processes, with all windows real; and what these gave away."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from server.sandbox.providers import ProvidersSandbox
from tests.faults.processes import free_ports
from tests.faults.site import Site, open_site, start_sidecar
from tests.fuzz.messages import MARKER, NUMBERS

TOLD = re.compile("|".join([MARKER, *(number.removeprefix("+") for number in NUMBERS), r"\[hidden\]"]), re.IGNORECASE)
"""What shows that something was said that nobody may know, or that the log had to hide it."""
EXPECTED = {
    "a signed event is not of this account and mode",
    "grpc_stopped",  # at a path that is no text; it listens again
}
"""Errors in the log that are the caller's fault."""
_IDS = ("organization_id", "event_id", "type")
"""What is logged as it came: an organization's id, and of an event what Stripe has signed."""
_NEVER = re.compile(r'requests_total\{code="(INTERNAL|UNKNOWN|DATA_LOSS)"\S* (?!0\.0)')
_MEGABYTE = 1 << 20


@dataclass(frozen=True, slots=True)
class Ground:
    """The processes, and what they can be held to."""

    site: Site
    browser: aiohttp.ClientSession

    @property
    def webhook_port(self) -> int:
        """Where the sidecar listens."""
        return int(self.site.settings["PULSA_WEBHOOK_LISTEN"].rpartition(":")[2])

    def megabytes(self, command: str) -> float:
        """The memory that a process has; 0 where there is no /proc."""
        file = Path(f"/proc/{self.site.running[command]._process.pid}/status")
        found = re.search(r"VmRSS:\s+(\d+) kB", file.read_text()) if file.exists() else None
        return int(found[1]) * 1024 / _MEGABYTE if found else 0.0

    async def complaints(self) -> list[str]:
        """Everything that the logs and the metrics hold and should not."""
        async with self.browser.get(f"http://{self.site.settings['PULSA_METRICS_LISTEN']}/metrics") as page:
            metrics = await page.text()
        assert "pulsa_rpc_requests_total" in metrics
        logs = [line for process in self.site.running.values() for line in process.output.splitlines()]
        told = [line for line in metrics.splitlines() if TOLD.search(line) or _NEVER.search(line)]
        return told + [line for line in logs if _is_wrong(line)]


def _is_wrong(line: str) -> bool:
    """Whether a line of the log is an error, or tells more than whose call it was."""
    try:
        entry: dict[str, Any] = json.loads(line)
    except ValueError:
        return True  # not ours: a library prints what it likes
    for name in _IDS:
        entry.pop(name, None)
    # With grpc_stopped comes the end of the task that asyncio tells of.
    expected = entry["event"] in EXPECTED or "_server_main_loop" in line
    wrong = entry["level"] in {"error", "critical"} and not expected
    return wrong or TOLD.search(json.dumps(entry, ensure_ascii=False)) is not None


@asynccontextmanager
async def open_ground(database_url: str, folder: Path) -> AsyncIterator[Ground]:
    """All of it, running, with limits out of the way that would keep messages from going further."""
    async with providers() as url, aiohttp.ClientSession() as browser:
        changes = {
            "PULSA_METRICS_LISTEN": f"127.0.0.1:{free_ports(1)[0]}",
            "PULSA_LIMIT_COOLDOWN_SECONDS": "0",
            "PULSA_LIMIT_SENDS_PER_DESTINATION_PER_HOUR": "0",
            "PULSA_LIMIT_SENDS_PER_DESTINATION_PER_DAY": "0",
            "PULSA_LIMIT_UNVERIFIED_CREDITS_PER_COUNTRY": "0",
            "PULSA_DELIVERY_LEASE_SECONDS": "60",
            "PULSA_CHANNEL_WHATSAPP": "whatsapp",
            "PULSA_WHATSAPP_PHONE_NUMBER_ID": "1234",
            "PULSA_WHATSAPP_ACCESS_TOKEN": "meta-token",
            "PULSA_WHATSAPP_TEMPLATE_NAME": "otp",
            "PULSA_WHATSAPP_BASE_URL": url,
            "PULSA_CHANNEL_SMS": "twilio",
            "PULSA_TWILIO_ACCOUNT_SID": "AC1234",
            "PULSA_TWILIO_AUTH_TOKEN": "twilio-token",
            "PULSA_TWILIO_SENDER": "+15550001111",
            "PULSA_TWILIO_BASE_URL": url,
        }
        async with open_site(database_url, folder, **changes) as site:
            await start_sidecar(site)
            yield Ground(site, browser)


@asynccontextmanager
async def providers() -> AsyncIterator[str]:
    """Where Twilio and WhatsApp are."""
    sandbox = ProvidersSandbox()
    runner = web.AppRunner(sandbox.application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
