"""Bytes that nobody should send, to the sidecar and to the gRPC port: each stays up, silent and as small as it was."""

import asyncio
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from tests.callers import RPCS
from tests.fuzz.frames import Frames
from tests.fuzz.ground import open_ground
from tests.fuzz.messages import good_fields, good_request
from tests.fuzz.raw_http import Strangers
from tests.fuzz.raw_http import good_request as good_webhook
from tests.fuzz.scale import REQUESTS, Progress, chance
from tests.waiting import SECONDS

CONNECTIONS = 24
"""At once; fewer than the webhooks that the sidecar takes at once, above which it would say 503."""
PATIENCE_SECONDS = 0.3
"""After this a server is taken to wait for more, which does not come."""
MOST_MEGABYTES = 16
"""What a process may grow by after its first connections, however many come."""
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


@retry(
    retry=retry_if_exception_type(ConnectionError),
    wait=wait_fixed(0.02),
    stop=stop_after_delay(SECONDS),
    reraise=True,
)
async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection; a server that begins anew is waited for."""
    return await asyncio.open_connection("127.0.0.1", port)


async def answer_to(content: bytes, port: int, *, patience_seconds: float = PATIENCE_SECONDS) -> bytes:
    """All that a server says to these bytes."""
    reader, writer = await connect(port)
    answer = b""
    try:
        with suppress(ConnectionError, TimeoutError):
            writer.write(content)
            async with asyncio.timeout(patience_seconds):
                while more := await reader.read(65_536):
                    answer += more
    finally:
        writer.transport.abort()
    return answer


async def send_all(make: Callable[[], bytes], port: int, progress: Progress) -> Counter[int]:
    """Send what is made until there was enough; how often each HTTP status came."""
    statuses: Counter[int] = Counter()

    async def stranger() -> None:
        while progress.goes_on:
            progress.add(1)
            content = make()
            found = [int(status) for status in STATUS.findall(await answer_to(content, port))]
            statuses.update(found or [0])
            for status in found:
                if status >= 500:
                    progress.tell(f"{status} for {content[:2000]!r}")

    async with asyncio.TaskGroup() as strangers:
        for _ in range(CONNECTIONS):
            strangers.create_task(stranger())
    return statuses


async def test_no_bytes_take_the_sidecar_down_or_are_kept_or_told(database_url: str, tmp_path: Path) -> None:
    strangers = Strangers(chance())
    async with open_ground(database_url, tmp_path) as ground:
        await send_all(strangers.request, ground.webhook_port, Progress("requests to warm up", REQUESTS // 5))
        warm, progress = ground.megabytes("webhook"), Progress("raw HTTP requests", REQUESTS)
        statuses = await send_all(strangers.request, ground.webhook_port, progress)
        grown = ground.megabytes("webhook") - warm
        served = STATUS.findall(await answer_to(good_webhook(), ground.webhook_port, patience_seconds=SECONDS))
        complaints = await ground.complaints()

    progress.tell(f"statuses {dict(sorted(statuses.items()))}; {grown:.1f} MiB more than {warm:.0f}")
    for finding in complaints[:20]:
        progress.tell(finding[:2000])
    assert max(statuses) < 500
    assert {200, 400, 404} <= statuses.keys()
    assert served == [b"200"]
    assert complaints == []
    assert grown <= MOST_MEGABYTES


async def test_no_bytes_take_the_grpc_port_down_or_are_kept_or_told(database_url: str, tmp_path: Path) -> None:
    async with open_ground(database_url, tmp_path) as ground:
        request = good_request(RPCS["SendOtp"].input_type, good_fields())
        frames = Frames(chance(), path="/pulsa.otp.v1.OtpService/SendOtp", token=ground.site.token(), request=request)
        port = int(ground.site.settings["PULSA_LISTEN"].rpartition(":")[2])
        known = iter(frames.known())
        await send_all(
            lambda: next(known, b"") or frames.connection(), port, Progress("connections to warm up", REQUESTS // 20)
        )
        warm, progress = ground.megabytes("serve"), Progress("raw gRPC connections", REQUESTS // 4)
        await send_all(frames.connection, port, progress)
        grown = ground.megabytes("serve") - warm
        served = await ground.site.balance()
        complaints = await ground.complaints()

    progress.tell(f"{len(complaints)} complaints; {grown:.1f} MiB more than {warm:.0f}")
    for finding in complaints[:20]:
        progress.tell(finding[:2000])
    assert served == 0
    assert complaints == []
    assert grown <= MOST_MEGABYTES
