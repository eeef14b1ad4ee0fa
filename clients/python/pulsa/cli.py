"""`pulsa`: calls Pulsa from a terminal. Answers are tables, or with --json messages as JSON, one in a line."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4, uuid5

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict, MessageToJson, ParseDict, ParseError
from google.protobuf.message import Message

from pulsa.client import PulsaClient, connect
from pulsa.credit.v1.channel_pb2 import CHANNEL_EMAIL, CHANNEL_SMS, CHANNEL_WHATSAPP, Channel
from pulsa.credit.v1.credit_service_pb2 import (
    CreateTopUpRequest,
    GetAutomaticTopUpRequest,
    GetBalanceRequest,
    ListLedgerEntriesRequest,
    QuoteTopUpRequest,
    StartCardSetupRequest,
    UpdateAutomaticTopUpRequest,
)
from pulsa.credit.v1.ledger_entry_pb2 import LedgerEntryKind
from pulsa.credit.v1.money_pb2 import Money
from pulsa.credit.v1.top_up_pb2 import TopUpStatus
from pulsa.error.v1.error_reason_pb2 import ErrorReason
from pulsa.errors import PulsaError
from pulsa.event.v1.event_service_pb2 import WatchEventsResponse
from pulsa.otp.v1.delivery_pb2 import Delivery, DeliveryStatus
from pulsa.otp.v1.destination_pb2 import Destination
from pulsa.otp.v1.otp_pb2 import Otp, OtpStatus
from pulsa.otp.v1.otp_service_pb2 import (
    GetSettingsRequest,
    ListOtpsRequest,
    SendOtpRequest,
    UpdateSettingsRequest,
    VerifyOtpRequest,
)
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
    """Send an OTP to an address, or to a number by --channel; to several, or with - to those on the standard input."""
    destinations = [line for line in map(str.strip, sys.stdin) if line] if given.to == ["-"] else given.to
    requests = [
        SendOtpRequest(
            organization_id=given.organization,
            # The same ones when the command is repeated with the same --request-id.
            request_id=given.request_id if len(destinations) == 1 else str(uuid5(UUID(given.request_id), destination)),
            destination=Destination(**{given.channel: destination}),
            purpose=given.purpose,
        )
        for destination in destinations
    ]
    if len(requests) == 1:
        otp = pulsa.otps.SendOtp(requests[0]).otp
        yield otp, sent_row(otp)
        return

    def show(decided: int) -> None:
        show_progress(f"{decided} of {len(requests)}")

    results = pulsa.send_batch(given.organization, requests, compact=False, progress=show)
    for destination, result in zip(destinations, results, strict=True):
        if result.HasField("error"):
            given.exit_status = 1
            reason = ErrorReason.Name(result.error.reason).removeprefix("ERROR_REASON_")
            yield result, ("", given.channel.upper(), destination, 0, reason)
        else:
            yield result, sent_row(result.response.otp)


def sent_row(otp: Otp) -> Row:
    """What the table shows of an OTP that was just sent."""
    delivery = otp.deliveries[0]
    return (otp.otp_id, channel_of(delivery), delivery.masked_destination, delivery.credits, "")


def channel_of(delivery: Delivery) -> str:
    """Its channel, such as SMS."""
    return Channel.Name(delivery.channel).removeprefix("CHANNEL_")


def verify(pulsa: PulsaClient, given: argparse.Namespace) -> Iterator[Answer]:
    """Say whether the code is right; a wrong one is counted."""
    answer = pulsa.otps.VerifyOtp(
        VerifyOtpRequest(
            organization_id=given.organization, request_id=given.request_id, otp_id=given.otp, code=given.code
        )
    ).otp
    yield answer, (answer.otp_id, OtpStatus.Name(answer.status).removeprefix("OTP_STATUS_"))


def settings(pulsa: PulsaClient, given: argparse.Namespace) -> Iterator[Answer]:
    """Show the settings as they apply to sends; first change those that are given, as brand_name=Acme."""
    if given.changes:
        chosen = dict(change.partition("=")[::2] for change in given.changes)
        request = UpdateSettingsRequest(organization_id=given.organization, update_mask=FieldMask(paths=chosen))
        ParseDict({name: json_or_text(value) for name, value in chosen.items() if value}, request.settings)
        effective = pulsa.otps.UpdateSettings(request).effective_settings
    else:
        effective = pulsa.otps.GetSettings(GetSettingsRequest(organization_id=given.organization)).effective_settings
    shown = MessageToDict(effective, preserving_proto_field_name=True)
    for name, value in shown.items():
        yield effective, (name, value if isinstance(value, str) else json.dumps(value))


def automatic(pulsa: PulsaClient, given: argparse.Namespace) -> Iterator[Answer]:
    """Show automatic top-ups; first change those settings that are given, as enabled=true with --consent."""
    if given.changes:
        chosen = dict(change.partition("=")[::2] for change in given.changes)
        request = UpdateAutomaticTopUpRequest(
            organization_id=given.organization, update_mask=FieldMask(paths=chosen), consent_text=given.consent
        )
        ParseDict({name: json_or_text(value) for name, value in chosen.items() if value}, request.automatic_settings)
        answer = pulsa.credits.UpdateAutomaticTopUp(request).automatic_top_up
    else:
        answer = pulsa.credits.GetAutomaticTopUp(
            GetAutomaticTopUpRequest(organization_id=given.organization)
        ).automatic_top_up
    shown = MessageToDict(answer, preserving_proto_field_name=True)
    for name, value in (shown | shown.pop("automatic_settings", {})).items():
        if name != "automatic_settings":
            yield answer, (name, value if isinstance(value, str) else json.dumps(value))


def card(pulsa: PulsaClient, given: argparse.Namespace) -> Iterator[Answer]:
    """Print Stripe's page on which the card of automatic top-ups is saved."""
    answer = pulsa.credits.StartCardSetup(
        StartCardSetupRequest(
            organization_id=given.organization,
            request_id=given.request_id,
            billing_email=given.billing_email,
            return_url=given.return_url,
        )
    )
    yield answer, (answer.setup_url, shown_time(answer.expire_time.ToDatetime()))


def history(pulsa: PulsaClient, given: argparse.Namespace) -> Iterator[Answer]:
    """Show changes of the balance, newest first."""
    request = ListLedgerEntriesRequest(organization_id=given.organization)
    for entry in pages(pulsa.credits.ListLedgerEntries, request, "ledger_entries", given.limit):
        kind = LedgerEntryKind.Name(entry.kind).removeprefix("LEDGER_ENTRY_KIND_")
        time = shown_time(entry.create_time.ToDatetime())
        yield entry, (entry.sequence, time, kind, f"{entry.credits:+}", entry.balance_after, entry.reference_id)


def find(pulsa: PulsaClient, given: argparse.Namespace) -> Iterator[Answer]:
    """Find OTPs by destination, time, status and purpose, newest first."""
    request = ListOtpsRequest(
        organization_id=given.organization,
        destination=Destination(**{given.channel: given.to}) if given.to else None,
        otp_statuses=[OtpStatus.Value(f"OTP_STATUS_{status}") for status in given.status],
        purposes=given.purpose,
        start_time=given.since,
        end_time=given.until,
    )
    for otp in pages(pulsa.otps.ListOtps, request, "otps", given.limit):
        deliveries = ", ".join(map(shown_delivery, otp.deliveries))
        status = OtpStatus.Name(otp.status).removeprefix("OTP_STATUS_")
        yield otp, (otp.otp_id, shown_time(otp.create_time.ToDatetime()), otp.purpose, status, deliveries)


def shown_delivery(delivery: Delivery) -> str:
    """Its channel, destination and status."""
    status = DeliveryStatus.Name(delivery.status).removeprefix("DELIVERY_STATUS_")
    return f"{channel_of(delivery)} {delivery.masked_destination} {status}"


def pages(rpc: Any, request: Any, field: str, limit: int) -> Iterator[Any]:
    """The items in the `field` of the answers, at most `limit`, page after page."""
    left = limit
    while left > 0:
        request.page_size = min(left, 500)
        page = rpc(request)
        items = getattr(page, field)
        yield from items
        left, request.page_token = left - len(items), page.next_page_token
        if not page.next_page_token:
            return
        show_progress(f"{limit - left} found")


def shown_time(time: datetime) -> str:
    """A time to the second."""
    return time.isoformat(" ", "seconds")


def given_time(text: str) -> datetime:
    """A time in ISO 8601 that someone has typed; UTC if it has no time zone."""
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def events(pulsa: PulsaClient, given: argparse.Namespace) -> Iterator[Answer]:
    """Show what happens as it happens, until Ctrl-C; the cursor resumes after an event."""
    for answer in pulsa.watch_events(given.organization, cursor=given.cursor, from_oldest=given.from_oldest):
        for event in answer.events:
            cursor = answer.cursor if event is answer.events[-1] else ""
            change = event.WhichOneof("change") or ""
            details = MessageToJson(getattr(event, change), indent=None) if change else ""
            time = shown_time(event.create_time.ToDatetime())
            yield WatchEventsResponse(events=[event], cursor=cursor), (event.number, time, change, details, cursor)


_COMMANDS: Final[dict[str, tuple[Command, Row]]] = {
    "balance": (balance, ("CREDITS", "LOW", "EMAILS", "WHATSAPPS", "SMS")),
    "watch": (watch, ("CREDITS", "LOW")),
    "quote": (quote, ("CREDITS", "SUBTOTAL", "TAX", "TOTAL")),
    "top-up": (top_up, ("TOP-UP", "STATUS", "TOTAL", "PAGE")),
    "send": (send, ("OTP", "CHANNEL", "DESTINATION", "CREDITS", "REFUSAL")),
    "verify": (verify, ("OTP", "STATUS")),
    "events": (events, ("NUMBER", "TIME (UTC)", "CHANGE", "DETAILS", "CURSOR")),
    "settings": (settings, ("SETTING", "VALUE")),
    "automatic": (automatic, ("SETTING", "VALUE")),
    "card": (card, ("PAGE", "EXPIRES (UTC)")),
    "history": (history, ("SEQUENCE", "TIME (UTC)", "KIND", "CREDITS", "BALANCE", "REFERENCE")),
    "find": (find, ("OTP", "TIME (UTC)", "PURPOSE", "STATUS", "DELIVERIES")),
}

_UNKNOWN_ENDS: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


def main() -> None:
    """Run a command; the exit status is 1 if it was refused, also in part, and 2 if it was not understood."""
    given = parser().parse_args()
    command, header = _COMMANDS[given.command]
    token = token_from_file(given.token_file) if given.token_file else os.environ.get("PULSA_TOKEN", "")
    try:
        with connect(
            given.server, token=token, credentials=_credentials(given), timeout_seconds=given.timeout
        ) as pulsa:
            answers = command(pulsa, given)
            if given.json:
                printed: Message | None = None
                for message, _ in answers:
                    if message is printed:  # of which the table has several rows
                        continue
                    printed = message
                    print(MessageToJson(message, indent=None, always_print_fields_with_no_presence=True), flush=True)
            else:
                print_table(header, (row for _, row in answers), streams=command in (watch, events))
            raise SystemExit(given.exit_status)
    except PulsaError as error:
        print(f"pulsa: {explanation(error)}", file=sys.stderr)
        if error.code in _UNKNOWN_ENDS and "request_id" in given:
            print(f"It may have been executed. To repeat it safely: --request-id {given.request_id}", file=sys.stderr)
        raise SystemExit(1) from None
    except (OSError, ValueError, ParseError) as error:
        print(f"pulsa: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def _credentials(given: argparse.Namespace) -> grpc.ChannelCredentials | None:
    ca, key, certificate = (path.read_bytes() if path else None for path in (given.ca, given.key, given.certificate))
    if (key is None) is not (certificate is None) or (key and not ca):
        raise ValueError("--certificate and --key belong together, and are for TLS, so they need --ca")
    return grpc.ssl_channel_credentials(ca, key, certificate) if ca else None


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
    main.add_argument("--certificate", type=Path, help="an own certificate, for mutual TLS")
    main.add_argument("--key", type=Path, help="the key of that certificate")
    main.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS")
    main.set_defaults(exit_status=0)
    main.add_argument("--json", action="store_true", help="print messages as JSON")
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")
    of = {name: commands.add_parser(name, help=function.__doc__) for name, (function, _) in _COMMANDS.items()}
    for name in ("quote", "top-up"):
        of[name].add_argument("credits", type=int)
        of[name].add_argument("currency", help="such as IDR")
    for name in ("top-up", "card"):
        of[name].add_argument("--billing-email", required=True)
    of["card"].add_argument("--return-url", required=True, help="where the page leads to in the end")
    of["automatic"].add_argument("changes", nargs="*", metavar="NAME=VALUE", help="such as threshold_credits=100")
    of["automatic"].add_argument(
        "--consent", default="", metavar="TEXT", help="what was agreed to; needed while enabled"
    )
    of["send"].add_argument("to", nargs="+", metavar="destination")
    of["send"].add_argument("--purpose", default="login")
    of["find"].add_argument("to", nargs="?", metavar="destination")
    for name in ("send", "find"):
        of[name].add_argument("--channel", choices=("email", "whatsapp", "sms"), default="email")
    statuses = [name.removeprefix("OTP_STATUS_") for name in OtpStatus.keys()[1:]]
    of["find"].add_argument("--status", choices=statuses, default=[], action="append")
    of["find"].add_argument("--purpose", default=[], action="append")
    of["find"].add_argument("--since", type=given_time, metavar="TIME", help="such as 2026-11-29T08:00, in UTC")
    of["find"].add_argument("--until", type=given_time, metavar="TIME")
    of["verify"].add_argument("otp", help="its id")
    of["verify"].add_argument("code")
    of["settings"].add_argument("changes", nargs="*", metavar="NAME=VALUE", help="no value: the operator's default")
    for name in ("history", "find"):
        of[name].add_argument("--limit", type=int, default=50, metavar="COUNT")
    of["events"].add_argument("--cursor", default="", help="goes on after the events before it")
    of["events"].add_argument("--from-oldest", action="store_true", help="begins with the oldest event that is kept")
    for name in ("top-up", "send", "verify", "card"):
        help_ = "repeats the call that had this id, and charges nothing twice"
        of[name].add_argument("--request-id", default=str(uuid4()), metavar="UUID", help=help_)
    return main


def show_progress(text: str) -> None:
    """Show it to a person at a terminal, in the place of what was shown before."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def print_table(header: Row, rows: Iterable[Row], *, streams: bool) -> None:
    """Print the rows below the header, in columns; at once, row by row, if they stream."""
    table = [tuple(map(str, header))]
    if streams:
        print("\t".join(table[0]))
        for row in rows:
            print("\t".join(map(str, row)), flush=True)
        return
    table += [tuple(map(str, row)) for row in rows]
    show_progress("")
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def json_or_text(value: str) -> object:
    """The JSON value that a text is; a text that is none as it is."""
    try:
        return json.loads(value)
    except ValueError:
        return value


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
