"""A server of `make run` with a new data folder, and what the tests read from its pages."""

import json
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.browser.chromium import Page, ProtocolError
from tests.faults.processes import CHECKOUT, Process

AXE = CHECKOUT / "build" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
PICTURES = CHECKOUT / "build" / "browser"
_OVERFLOWING = """[...document.querySelectorAll(".card :not(.unseen)")].filter((each) => {
  return each.getBoundingClientRect().right > each.closest(".card").getBoundingClientRect().right;
}).map((each) => each.outerHTML)"""
DESK, PHONE = {"width": 1000, "height": 800}, {"width": 360, "height": 740}


@dataclass
class MakeRun:
    """The server, which can be stopped and started again, and what the tests know of it."""

    settings: dict[str, str]
    folder: Path
    http: aiohttp.ClientSession
    processes: list[Process] = field(default_factory=list)

    @property
    def billing(self) -> str:
        """The address of the page with the balance."""
        return f"http://127.0.0.1:{self.settings['PULSA_SANDBOX_BILLING_PORT']}/billing"

    @property
    def stripe(self) -> str:
        """The address of the stand-in's start page, without a slash."""
        return f"http://127.0.0.1:{self.settings['PULSA_SANDBOX_STRIPE_PORT']}"

    @property
    def messages(self) -> str:
        """The address of the page with the messages."""
        return f"http://127.0.0.1:{self.settings['PULSA_SANDBOX_MESSAGES_PORT']}/"

    async def start(self) -> None:
        """Start the server on the same data."""
        self.processes.append(Process("dev", self.settings, output=self.folder / f"dev-{len(self.processes)}.log"))
        await self.processes[-1].wait_for_output("Ctrl-C stops everything")

    async def stop(self) -> None:
        """Stop it, as Ctrl-C does."""
        self.processes[-1].signal(signal.SIGINT)
        assert await self.processes[-1].wait_for_exit() == 0

    async def control(self, method: str, path: str, body: object = None) -> Any:
        """Call the control API of the stand-in for Stripe."""
        async with self.http.request(method, f"{self.stripe}/_control/{path}", json=body) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    async def invoices(self) -> list[dict[str, Any]]:
        """The stand-in's invoices, newest last."""
        found: list[dict[str, Any]] = (await self.control("GET", "invoices"))["invoices"]
        return found


async def order(page: Page) -> None:
    """From the balance page to Stripe's, by clicks."""
    await page.click("#top-up-button")
    await page.click("dialog:modal #pay-now")
    await page.says("Sandbox: no real money moves.")


async def pay(page: Page) -> None:
    """On Stripe's page."""
    await page.click("#pay")
    await page.says("Paid", "#status")


async def credits_of(page: Page) -> int:
    """The credits that the page shows."""
    return int((await page.text("#credits strong")).replace(",", "").replace(".", ""))


async def shows_credits(page: Page, credits: int) -> None:
    """Wait until the page shows so many credits."""
    await page.says(f"{credits:,} credits available", "#credits")


async def is_at(page: Page, end: str) -> bool:
    """Whether the tab has an address with this end, also that of a PDF."""
    with suppress(ProtocolError):  # the viewer of PDFs is being opened
        history = await page.command("Page.getNavigationHistory")
        return str(history["entries"][history["currentIndex"]]["url"]).endswith(end)
    return False


async def is_fine(page: Page, picture: str = "") -> None:
    """The checker finds nothing, and nothing is wider than its place: phone and desk, light and dark."""
    for dark in (False, True):
        for name, size in (("phone", PHONE), ("desk", DESK)):
            await page.look(**size, dark=dark)
            wider = await page.value("document.documentElement.scrollWidth - innerWidth")
            assert wider <= 0, f"{name}: {wider} pixels too wide"
            assert await page.value(_OVERFLOWING) == [], name
            await page.value("Promise.all(document.getAnimations().map((each) => each.finished)).then(() => 0)")
            if not await page.value("typeof axe === 'object'"):
                await page.value(AXE.read_text() + ";0")
            found = await page.value(
                "axe.run().then((r) => r.violations.map((v) => [v.id, v.nodes.map((n) => n.html + n.failureSummary)]))"
            )
            assert found == [], json.dumps(found, indent=2)
            if picture and not (dark and "-id" in picture):
                await page.picture(PICTURES / f"{picture}-{name}{'-dark' if dark else ''}.webp")
