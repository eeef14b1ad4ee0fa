"""The calls of matrix.py with `buf curl`: python -m tests.stacks.buf_curl ADDRESS TOKEN ORGANIZATION MODE."""

import base64
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from google.rpc.error_details_pb2 import (  # type: ignore[import-untyped] # no py.typed beside its stubs
    BadRequest,
    ErrorInfo,
)

from tests.stacks.calls import end_of_input

BUF: Final = Path(sys.executable).with_name("buf")
REPEATED: Final = {"unavailable", "canceled", "deadline_exceeded"}
REOPENED: Final = {"unavailable", "canceled", "internal", "unknown"}


class RpcError(Exception):
    """A call failed."""

    def __init__(self, answer: str) -> None:
        """`answer` is what buf has printed."""
        super().__init__(answer)
        begin = answer.find("{")  # before it may be warnings
        error: dict[str, Any] = json.loads(answer[begin:]) if begin >= 0 else {"code": "unavailable"}
        self.code: str = error["code"]
        self.details = {each["type"]: base64.b64decode(each["value"] + "==") for each in error.get("details", ())}


class Calls:
    """The modes."""

    def __init__(self, address: str, token: str, organization: str) -> None:
        self._url = f"http://{address}/pulsa."
        self._token = token
        self._organization = organization

    def calls(self) -> None:
        (balance,) = self._call("credit.v1.CreditService/GetBalance")
        say("unary", balance["balance"]["organizationId"])
        say("error", self._refusal(""))
        say("large", self._refusal("x" * (1024 * 1024 - 6 - len(self._organization))))

    def send(self) -> None:
        ended = end_of_input()
        while not ended.wait(0.05):
            request_id = str(uuid4())
            send = {"request_id": request_id, "destination": {"email": f"{request_id}@example.com"}, "purpose": "login"}
            while True:
                try:
                    self._call("otp.v1.OtpService/SendOtp", **send)
                    break
                except RpcError as error:
                    if error.code not in REPEATED:
                        raise
                    time.sleep(0.1)
            say("sent")

    def watch(self) -> None:
        while True:
            say("open")
            command = self._command("credit.v1.CreditService/WatchBalance", "-d", "@-")
            pipe = subprocess.PIPE
            with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as buf:  # noqa: S603 - as above
                assert buf.stdin
                assert buf.stdout
                assert buf.stderr
                buf.stdin.write(json.dumps({"organization_id": self._organization}).encode())
                buf.stdin.close()
                for line in buf.stdout:
                    if found := re.search(rb'"availableCredits": *"(\d+)"', line):
                        say(found[1].decode())
                error = buf.stderr.read().decode()
            if buf.returncode and RpcError(error).code not in REOPENED:
                raise RpcError(error)
            time.sleep(0.2)

    def _refusal(self, context: str) -> str:
        try:
            self._call("otp.v1.OtpService/SendOtp", context=context)
        except RpcError as error:
            reason = ErrorInfo.FromString(error.details["google.rpc.ErrorInfo"]).reason
            violations = BadRequest.FromString(error.details["google.rpc.BadRequest"]).field_violations
            return f"{reason} {','.join(each.field for each in violations)}"
        return ""

    def _call(self, rpc: str, **request: object) -> list[Any]:
        with tempfile.NamedTemporaryFile("w") as file:
            json.dump({"organization_id": self._organization, **request}, file)
            file.flush()
            done = subprocess.run(  # noqa: S603 - of the development dependencies
                self._command(rpc, "-d", f"@{file.name}"), capture_output=True, text=True, check=False
            )
        if done.returncode:
            raise RpcError(done.stderr)
        return [json.loads(done.stdout)]

    def _command(self, rpc: str, *options: str) -> list[str]:
        grpc = ("--protocol", "grpc", "--http2-prior-knowledge", "--schema", "protos")
        return [str(BUF), "curl", *grpc, "-H", f"authorization: Bearer {self._token}", *options, self._url + rpc]


def say(*words: str) -> None:
    print(*words, flush=True)  # noqa: T201 - the test reads it


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[2])
    getattr(Calls(*sys.argv[1:4]), sys.argv[4])()
