"""What others notice of a flood of wrong guesses at one organization's OTPs."""

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Final
from uuid import uuid4

from pulsa.errors import PulsaError
from pulsa.otp.v1.destination_pb2 import Destination
from pulsa.otp.v1.otp_service_pb2 import SendOtpRequest, VerifyOtpRequest

from tests.bench.calls import VERIFY_OTP
from tests.bench.connection import Target
from tests.bench.load import Outcome, drive
from tests.faults.process_deployment import CODE, ProcessDeployment, recipient
from tests.waiting import until

_ATTACKED, _NEIGHBOUR, _ITS_OTHER_OTPS = "attacked", "neighbour", "its other OTPs"
_OTPS: Final = 1000
_ATTACKERS: Final = 64
_SECONDS: Final = 10.0
_PER_SECOND: Final = 20
_MOST_GUESSES: Final = 60_000
_GOAL_MS: Final = 500


@dataclass(slots=True)
class Victims:
    """Sends and right guesses beside the flood."""

    deployment: ProcessDeployment
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """By whose call it was and the rpc."""
    failures: Counter[str] = field(default_factory=Counter)
    codes: dict[str, str] = field(default_factory=dict)
    """Mailed codes by their destinations."""
    read: int = 0
    """Mails whose codes are known."""

    async def work(self, seconds: float) -> None:
        """Send and verify at a fixed rate, as the neighbour and as the attacked organization in turn."""
        async with asyncio.TaskGroup() as group:
            for number in range(round(_PER_SECOND * seconds)):
                group.create_task(self._send_and_verify(_NEIGHBOUR if number % 2 else _ITS_OTHER_OTPS))
                await asyncio.sleep(1 / _PER_SECOND)

    async def _send_and_verify(self, who: str) -> None:
        organization_id = _NEIGHBOUR if who == _NEIGHBOUR else _ATTACKED
        destination = f"v{uuid4().hex}@mail.example"  # without a word that looks like a code
        try:
            began = time.monotonic()
            sent = await self.deployment.send(organization_id, email=destination)
            self.seconds[f"{who} SendOtp"].append(time.monotonic() - began)
            await until(lambda: self._code_mailed_to(destination))
            code = self._code_mailed_to(destination)
            began = time.monotonic()
            await self.deployment.call("VerifyOtp", organization_id, otp_id=sent.otp.otp_id, code=code)
            self.seconds[f"{who} VerifyOtp"].append(time.monotonic() - began)
        except PulsaError as error:
            self.failures[f"{who} {error.reason}"] += 1

    def _code_mailed_to(self, destination: str) -> str:
        """The code; empty before the mail has arrived. Reads each mail once."""
        mails = self.deployment.relay.mails
        for mail in mails[self.read : len(mails)]:
            self.codes[recipient(mail)] = CODE.findall(mail.content.decode())[0]
            self.read += 1
        return self.codes.get(destination, "")

    def p99_ms(self) -> dict[str, float]:
        """The 99th percentile of each kind of call."""
        return {kind: 1000 * sorted(each)[int(len(each) * 0.99)] for kind, each in sorted(self.seconds.items())}


async def siege(deployment: ProcessDeployment) -> tuple[str, bool]:
    """64 callers guess wrong codes of one organization for 10 s: what its other OTPs and a neighbour notice."""
    for organization_id in (_ATTACKED, _NEIGHBOUR):
        await deployment.grant(10 * _OTPS, organization_id)
    sent = await deployment.call("BatchSendOtps", _ATTACKED, requests=map(_send, range(_OTPS)), compact=True)
    otp_ids = [result.compact.otp_id for result in sent.results]
    guesses = [_wrong_guess(otp_ids[number % _OTPS], number) for number in range(_MOST_GUESSES)]
    token = deployment.token(organization_id=_ATTACKED)
    target = Target(int(deployment.settings["PULSA_LISTEN"].rpartition(":")[2]), VERIFY_OTP, token)
    alone, besieged = Victims(deployment), Victims(deployment)

    await alone.work(_SECONDS)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        loop = asyncio.get_running_loop()
        flood = loop.run_in_executor(pool, _flood, target, guesses)
        await asyncio.sleep(1)  # until the process has started
        await besieged.work(_SECONDS - 1)
        outcome = await flood

    quiet, loud = alone.p99_ms(), besieged.p99_ms()
    times = ", ".join(f"{kind} {loud[kind]:.0f} ms (alone {quiet[kind]:.0f})" for kind in loud)
    failures = dict(alone.failures + besieged.failures)
    text = f"{sum(outcome.statuses.values()) / _SECONDS:.0f} guesses/s; p99 of {times}; failures: {failures}"
    return text, not failures and len(loud) == len(quiet) and max(loud.values()) <= _GOAL_MS


def _flood(target: Target, guesses: Sequence[bytes]) -> Outcome:
    return drive(target, guesses, seconds=_SECONDS, calls_at_once=_ATTACKERS)


def _send(number: int) -> SendOtpRequest:
    destination = Destination(email=f"{number}@siege.example")
    return SendOtpRequest(request_id=str(uuid4()), destination=destination, purpose="login", max_attempts=10)


def _wrong_guess(otp_id: str, number: int) -> bytes:
    """A code of another length than the OTP's: it is never right."""
    return VerifyOtpRequest(
        organization_id=_ATTACKED, request_id=str(uuid4()), otp_id=otp_id, code=f"{number % 10**8:08}"
    ).SerializeToString()
