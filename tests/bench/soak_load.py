"""The load of `make soak`: sends and verifications at a fixed rate, by callers that repeat what was not answered."""

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import uuid4

import grpc
from pulsa.otp.v1.destination_pb2 import Destination
from pulsa.otp.v1.otp_service_pb2 import SendOtpRequest, SendOtpResponse, VerifyOtpRequest, VerifyOtpResponse

from server.sandbox.relay import Relay
from tests.bench.calls import SEND_OTP, VERIFY_OTP
from tests.bench.environment import SPREAD
from tests.faults.process_deployment import recipient

REPEATED: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
"""Codes after which a caller repeats its call with the same request_id."""
_CODE: Final = re.compile(r"\b\d{6}\b")
_CALL_SECONDS: Final = 5.0
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 5.0
"""Between repeats; a pause doubles, and is drawn at random from its half to its whole."""
_PATIENCE_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 0.1
_MOST_IN_FLIGHT: Final = 2000
"""Sends that wait for an answer: beyond them no further one is begun, as callers have limits too."""


@dataclass(slots=True)
class Counts:
    """What happened since the last sample."""

    latencies: list[float] = field(default_factory=list)
    """Of each send, from when it was due to its answer, in seconds, repeats included."""
    statuses: Counter[str] = field(default_factory=Counter)
    """Of every call, repeats included, by gRPC code."""
    held_back: int = 0
    """Sends that were due and not begun, as too many others waited."""

    def figures(self) -> dict[str, object]:
        """For a sample."""
        latencies = sorted(self.latencies) or [0.0]
        p50, p99 = (latencies[len(latencies) * percent // 100] * 1000 for percent in (50, 99))
        return {
            "p50_ms": p50,
            "p99_ms": p99,
            "answered": len(self.latencies),
            "held_back": self.held_back,
            "statuses": dict(self.statuses),
        }


class Load:
    """Sends mails to new addresses of SPREAD organizations, and verifies each code that arrives at the relay."""

    def __init__(self, channel: grpc.aio.Channel, relay: Relay, token: Callable[[], str]) -> None:
        self._send_otp: Any = channel.unary_unary(
            SEND_OTP, SendOtpRequest.SerializeToString, SendOtpResponse.FromString
        )
        self._verify_otp: Any = channel.unary_unary(
            VERIFY_OTP, VerifyOtpRequest.SerializeToString, VerifyOtpResponse.FromString
        )
        self._relay = relay
        self._token = token
        self._number = 0
        self.counts = Counts()
        self.accepted: dict[str, str] = {}
        """The organization of each accepted send, by its request_id."""
        self.lost: list[str] = []
        """Calls that no repeat got an answer to, or that were refused: none should be."""
        self.messages: Counter[int] = Counter()
        """How many addresses got a first message, a second one, and so on."""
        self.verified = 0
        self.unverified: dict[str, tuple[str, str]] = {}
        """Organization and OTP of each accepted send whose code has not arrived, by its address."""
        self._times_mailed: Counter[str] = Counter()

    async def maximum(self, seconds: float, callers: int = 64) -> float:
        """Sends per second of callers that call again as soon as they are answered."""
        end, before = time.monotonic() + seconds, len(self.accepted)

        async def keep_sending() -> None:
            while time.monotonic() < end:
                await self._send(time.monotonic())

        await asyncio.gather(*(keep_sending() for _ in range(callers)))
        return (len(self.accepted) - before) / seconds

    async def run(self, per_second: float, ended: asyncio.Event) -> None:
        """Send at this rate, however long the answers take, until the end; return once all are answered."""
        began, number = time.monotonic(), 0
        waiting: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as calls:
            while not ended.is_set():
                while number < (time.monotonic() - began) * per_second:
                    if len(waiting) < _MOST_IN_FLIGHT:
                        send = calls.create_task(self._send(began + number / per_second))
                        waiting.add(send)
                        send.add_done_callback(waiting.discard)
                    else:
                        self.counts.held_back += 1
                    number += 1
                await asyncio.sleep(1 / per_second)

    async def verify_what_arrives(self) -> None:
        """Verify the code of each mail, until cancelled."""
        async with asyncio.TaskGroup() as calls:
            while True:
                mails, self._relay.mails = self._relay.mails, []
                for mail in mails:
                    address = recipient(mail)
                    times = self._times_mailed[address] = self._times_mailed[address] + 1
                    self.messages[times] += 1
                    if times == 1:
                        code = _CODE.findall(mail.content.decode().partition("\r\n\r\n")[2])[0]
                        calls.create_task(self._verify(address, code))
                await asyncio.sleep(_LOOK_SECONDS)

    async def _send(self, due: float) -> None:
        self._number += 1
        request = SendOtpRequest(
            organization_id=f"spread-{self._number * 7919 % SPREAD}", request_id=str(uuid4()), purpose="login"
        )
        address = f"{request.request_id}@mail.example"
        request.destination.CopyFrom(Destination(email=address))
        answer = await self._until_answered("send", self._send_otp, request)
        if answer is not None:
            self.accepted[request.request_id] = request.organization_id
            self.unverified[address] = (request.organization_id, answer.otp.otp_id)
            self.counts.latencies.append(time.monotonic() - due)

    async def _verify(self, address: str, code: str) -> None:
        while address not in self.unverified:  # noqa: ASYNC110 - the mail was faster than the answer
            await asyncio.sleep(_LOOK_SECONDS)
        organization_id, otp_id = self.unverified.pop(address)
        request = VerifyOtpRequest(organization_id=organization_id, request_id=str(uuid4()), otp_id=otp_id, code=code)
        if await self._until_answered("verify", self._verify_otp, request) is not None:
            self.verified += 1

    async def _until_answered(self, kind: str, call: Any, request: Any) -> Any:
        """The answer, of a repeat if need be; None for a call that is lost."""
        deadline, pause = time.monotonic() + _PATIENCE_SECONDS, _SHORTEST_PAUSE_SECONDS
        while True:
            metadata = (("authorization", f"Bearer {self._token()}"),)
            try:
                answer = await call(request, metadata=metadata, timeout=_CALL_SECONDS)
            except grpc.aio.AioRpcError as error:
                self.counts.statuses[error.code().name] += 1
                if error.code() not in REPEATED or time.monotonic() > deadline:
                    self.lost.append(f"{kind}: {error.code().name} {error.details()}")
                    return None
                await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - against waves of repeats
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            else:
                self.counts.statuses["OK"] += 1
                return answer
