"""`demo`: runs a scenario with a top-up, sends and an automatic top-up, over gRPC and HTTP only: `make demo`."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from uuid import uuid4

import grpc
from pulsa.client import PulsaClient, connect
from pulsa.credit.v1 import credit_service_pb2 as credit
from pulsa.credit.v1.automatic_top_up_pb2 import AUTOMATIC_TOP_UP_STATE_READY as READY
from pulsa.credit.v1.automatic_top_up_pb2 import AutomaticTopUpSettings
from pulsa.credit.v1.ledger_entry_pb2 import LedgerEntryKind
from pulsa.credit.v1.top_up_pb2 import TopUpStatus
from pulsa.errors import PulsaError
from pulsa.otp.v1 import otp_service_pb2 as otp
from pulsa.otp.v1.destination_pb2 import Destination
from pulsa.otp.v1.settings_pb2 import Settings as OrganizationSettings

from server.api.auth import mint
from server.api.permissions import ALL_PERMISSIONS
from server.cli.token import development_key
from server.environment import load_settings
from server.settings import Settings

_START_SECONDS: Final = 90
_WAIT_SECONDS: Final = 10
"""For a payment to be credited, or a message to arrive."""
_HOUR_SECONDS: Final = 3600
# The balance after the top-up, the e-mail, the WhatsApp message and the SMS.
_BALANCES: Final = (1000, 999, 997, 994)
_CONSENT: Final = "Charge our card 10 USD for 1,000 credits when fewer than 994 are left, at most twice a month."


class StepFailedError(Exception):
    """A step of the scenario had another result than expected."""


def demo() -> int:
    """Run the scenario against the server of `make run` if it listens, else against one started for it.

    Returns the exit code: 0 if every step had its expected result.
    """
    settings = load_settings(os.environ)
    try:
        with _server(settings):
            _run(settings)
    except (StepFailedError, PulsaError) as error:
        print(f"  FAILED: {error}", file=sys.stderr)
        return 1
    print("\nEvery step held.")
    return 0


def _run(settings: Settings) -> None:
    organization = f"demo-{uuid4().hex[:8]}"
    token = mint(
        development_key(settings.data).private_key(),
        subject="demo",
        organization_id=organization,
        permissions=sorted(ALL_PERMISSIONS),
        lifetime_seconds=_HOUR_SECONDS,
    )
    with connect(settings.listen, token=token) as pulsa:
        _Scenario(pulsa, organization, settings).run()


class _Scenario:
    """Prints each step with the balance after it."""

    def __init__(self, pulsa: PulsaClient, organization: str, settings: Settings) -> None:
        self._pulsa = pulsa
        self._organization = organization
        self._messages = f"http://127.0.0.1:{settings.sandbox.messages_port}/messages"

    def run(self) -> None:
        """Run every step in order. Raises StepFailedError or PulsaError at the first unexpected result."""
        balance = self._balance()
        _require(
            balance.available_credits == 0 and balance.low_balance, "a new organization has no credits, which is low"
        )
        self._print("a new organization: balance 0, low-balance warning on")
        self._expect_refusal("INSUFFICIENT_CREDITS", lambda: self._send(email="you@example.com"))
        self._print("a send without credits is refused")
        top_up = self._create_top_up()
        self._print(f"a top-up of 1000 credits is open: {top_up.hosted_invoice_url}")
        self._expect_refusal("TOP_UP_ALREADY_OPEN", self._create_top_up)
        self._print("a second top-up is refused while one is unpaid")
        with urllib.request.urlopen(f"{top_up.hosted_invoice_url}/pay", data=b""):  # noqa: S310 - the stand-in's
            self._await_balance(_BALANCES[0])
        self._print("the invoice was paid on its hosted page, and the credits were added")
        self._choose_brand()
        first = self._run_sends()
        self._read_messages()
        self._run_guesses(first)
        self._check_history(top_up.top_up_id)
        self._search_and_export()
        self._buy_automatically()

    def _run_sends(self) -> str:
        sends = []
        for balance, step, destination in zip(
            _BALANCES[1:],
            ("an e-mail costs 1 credit", "a WhatsApp message costs 2", "an SMS costs 3"),
            ({"email": "you@example.com"}, {"whatsapp": "+6281234567890"}, {"sms": "+6281298765432"}),
            strict=True,
        ):
            sends.append(self._send(**destination))
            _require(sends[-1].available_credits == balance, step)
            self._print(step)
        return sends[0].otp.otp_id

    def _choose_brand(self) -> None:
        request = otp.UpdateSettingsRequest(
            organization_id=self._organization, settings=OrganizationSettings(brand_name="Toko Kopi", locale="id")
        )
        chosen = self._pulsa.otps.UpdateSettings(request)
        _require(chosen.current.version == 1, "the settings have their first version")
        self._print("the organization chose its brand, Toko Kopi, and Indonesian messages")

    def _read_messages(self) -> None:
        for destination in ("you@example.com", "+6281298765432"):
            text = _read_message(self._messages, destination)["text"]
            _require(text.startswith("Toko Kopi"), f"the message begins with the brand: {text}")
            self._print(f"the message to {destination} says who it is from: {text.splitlines()[0]}")

    def _run_guesses(self, otp_id: str) -> None:
        code = _read_message(self._messages, "you@example.com")["code"]
        wrong = str((int(code) + 1) % 10 ** len(code)).zfill(len(code))
        refusal = self._expect_refusal("WRONG_CODE", lambda: self._verify(otp_id, wrong))
        _require(refusal.metadata["attempts_remaining"] == "4", "the wrong code is counted")
        self._print("a wrong code is counted: 4 attempts remain")
        self._verify(otp_id, code)
        self._print("the correct code is accepted")
        self._expect_refusal("OTP_ALREADY_VERIFIED", lambda: self._verify(otp_id, code))
        self._print("the same code is refused the second time")

    def _check_history(self, top_up_id: str) -> None:
        listed = self._pulsa.credits.ListTopUps(credit.ListTopUpsRequest(organization_id=self._organization))
        _require([each.top_up_id for each in listed.top_ups] == [top_up_id], "the history lists the one top-up")
        paid = listed.top_ups[0]
        _require(paid.status == TopUpStatus.TOP_UP_STATUS_PAID, "the top-up is PAID in the history")
        with urllib.request.urlopen(paid.invoice_pdf_url) as pdf:  # noqa: S310 - a file of the stand-in
            _require(pdf.read(5) == b"%PDF-", "the invoice's PDF can be downloaded")
        self._print(f"the history lists invoice {paid.invoice_number}, PAID, with its PDF: {paid.invoice_pdf_url}")
        audit = self._pulsa.credits.VerifyLedger(credit.VerifyLedgerRequest(organization_id=self._organization))
        _require(audit.holds and audit.entry_count == len(_BALANCES), f"the ledger is correct: {list(audit.findings)}")
        self._print("the ledger was verified: all 4 entries are correct")

    def _search_and_export(self) -> None:
        search = otp.ListOtpsRequest(
            organization_id=self._organization, destination=Destination(sms="+62 812-9876-5432")
        )
        [found] = self._pulsa.otps.ListOtps(search).otps
        delivery = found.deliveries[0]
        charge = credit.ListLedgerEntriesRequest(
            organization_id=self._organization,
            reference_id=delivery.delivery_id,
            kinds=[LedgerEntryKind.LEDGER_ENTRY_KIND_SEND],
        )
        [entry] = self._pulsa.credits.ListLedgerEntries(charge).ledger_entries
        _require((entry.sequence, entry.credits) == (4, -3), "the search leads to the charge")
        self._print(
            f"support finds what was sent to {delivery.masked_destination}, and its charge: entry {entry.sequence}"
        )
        parts = self._pulsa.credits.ExportLedger(credit.ExportLedgerRequest(organization_id=self._organization))
        lines = b"".join(part.csv for part in parts).decode().splitlines()
        _require(lines[-1].split(",")[5] == str(_BALANCES[-1]), "the export ends with the balance")
        self._print(f"the ledger was exported as CSV, {len(lines)} lines; the last one: {lines[-1]}")

    def _buy_automatically(self) -> None:
        setup = credit.StartCardSetupRequest(
            organization_id=self._organization,
            request_id=str(uuid4()),
            billing_email="billing@example.com",
            return_url=self._messages,
        )
        page = self._pulsa.credits.StartCardSetup(setup)
        self._print(f"a card can be saved on Stripe's page: {page.setup_url}")
        urllib.request.urlopen(f"{page.setup_url}/works", data=b"").close()  # noqa: S310 - the stand-in's
        card = self._await_card()
        self._print(f"the card was saved: {card.brand}, ending in {card.last4}")
        chosen = AutomaticTopUpSettings(
            enabled=True,
            threshold_credits=_BALANCES[-1],
            credits=1000,
            currency_code="USD",
            monthly_credit_cap=2000,
            billing_email="billing@example.com",
        )
        update = credit.UpdateAutomaticTopUpRequest(
            organization_id=self._organization, automatic_settings=chosen, consent_text=_CONSENT
        )
        enabled = self._pulsa.credits.UpdateAutomaticTopUp(update).automatic_top_up
        _require(enabled.state == READY, "automatic top-ups wait for the threshold")
        self._print(f'automatic top-ups are on, agreed to by {enabled.consent.given_by}: "{_CONSENT}"')
        self._send(email="me@example.com")
        self._await_balance(_BALANCES[-1] - 1 + 1000)
        self._print("the next send crossed the threshold: 1000 credits were bought with the card")
        listed = self._pulsa.credits.ListTopUps(credit.ListTopUpsRequest(organization_id=self._organization))
        _require([each.automatic for each in listed.top_ups] == [True, False], "it bought once")

    def _await_card(self) -> Any:
        request = credit.GetAutomaticTopUpRequest(organization_id=self._organization)
        deadline = time.monotonic() + _WAIT_SECONDS
        while not (found := self._pulsa.credits.GetAutomaticTopUp(request).automatic_top_up).HasField("card"):
            _require(time.monotonic() < deadline, f"the card is known within {_WAIT_SECONDS} seconds")
            time.sleep(0.05)
        return found.card

    def _balance(self) -> Any:
        return self._pulsa.credits.GetBalance(credit.GetBalanceRequest(organization_id=self._organization)).balance

    def _await_balance(self, credits: int) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        while self._balance().available_credits != credits:
            _require(time.monotonic() < deadline, f"the balance is {credits} within {_WAIT_SECONDS} seconds")
            time.sleep(0.05)

    def _create_top_up(self) -> Any:
        request = credit.CreateTopUpRequest(
            organization_id=self._organization,
            request_id=str(uuid4()),
            credits=1000,
            currency_code="IDR",
            billing_email="billing@example.com",
        )
        return self._pulsa.credits.CreateTopUp(request).top_up

    def _send(self, **destination: str) -> otp.SendOtpResponse:
        return self._pulsa.otps.SendOtp(
            otp.SendOtpRequest(
                organization_id=self._organization,
                request_id=str(uuid4()),
                destination=Destination(**destination),
                purpose="login",
            )
        )

    def _verify(self, otp_id: str, code: str) -> otp.VerifyOtpResponse:
        return self._pulsa.otps.VerifyOtp(
            otp.VerifyOtpRequest(organization_id=self._organization, request_id=str(uuid4()), otp_id=otp_id, code=code)
        )

    def _expect_refusal(self, reason: str, call: Callable[[], object]) -> PulsaError:
        try:
            call()
        except PulsaError as error:
            _require(error.reason == reason, f"refused with {reason}, not {error.reason}")
            return error
        raise StepFailedError(f"expected a refusal with {reason}, but the call succeeded")

    def _print(self, step: str) -> None:
        print(f"  {self._balance().available_credits:>5} credits   {step}", flush=True)


def _require(holds: bool, what: str) -> None:  # noqa: FBT001 - an assertion that is not switched off
    if not holds:
        raise StepFailedError(f"expected that {what}")


def _read_message(messages: str, destination: str) -> dict[str, str]:
    """The newest message to a destination, once it has arrived."""
    deadline = time.monotonic() + _WAIT_SECONDS
    query = urllib.parse.urlencode({"to": destination})
    while True:
        with urllib.request.urlopen(f"{messages}?{query}") as page:  # noqa: S310 - a page of the development server
            found = json.load(page)
        if found:
            return dict(found[0])
        _require(time.monotonic() < deadline, "the message arrives")
        time.sleep(0.05)


@contextmanager
def _server(settings: Settings) -> Iterator[None]:
    """Use the server of `make run` if it listens, else run one for the block."""
    if _listens(settings.listen, seconds=0.5):
        print(f"Using the server at {settings.listen}:\n")
        yield
        return
    print("Starting a server …\n", flush=True)
    process = subprocess.Popen([sys.executable, "-m", "server", "dev"], stdout=subprocess.DEVNULL)
    try:
        if not _listens(settings.listen, seconds=_START_SECONDS, process=process):
            raise StepFailedError("the server did not start; `make run` shows why")
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(_START_SECONDS)


def _listens(address: str, *, seconds: float, process: "subprocess.Popen[bytes] | None" = None) -> bool:
    deadline = time.monotonic() + seconds
    with grpc.insecure_channel(address, options=[("grpc.max_reconnect_backoff_ms", 200)]) as channel:
        while time.monotonic() < deadline and (process is None or process.poll() is None):
            try:
                grpc.channel_ready_future(channel).result(timeout=0.5)
            except grpc.FutureTimeoutError:
                continue
            return True
    return False
