"""Fixtures of `make test-browser`. Each module has a server with new data: it begins without credits."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.browser.chromium import Chromium, ChromiumMissingError, Page, chromium, executable
from tests.browser.make_run import AXE, PICTURES, MakeRun
from tests.faults.processes import free_ports


@pytest.fixture(scope="module")
async def run(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MakeRun]:
    folder, ports = tmp_path_factory.mktemp("run"), free_ports(5)
    names = ("PULSA_LISTEN", "PULSA_WEBHOOK_LISTEN")
    sandboxes = ("BILLING", "STRIPE", "MESSAGES")
    settings = {"PULSA_DATA": str(folder / "data"), "PULSA_METRICS_LISTEN": "off"}
    settings |= {name: f"127.0.0.1:{ports.pop()}" for name in names}
    settings |= {f"PULSA_SANDBOX_{name}_PORT": str(ports.pop()) for name in sandboxes}
    async with aiohttp.ClientSession() as http:
        server = MakeRun(settings, folder, http)
        try:
            await server.start()
            yield server
            await server.stop()
        finally:
            for process in server.processes:
                await process.kill()


@pytest.fixture(scope="module")
async def browser(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Chromium]:
    try:
        executable()
    except ChromiumMissingError as error:
        pytest.exit(f"make test-browser {error}", returncode=2)
    if not AXE.exists():
        pytest.exit(f"make test-browser needs axe-core in {AXE}", returncode=2)
    PICTURES.mkdir(parents=True, exist_ok=True)
    async with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
async def page(browser: Chromium, run: MakeRun) -> AsyncIterator[Page]:
    """A tab with the balance page in English. No page may have had an error."""
    browser.errors.clear()
    tab = await browser.tab(f"{run.billing}?lang=en")
    yield tab
    await tab.command("Page.close")
    # Chromium asks for the icon of a site when it shows a PDF.
    assert [error for error in browser.errors if not error.endswith("/favicon.ico")] == []
