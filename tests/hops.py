"""`make hops`: counts the files and functions of server/ that a call runs.

Starts `python -m server dev` of a checkout, records every function call in server/, and makes single calls one after
another. It uses only the command line, the settings, gRPC and HTTP, and so works with any layout of the modules.

Counted: each function that runs in at least 80 % of a call's repetitions, and its file. Not counted: server/sandbox/,
generated code, and functions that run as often without a call. A comprehension counts as the function around it.
A change of file: a function begins in another file than the function that began before it; the median.

A response ends with the last step of the task in which grpcio or aiohttp serves the call, a little before the caller
receives it. Work after the response ends with 0.1 s without any step.
"""

# ruff: noqa: S310, S603, T201 - starts this checkout, reads local HTTP pages, and writes to a terminal

import argparse
import asyncio
import hashlib
import hmac
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from statistics import median
from types import CodeType, FrameType
from typing import Any, Final
from urllib.parse import urlencode
from urllib.request import Request, urlopen
from uuid import uuid4

import grpc
from pulsa.credit.v1 import credit_service_pb2 as credit
from pulsa.credit.v1.credit_service_pb2_grpc import CreditServiceStub
from pulsa.otp.v1 import otp_service_pb2 as otp
from pulsa.otp.v1.destination_pb2 import Destination
from pulsa.otp.v1.otp_service_pb2_grpc import OtpServiceStub

RESPONSE, AFTERWARDS, SEND, VERIFY = "SendOtp until its response", "SendOtp afterwards", "SendOtp in all", "VerifyOtp"
BALANCE, TOP_UP, WEBHOOK, IDLE = "GetBalance", "CreateTopUp", "Stripe's webhook", "no call"
FILE_LIMITS: Final = {RESPONSE: 25, VERIFY: 18, BALANCE: 13, TOP_UP: 20, WEBHOOK: 14}
MODULE_LIMIT: Final = 148

_REPETITIONS, _WARM_UP = 12, 3
_SHARE: Final = 0.8  # of the repetitions
_IDLE_SECONDS, _WAIT_SECONDS, _CALL_SECONDS, _START_SECONDS = 0.1, 0.4, 10, 90
_CREDITS: Final = 1000
_ADDRESSES: Final = ("PULSA_LISTEN", "PULSA_WEBHOOK_LISTEN")
_PORTS: Final = ("PULSA_SANDBOX_STRIPE_PORT", "PULSA_SANDBOX_MESSAGES_PORT", "PULSA_SANDBOX_BILLING_PORT")
_STRIPE_KEY, _WEBHOOK_SECRET = "sk_test_sandbox", "whsec_sandbox"
_SERVING: Final = re.compile(r"_handle_exceptions|_handle_rpc|RequestHandler\.")
"""Coroutines in which grpcio serves a call, or aiohttp a request."""
_COMPREHENSION: Final = re.compile(r"(\.<locals>)?\.<(genexpr|listcomp|setcomp|dictcomp)>")

Function = tuple[str, str]
"""Path below server/, and qualified name."""


@dataclass(frozen=True, slots=True)
class Step:
    """A function began, or a coroutine continued."""

    time: float
    """time.monotonic(), which all processes of a machine share."""
    task: str
    coroutine: str
    """The qualified name of the task's coroutine."""
    file: str
    name: str
    begins: bool

    @property
    def function(self) -> Function:
        """The function, or the one around a comprehension."""
        return self.file, _COMPREHENSION.sub("", self.name)


@dataclass(frozen=True, slots=True)
class CallPath:
    """The functions that a call runs."""

    functions: Mapping[str, Sequence[str]]
    """By file; files and functions in the order of their first run."""
    changes_of_file: int


def record(root: Path, output: Path) -> None:
    """Run `python -m server dev` until it is stopped, then write every step. Needs a process of its own."""
    steps: list[tuple[float, str, str, str, str, bool]] = []
    beginnings: dict[CodeType, int] = {}
    folder = f"{root}/server/"

    def record_step(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(folder):
            # A coroutine continues at a later instruction than its first.
            begins = frame.f_lasti == beginnings.setdefault(code, frame.f_lasti)
            file = code.co_filename.removeprefix(folder)
            steps.append((time.monotonic(), *_task(), file, code.co_qualname, begins))

    sys.argv[1:] = ["dev"]
    threading.setprofile(record_step)
    sys.setprofile(record_step)
    try:
        runpy.run_module("server", run_name="__main__", alter_sys=True)
    finally:
        sys.setprofile(None)
        output.write_text(json.dumps(steps))


def _task() -> tuple[str, str]:
    with suppress(RuntimeError):  # a thread without a loop
        if task := asyncio.current_task():
            return task.get_name(), getattr(task.get_coro(), "__qualname__", "")
    return "", ""


def measure(root: Path) -> dict[str, CallPath]:
    """The path of each call in this checkout."""
    with tempfile.TemporaryDirectory(prefix="pulsa-hops-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # PostgreSQL runs as another user when this is root
        environment = _environment(root, folder)
        with _running(root, folder, environment):
            command = [sys.executable, "-m", "server", "token", "--organization", "*"]
            token = subprocess.check_output(command, cwd=root, env=environment, text=True).strip()
            caller = Caller(environment, token)
            for number in range(_WARM_UP + _REPETITIONS):
                caller.make_every_call(number)
        steps = [Step(*fields) for fields in json.loads((folder / "steps.json").read_text())]
    steps.sort(key=lambda step: step.time)  # threads append in any order
    counted = [step for step in steps if "/sandbox/" not in f"/{step.file}" and "_pb2" not in step.file]
    calls = {
        part: [[step for step in counted if start <= step.time <= end] for start, end in intervals[_WARM_UP:]]
        for part, intervals in caller.intervals.items()
    }
    idle = _frequent(calls.pop(IDLE))
    parts: defaultdict[str, list[Sequence[Step]]] = defaultdict(list)
    for part, runs in calls.items():
        for run in runs:
            response, afterwards = _split_at_response([step for step in run if step.function not in idle])
            parts[RESPONSE if part == SEND else part].append(response)
            if part == SEND:
                parts[AFTERWARDS].append(afterwards)
                parts[SEND].append(response + afterwards)
    return {part: _call_path(parts[part]) for part in (RESPONSE, AFTERWARDS, SEND, VERIFY, BALANCE, TOP_UP, WEBHOOK)}


def _environment(root: Path, folder: Path) -> dict[str, str]:
    """Environment variables of a server on free ports, with its own data folder."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in (*_ADDRESSES, *_PORTS)]
        free = [str(probe.getsockname()[1]) for probe in probes]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PULSA_")}
    environment |= {name: f"127.0.0.1:{free.pop()}" for name in _ADDRESSES} | {name: free.pop() for name in _PORTS}
    return environment | {
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "clients/python")]),
        "PULSA_DATA": str(folder / "data"),
        "PULSA_METRICS_LISTEN": "off",
    }


@contextmanager
def _running(root: Path, folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    """Run the server during the block; it then writes steps.json. Raises RuntimeError when it does not start."""
    command = [sys.executable, "-P", __file__, "--root", str(root), "--record", str(folder / "steps.json")]
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=root, env=environment, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not all(_listens(environment[name]) for name in (*_ADDRESSES, *_PORTS)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(_START_SECONDS)


def _listens(address: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))) == 0


class Caller:
    """Makes the calls, and records when each began and ended."""

    def __init__(self, environment: Mapping[str, str], token: str) -> None:
        """Disables the stand-in's own webhooks, so that only the measured ones arrive."""
        channel = grpc.insecure_channel(environment["PULSA_LISTEN"])
        self._credits, self._otps = CreditServiceStub(channel), OtpServiceStub(channel)
        metadata = (("authorization", f"Bearer {token}"),)
        self._options: Any = {"metadata": metadata, "timeout": _CALL_SECONDS, "wait_for_ready": True}
        self._webhook = f"http://{environment['PULSA_WEBHOOK_LISTEN']}/stripe/webhook"
        self._stripe = f"http://127.0.0.1:{environment['PULSA_SANDBOX_STRIPE_PORT']}/v1"
        self._messages = f"http://127.0.0.1:{environment['PULSA_SANDBOX_MESSAGES_PORT']}/messages"
        self.intervals: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        for endpoint in self._call_stripe("webhook_endpoints")["data"]:
            self._call_stripe(f"webhook_endpoints/{endpoint['id']}", disabled="true")
        self._credits.AdjustCredits(
            credit.AdjustCreditsRequest(**_request_fields("sender"), adjust_credits=_CREDITS, reason="make hops"),
            **self._options,
        )

    def make_every_call(self, number: int) -> None:
        """Make every call once. Raises RuntimeError when a paid top-up's credits do not arrive."""
        with self._timed(IDLE):
            time.sleep(_WAIT_SECONDS)
        with self._timed(BALANCE):
            self._balance("sender")
        phone = f"+6281298765{number:03}"
        send = otp.SendOtpRequest(**_request_fields("sender"), destination=Destination(sms=phone), purpose="login")
        with self._timed(SEND):
            sent = self._otps.SendOtp(send, **self._options)
            time.sleep(_WAIT_SECONDS)
        [message] = _read(Request(f"{self._messages}?{urlencode({'to': phone})}"))
        guess = otp.VerifyOtpRequest(**_request_fields("sender"), otp_id=sent.otp.otp_id, code=message["code"])
        with self._timed(VERIFY):
            self._otps.VerifyOtp(guess, **self._options)
        self._top_up(f"buyer-{number}")

    def _top_up(self, organization_id: str) -> None:
        terms: Any = {"credits": _CREDITS, "currency_code": "IDR", "billing_email": "billing@example.com"}
        order = credit.CreateTopUpRequest(**_request_fields(organization_id), **terms)
        with self._timed(TOP_UP):
            top_up = self._credits.CreateTopUp(order, **self._options).top_up
        urlopen(f"{top_up.hosted_invoice_url}/pay", data=b"").close()
        [event] = self._call_stripe("events?type=invoice.paid&limit=1")["data"]
        webhook = Request(self._webhook, *_signed(json.dumps(event)))
        with self._timed(WEBHOOK):
            urlopen(webhook).close()
        time.sleep(_WAIT_SECONDS)
        if self._balance(organization_id) != _CREDITS:
            raise RuntimeError("the webhook did not add the credits")

    def _balance(self, organization_id: str) -> int:
        request = credit.GetBalanceRequest(organization_id=organization_id)
        return self._credits.GetBalance(request, **self._options).balance.available_credits

    def _call_stripe(self, path: str, **fields: str) -> Any:
        """A call of Stripe's API: POST when there are fields, else GET."""
        headers = {"Authorization": f"Bearer {_STRIPE_KEY}"}
        return _read(Request(f"{self._stripe}/{path}", urlencode(fields).encode() or None, headers))

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        self.intervals[part].append((start, time.monotonic()))


def _request_fields(organization_id: str) -> Any:
    """Fields of every request that changes something."""
    return {"organization_id": organization_id, "request_id": str(uuid4())}


def _read(request: Request) -> Any:
    with urlopen(request) as response:
        return json.load(response)


def _signed(body: str) -> tuple[bytes, dict[str, str]]:
    """Body and headers of a webhook, as Stripe signs it: docs.stripe.com/webhooks, "Verify manually"."""
    stamp = int(time.time())
    digest = hmac.new(_WEBHOOK_SECRET.encode(), f"{stamp}.{body}".encode(), hashlib.sha256).hexdigest()
    return body.encode(), {"Stripe-Signature": f"t={stamp},v1={digest}", "Content-Type": "application/json"}


def _split_at_response(steps: list[Step]) -> tuple[list[Step], list[Step]]:
    """The steps until the response, and those after it. Raises RuntimeError when no serving task is found."""
    serving = [step.task for step in steps if _SERVING.match(step.coroutine)]
    if not serving:
        raise RuntimeError("no task of grpcio or aiohttp is among the steps; their names may have changed")
    end = middle = max(number for number, step in enumerate(steps, 1) if step.task == serving[0])
    while end < len(steps) and steps[end].time - steps[end - 1].time < _IDLE_SECONDS:
        end += 1
    return steps[:middle], steps[middle:end]


def _frequent(runs: Sequence[Iterable[Step]]) -> set[Function]:
    """The functions that run in at least _SHARE of the runs."""
    counts = Counter(function for run in runs for function in {step.function for step in run})
    return {function for function, count in counts.items() if count >= _SHARE * len(runs)}


def _call_path(runs: Sequence[Sequence[Step]]) -> CallPath:
    frequent = _frequent(runs)
    began = [[step.function for step in run if step.function in frequent and step.begins] for run in runs]
    functions: defaultdict[str, list[str]] = defaultdict(list)
    for file, name in dict.fromkeys(function for run in began for function in run):
        functions[file].append(name)
    changes = (sum(1 for _ in groupby(file for file, _ in run)) for run in began)
    return CallPath(dict(functions), round(median(changes)))


def count_modules(root: Path) -> int:
    """The Python files of server/, without its sandbox."""
    return sum("sandbox" not in file.relative_to(root).parts for file in root.glob("server/**/*.py"))


def main() -> int:
    """Measure and print. Returns 1 with --check when a limit is exceeded."""
    parser = argparse.ArgumentParser(prog="make hops", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1], help="the checkout (this one)")
    parser.add_argument("--list", action="store_true", help="name the files and functions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write figures and names to FILE")
    parser.add_argument("--check", action="store_true", help="exit with 1 when a limit is exceeded")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    if arguments.record:
        record(root, arguments.record)
        return 0
    found, modules = measure(root), count_modules(root)
    _print(found, modules, listed=arguments.list)
    if arguments.json:
        parts = {part: asdict(path) for part, path in found.items()}
        arguments.json.write_text(json.dumps({"parts": parts, "modules": modules}, indent=2) + "\n")
    exceeded = [part for part, limit in FILE_LIMITS.items() if len(found[part].functions) > limit]
    exceeded += ["modules"] if modules > MODULE_LIMIT else []
    if arguments.check and exceeded:
        print(f"\nAbove the limit: {', '.join(exceeded)}", file=sys.stderr)
        return 1
    return 0


def _print(found: Mapping[str, CallPath], modules: int, *, listed: bool) -> None:
    print(f"{'':26}{'files':>7}{'limit':>7}{'functions':>11}{'changes of file':>17}")
    for part, path in found.items():
        files, functions = len(path.functions), sum(map(len, path.functions.values()))
        print(f"{part:26}{files:7}{FILE_LIMITS.get(part, ''):>7}{functions:11}{path.changes_of_file:17}")
    print(f"\n{modules} Python modules in server/ without its sandbox; the limit is {MODULE_LIMIT}")
    for part, path in found.items() if listed else ():
        print(f"\n{part}")
        for file, names in path.functions.items():
            print(f"  {file:32} {', '.join(names)}")


if __name__ == "__main__":
    sys.exit(main())
