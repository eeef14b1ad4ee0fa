"""`pulsa`: calls Pulsa from a terminal. Answers are tables, or with --json messages as JSON, one in a line."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final
from uuid import uuid4

import grpc
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

from pulsa.client import PulsaClient, connect
from pulsa.credit.v1.channel_pb2 import CHANNEL_EMAIL, CHANNEL_SMS, CHANNEL_WHATSAPP, Channel
from pulsa.credit.v1.credit_service_pb2 import (
    CreateTopUpRequest,
    GetBalanceRequest,
    ListLedgerEntriesRequest,
    QuoteTopUpRequest,
)
from pulsa.credit.v1.ledger_entry_pb2 import LedgerEntryKind
from pulsa.credit.v1.money_pb2 import Money
from pulsa.credit.v1.top_up_pb2 import TopUpStatus
from pulsa.errors import PulsaError
from pulsa.otp.v1.destination_pb2 import Destination
from pulsa.otp.v1.otp_pb2 import OtpStatus
from pulsa.otp.v1.otp_service_pb2 import SendOtpRequest, VerifyOtpRequest
from pulsa.tokens import token_from_file

Row = tuple[object, ...]
Answer = tuple[Message, Row]
"""A message, and what the table shows of it."""
Command = Callable[[PulsaClient, argparse.Namespace], Iterator[Answer]]


def balance(pulsa: PulsaClient, given: argparse.Namespace) -> Iterator[Answer]:
    """Show the credits, and the sends that they pay for."""
    answer = pulsa.credits.GetBalance(GetBalanceRequest(organization_id=given.organization)).balance
    sends = {left.channel: left.sends for left in answer.sends_left}
    row = (answer.available_credits, "yes" if answer.low_balance else "no")
    yield answer, (*row, *(sends.get(channel, 0) for channel in (CHANNEL_EMAIL, CHANNEL_WHATSAPP, CHANNEL_SMS)))


def watch(pulsa: PulsaClient, given: argparse.Namespace) -> Iterator[Answer]:
    """Show the balance now and at each change, until Ctrl-C."""
    for answer in pulsa.watch_balance(given.organization):
        yield answer, (answer.balance.available_credits, "yes" if answer.balance.low_balance else "no")


def quote(pulsa: PulsaClient, given: argparse.Namespace) -> Iterator[Answer]:
    """Show what credits cost."""
    answer = pulsa.credits.QuoteTopUp(
        QuoteTopUpRequest(organization_id=given.organization, credits=given.credits, currency_code=given.currency)
    )
    yield answer, (given.credits, amount(answer.subtotal), amount(answer.tax), amount(answer.total))


def top_up(pulsa: PulsaClient, given: argparse.Namespace) -> Iterator[Answer]:
    """Order credits; the page is where they are paid."""
    answer = pulsa.credits.CreateTopUp(
        CreateTopUpRequest(
            organization_id=given.organization,
            request_id=given.request_id,
            credits=given.credits,
            currency_code=given.currency,
            billing_email=given.billing_email,
        )
    ).top_up
    status = TopUpStatus.Name(answer.status).removeprefix("TOP_UP_STATUS_")
    yield answer, (answer.top_up_id, status, amount(answer.total), answer.hosted_invoice_url)


def send(pulsa: PulsaClient, given: argparse.Namespace) -> Iterator[Answer]:
    """Send an OTP to an address, or to a number by --channel."""
    destination = Destination(**{given.channel: given.destination})
    answer = pulsa.otps.SendOtp(
        SendOtpRequest(
            organization_id=given.organization,
            request_id=given.request_id,
            destination=destination,
            purpose=given.purpose,
        )
    ).otp
    for delivery in answer.deliveries:
        channel = Channel.Name(delivery.channel).removeprefix("CHANNEL_")
        yield answer, (answer.otp_id, channel, delivery.masked_destination, delivery.credits)


def verify(pulsa: PulsaClient, given: argparse.Namespace) -> Iterator[Answer]:
    """Say whether the code is right; a wrong one is counted."""
    answer = pulsa.otps.VerifyOtp(
        VerifyOtpRequest(
            organization_id=given.organization, request_id=given.request_id, otp_id=given.otp, code=given.code
        )
    ).otp
    yield answer, (answer.otp_id, OtpStatus.Name(answer.status).removeprefix("OTP_STATUS_"))


def history(pulsa: PulsaClient, given: argparse.Namespace) -> Iterator[Answer]:
    """Show changes of the balance, newest first."""
    left, page_token = given.limit, ""
    while left > 0:
        page = pulsa.credits.ListLedgerEntries(
            ListLedgerEntriesRequest(
                organization_id=given.organization, page_size=min(left, 500), page_token=page_token
            )
        )
        for entry in page.ledger_entries:
            kind = LedgerEntryKind.Name(entry.kind).removeprefix("LEDGER_ENTRY_KIND_")
            time = entry.create_time.ToDatetime().isoformat(" ", "seconds")
            yield entry, (entry.sequence, time, kind, f"{entry.credits:+}", entry.balance_after, entry.reference_id)
        left, page_token = left - len(page.ledger_entries), page.next_page_token
        if not page_token:
            return


_COMMANDS: Final[dict[str, tuple[Command, Row]]] = {
    "balance": (balance, ("CREDITS", "LOW", "EMAILS", "WHATSAPPS", "SMS")),
    "watch": (watch, ("CREDITS", "LOW")),
    "quote": (quote, ("CREDITS", "SUBTOTAL", "TAX", "TOTAL")),
    "top-up": (top_up, ("TOP-UP", "STATUS", "TOTAL", "PAGE")),
    "send": (send, ("OTP", "CHANNEL", "DESTINATION", "CREDITS")),
    "verify": (verify, ("OTP", "STATUS")),
    "history": (history, ("SEQUENCE", "TIME (UTC)", "KIND", "CREDITS", "BALANCE", "REFERENCE")),
}

_UNKNOWN_ENDS: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


def main() -> None:
    """Run a command; the exit status is 1 if it was refused, and 2 if it was not understood."""
    given = parser().parse_args()
    command, header = _COMMANDS[given.command]
    token = token_from_file(given.token_file) if given.token_file else os.environ.get("PULSA_TOKEN", "")
    credentials = grpc.ssl_channel_credentials(given.ca.read_bytes()) if given.ca else None
    try:
        with connect(given.server, token=token, credentials=credentials, timeout_seconds=given.timeout) as pulsa:
            answers = command(pulsa, given)
            if given.json:
                for message, _ in answers:
                    print(MessageToJson(message, indent=None, always_print_fields_with_no_presence=True), flush=True)
            else:
                print_table(header, (row for _, row in answers), streams=command is watch)
    except PulsaError as error:
        print(f"pulsa: {explanation(error)}", file=sys.stderr)
        if error.code in _UNKNOWN_ENDS and "request_id" in given:
            print(f"It may have been executed. To repeat it safely: --request-id {given.request_id}", file=sys.stderr)
        raise SystemExit(1) from None
    except (OSError, ValueError) as error:
        print(f"pulsa: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands."""
    main = argparse.ArgumentParser(
        prog="pulsa", description="Call Pulsa. The token is in --token-file, or in the environment as PULSA_TOKEN."
    )
    environment = os.environ.get
    main.add_argument("--server", default=environment("PULSA_SERVER", "127.0.0.1:50051"), help="or PULSA_SERVER")
    main.add_argument("--organization", default=environment("PULSA_ORGANIZATION", "demo"), help="or PULSA_ORGANIZATION")
    main.add_argument("--token-file", type=Path, help="a file with the token")
    main.add_argument("--ca", type=Path, help="certificates of the server's authority; without it nothing is encrypted")
    main.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS")
    main.add_argument("--json", action="store_true", help="print messages as JSON")
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    of = {name: commands.add_parser(name, help=function.__doc__) for name, (function, _) in _COMMANDS.items()}
    for name in ("quote", "top-up"):
        of[name].add_argument("credits", type=int)
        of[name].add_argument("currency", help="such as IDR")
    of["top-up"].add_argument("--billing-email", required=True)
    of["send"].add_argument("destination")
    of["send"].add_argument("--channel", choices=("email", "whatsapp", "sms"), default="email")
    of["send"].add_argument("--purpose", default="login")
    of["verify"].add_argument("otp", help="its id")
    of["verify"].add_argument("code")
    of["history"].add_argument("--limit", type=int, default=50, metavar="ENTRIES")
    for name in ("top-up", "send", "verify"):
        help_ = "repeats the call that had this id, and charges nothing twice"
        of[name].add_argument("--request-id", default=str(uuid4()), metavar="UUID", help=help_)
    return main


def print_table(header: Row, rows: Iterable[Row], *, streams: bool) -> None:
    """Print the rows below the header, in columns; at once, row by row, if they stream."""
    table = [tuple(map(str, header))]
    if streams:
        print("\t".join(table[0]))
        for row in rows:
            print("\t".join(map(str, row)), flush=True)
        return
    table += [tuple(map(str, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def explanation(error: PulsaError) -> str:
    """The error with everything that helps, in one or more lines."""
    metadata = ", ".join(f"{key} {value}" for key, value in sorted(error.metadata.items()) if key != "fields")
    retry = f"; try again in {error.retry_after_seconds:g} s" if error.retry_after_seconds else ""
    violations = "".join(f"\n  {each.field}: {each.description}" for each in error.violations)
    return f"{error}{f' ({metadata})' if metadata else ''}{retry}{violations}"


def amount(money: Money) -> str:
    """An amount, exactly: "IDR 150000" or "USD 12.34"."""
    sign = "-" if money.units < 0 or money.nanos < 0 else ""
    nanos = f"{abs(money.nanos):09}".rstrip("0")
    decimals = f".{nanos.ljust(2, '0')}" if nanos else ""
    return f"{money.currency_code} {sign}{abs(money.units)}{decimals}"


if __name__ == "__main__":
    main()
