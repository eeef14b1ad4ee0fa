"""The calls of matrix.py with the Python clients: python -m tests.stacks.calls CLIENT ADDRESS TOKEN ORGANIZATION MODE.

CLIENT is `asyncio` or `threads`. A number after the mode is that of callers at once.
"""

import asyncio
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final
from uuid import uuid4

import grpc
from pulsa import aio, client
from pulsa.credit.v1.credit_service_pb2 import GetBalanceRequest
from pulsa.errors import PulsaError
from pulsa.otp.v1.destination_pb2 import Destination
from pulsa.otp.v1.otp_service_pb2 import SendOtpRequest

_REPEATED: Final = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
_PAUSE_SECONDS: Final = 0.05


class Threads:
    """With pulsa.client."""

    def __init__(self, address: str, token: str, organization: str, callers: int) -> None:
        self._pulsa = client.connect(address, token=token, timeout_seconds=5)
        self._organization = organization
        self._callers = callers

    def calls(self) -> None:
        balance = self._pulsa.credits.GetBalance(GetBalanceRequest(organization_id=self._organization)).balance
        say("unary", balance.organization_id)
        for kind, request in wrong_requests(self._organization):
            try:
                self._pulsa.otps.SendOtp(request)
            except PulsaError as error:
                say(kind, refusal(error))

    def send(self) -> None:
        ended = end_of_input()
        with ThreadPoolExecutor(self._callers) as callers:
            for caller in [callers.submit(self._send_until, ended) for _ in range(self._callers)]:
                caller.result()

    def _send_until(self, ended: threading.Event) -> None:
        while not ended.is_set():
            request, answered = send_request(self._organization), False
            while not answered:
                with repeated():
                    self._pulsa.otps.SendOtp(request)
                    answered = True
                time.sleep(_PAUSE_SECONDS)
            say("sent")

    def watch(self) -> None:
        say("open")
        for answer in self._pulsa.watch_balance(self._organization):
            say(str(answer.balance.available_credits))


class Asyncio:
    """With pulsa.aio."""

    def __init__(self, address: str, token: str, organization: str, callers: int) -> None:
        self._address = address
        self._token = token
        self._organization = organization
        self._callers = callers

    def _connect(self) -> aio.PulsaClient:
        return aio.connect(self._address, token=self._token, timeout_seconds=5)

    def calls(self) -> None:
        asyncio.run(self._calls())

    async def _calls(self) -> None:
        async with self._connect() as pulsa:
            balance = (await pulsa.credits.GetBalance(GetBalanceRequest(organization_id=self._organization))).balance
            say("unary", balance.organization_id)
            for kind, request in wrong_requests(self._organization):
                try:
                    await pulsa.otps.SendOtp(request)
                except PulsaError as error:
                    say(kind, refusal(error))

    def send(self) -> None:
        asyncio.run(self._send())

    async def _send(self) -> None:
        ended = end_of_input()
        async with self._connect() as pulsa, asyncio.TaskGroup() as callers:
            for _ in range(self._callers):
                callers.create_task(self._send_until(ended, pulsa))

    async def _send_until(self, ended: threading.Event, pulsa: aio.PulsaClient) -> None:
        while not ended.is_set():
            request, answered = send_request(self._organization), False
            while not answered:
                with repeated():
                    await pulsa.otps.SendOtp(request)
                    answered = True
                await asyncio.sleep(_PAUSE_SECONDS)
            say("sent")

    def watch(self) -> None:
        asyncio.run(self._watch())

    async def _watch(self) -> None:
        say("open")
        async with self._connect() as pulsa:
            async for answer in pulsa.watch_balance(self._organization):
                say(str(answer.balance.available_credits))


def wrong_requests(organization: str) -> list[tuple[str, SendOtpRequest]]:
    """Requests that are refused; the second has 1 MiB."""
    large = "x" * (1024 * 1024 - 6 - len(organization))
    requests = [SendOtpRequest(organization_id=organization, context=context) for context in ("", large)]
    return list(zip(("error", "large"), requests, strict=True))


def send_request(organization: str) -> SendOtpRequest:
    request_id = str(uuid4())
    destination = Destination(email=f"{request_id}@example.com")
    return SendOtpRequest(organization_id=organization, request_id=request_id, destination=destination, purpose="login")


def refusal(error: PulsaError) -> str:
    return f"{error.reason} {','.join(each.field for each in error.violations)}"


@contextmanager
def repeated() -> Iterator[None]:
    """Leaves a call without an answer to the caller's repeat; any other error ends the program."""
    try:
        yield
    except PulsaError as error:
        if error.reason != "OVERLOADED" and error.code not in _REPEATED:
            raise


def end_of_input() -> threading.Event:
    """Is set when the standard input ends."""
    ended = threading.Event()

    def wait() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    return ended


def say(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    kind, address, token, organization, mode, *callers = sys.argv[1:]
    started = {"threads": Threads, "asyncio": Asyncio}[kind](address, token, organization, int(*callers or ("1",)))
    getattr(started, mode)()
