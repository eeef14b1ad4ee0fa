"""Drives Debian's Chromium over its DevTools protocol: pages are used by real clicks and keys."""

import asyncio
import json
import os
import shutil
from base64 import b64decode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp

from tests.waiting import SECONDS, until

_AIM = """(selector) => {
  const element = document.querySelector(selector);
  if (!element || document.readyState !== "complete") return null;
  element.scrollIntoView({ block: "center", behavior: "instant" });
  const box = element.getBoundingClientRect(), place = [box.x + box.width / 2, box.y + box.height / 2];
  const top = document.elementFromPoint(...place);
  return element.contains(top) || top?.contains(element) ? place : null;
}"""
"""Where to click on the element; null while it is not there or is covered, or the page is still without its styles."""
_NAMES = ("chromium", "chromium-browser", "google-chrome")


class ChromiumMissingError(Exception):
    """There is no Chromium on this machine."""


def executable() -> str:
    """CHROMIUM, or the first that is installed. Raises ChromiumMissingError."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        raise ChromiumMissingError("needs Chromium: apt install chromium, or set CHROMIUM to its path")
    return found


class Page:
    """One tab."""

    def __init__(self, send: Callable[..., Any], target: str, session: str) -> None:
        self._send = send
        self._target = target
        self._session = session

    async def command(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a command of the protocol to this tab."""
        answer: dict[str, Any] = await self._send(method, parameters, session=self._session)
        return answer

    async def value(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise; None while the page is being replaced."""
        with suppress(ProtocolError):
            answer = await self.command(
                "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
            )
            assert "exceptionDetails" not in answer, answer
            return answer["result"].get("value")
        return None

    async def open(self, url: str) -> None:
        """Load the address, and wait until its scripts have run."""
        await self.command("Page.navigate", url=url)
        await self.loaded()

    async def reload(self) -> None:
        """Load the page again, as F5 does."""
        await self.value("window.isOld = true")
        await self.command("Page.reload")
        await self.shows("window.isOld === undefined && document.readyState === 'complete'")

    async def back(self) -> None:
        """Go back, as the browser's button does."""
        history = await self.command("Page.getNavigationHistory")
        entry = history["entries"][history["currentIndex"] - 1]
        await self.command("Page.navigateToHistoryEntry", entryId=entry["id"])
        await self.shows(f"location.href === {json.dumps(entry['url'])} && document.readyState === 'complete'")

    async def loaded(self) -> None:
        """Wait until the page is there."""
        await self.shows("document.readyState === 'complete'")

    async def shows(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        try:
            await until(lambda: self.value(f"Boolean({expression})"))
        except AssertionError as error:
            raise AssertionError(
                f"{expression}\n{await self.value('location.href + document.body.innerText')}"
            ) from error

    async def text(self, selector: str = "body") -> str:
        """What is to be read there, without the spaces that do not show; empty if there is no such element."""
        text = await self.value(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")
        return " ".join((text or "").split())

    async def says(self, text: str, selector: str = "body") -> None:
        """Wait until the text is to be read there."""
        quoted, place = json.dumps(text), json.dumps(selector)
        await self.shows(f"document.querySelector({place})?.innerText.replace(/\\s+/g, ' ').includes({quoted})")

    async def click(self, selector: str, *, times: int = 1) -> None:
        """Click into the middle of the element, as soon as it is there and nothing covers it."""
        await self.command("Page.bringToFront")
        aim = f"({_AIM})({json.dumps(selector)})"
        await self.shows(aim)
        place = await self.value(aim)
        for number in range(1, times + 1):
            for kind in ("mousePressed", "mouseReleased"):
                await self.command(
                    "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=number
                )

    async def press(self, key: str, *, times: int = 1) -> None:
        """Press Tab, Enter, Escape or ArrowRight."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowRight": 39}
        text = {"text": "\r"} if key == "Enter" else {}
        for _ in range(times):
            await self.command(
                "Input.dispatchKeyEvent", type="keyDown", key=key, code=key, windowsVirtualKeyCode=codes[key], **text
            )
            await self.command(
                "Input.dispatchKeyEvent", type="keyUp", key=key, code=key, windowsVirtualKeyCode=codes[key]
            )

    async def write(self, selector: str, text: str) -> None:
        """Click into the field, and write."""
        await self.click(selector)
        await self.command("Input.insertText", text=text)

    async def look(self, *, width: int, height: int, dark: bool = False) -> None:
        """Give the tab this size, and the user's wish for dark or light."""
        await self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.command("Emulation.setEmulatedMedia", features=[scheme])

    async def picture(self, file: Path) -> None:
        """Write what the tab shows to a WebP file."""
        await self.value(
            "document.activeElement?.blur(), Promise.all(document.getAnimations().map((each) => each.finished))"
        )
        answer = await self.command("Page.captureScreenshot", format="webp", quality=80)
        await asyncio.to_thread(file.write_bytes, b64decode(answer["data"]))


class ProtocolError(Exception):
    """A command was refused, as one for a page that is being replaced."""


class Chromium:
    """A running browser with a profile of its own."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = count(1)
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.errors: list[str] = []
        """What pages have written to the console as errors, and exceptions of their scripts."""
        self._reading = asyncio.create_task(self._read())

    async def send(self, method: str, parameters: object, *, session: str | None = None) -> dict[str, Any]:
        """Send a command, and wait for its answer. Raises ProtocolError."""
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": parameters}
        await self._socket.send_json(message | ({"sessionId": session} if session else {}))
        async with asyncio.timeout(SECONDS):
            return await self._waiting[number]

    async def tab(self, url: str = "about:blank") -> Page:
        """Open a tab."""
        target = (await self.send("Target.createTarget", {"url": "about:blank"}))["targetId"]
        session = (await self.send("Target.attachToTarget", {"targetId": target, "flatten": True}))["sessionId"]
        page = Page(self.send, target, session)
        for domain in ("Page", "Runtime", "Log"):
            await page.command(f"{domain}.enable")
        await page.look(width=1000, height=800)
        await page.open(url)
        return page

    async def _read(self) -> None:
        async for message in self._socket:
            content = json.loads(message.data)
            if waiting := self._waiting.pop(content.get("id", 0), None):
                if "error" in content:
                    waiting.set_exception(ProtocolError(content["error"]["message"]))
                else:
                    waiting.set_result(content["result"])
            elif content.get("method") == "Runtime.exceptionThrown":
                self.errors.append(str(content["params"]["exceptionDetails"]))
            elif content.get("method") == "Log.entryAdded" and content["params"]["entry"]["level"] == "error":
                entry = content["params"]["entry"]
                self.errors.append(f"{entry['text']} {entry.get('url', '')}")


@asynccontextmanager
async def chromium(folder: Path) -> AsyncIterator[Chromium]:
    """Run Chromium without a window while the block runs; its profile is in the folder. Raises ChromiumMissingError."""
    process = await asyncio.create_subprocess_exec(
        executable(), "--headless=new", "--remote-debugging-port=0", f"--user-data-dir={folder}", "--no-first-run",
        "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--lang=en-US", "--hide-scrollbars", "about:blank",
        stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    port_file = folder / "DevToolsActivePort"
    try:
        await until(lambda: port_file.exists() and len(port_file.read_text().splitlines()) == 2)
        port, path = port_file.read_text().splitlines()
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"ws://127.0.0.1:{port}{path}", max_msg_size=0) as socket,
        ):
            browser = Chromium(socket)
            yield browser
            with suppress(ProtocolError):
                await browser.send("Browser.close", {})
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
