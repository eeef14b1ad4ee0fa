"""The credit service's nouns in protobuf."""

from pulsa.credit.v1 import balance_pb2, ledger_entry_pb2, pricing_pb2, top_up_pb2

from server.credits.balances import Balance
from server.credits.ledger import LedgerEntry, LedgerEntryKind
from server.credits.money import Money
from server.credits.pricing import Pricing
from server.credits.top_up_rows import TopUp
from server.credits.top_up_states import TopUpStatus
from server.rpc.messages import CHANNELS, money, timestamp

_KINDS = {kind: ledger_entry_pb2.LedgerEntryKind.Value(f"LEDGER_ENTRY_KIND_{kind}") for kind in LedgerEntryKind}
_TOP_UP_STATUSES = {status: top_up_pb2.TopUpStatus.Value(f"TOP_UP_STATUS_{status}") for status in TopUpStatus}
_TOP_UP_STATUSES_BY_NUMBER = {number: status for status, number in _TOP_UP_STATUSES.items()}


class BalanceMessages:
    """Balances with what they pay for. A balance's message costs a read a good part of its time, so it is kept lean."""

    def __init__(self, pricing: Pricing) -> None:
        self._prices = [(CHANNELS[channel], credits) for channel, credits in pricing.channel_credits.items()]

    def write(self, balance: Balance) -> balance_pb2.Balance:
        """The balance, with the sends that it pays for on each channel."""
        available = balance.available_credits
        message = balance_pb2.Balance(
            organization_id=balance.organization_id,
            available_credits=available,
            low_balance=balance.low_balance,
            low_balance_threshold=balance.low_balance_threshold,
            last_sequence=balance.last_sequence,
        )
        for channel, credits in self._prices:
            message.sends_left.add(channel=channel, sends=available // credits)
        return message


def pricing_message(pricing: Pricing) -> pricing_pb2.Pricing:
    """The prices in force."""
    return pricing_pb2.Pricing(
        channel_prices=[
            pricing_pb2.ChannelPrice(channel=CHANNELS[channel], credits=credits)
            for channel, credits in pricing.channel_credits.items()
        ],
        minimum_credits=pricing.minimum_credits,
        maximum_credits=pricing.maximum_credits,
        preset_credits=pricing.preset_credits,
        unit_prices=[money(Money(code, amount)) for code, amount in pricing.unit_prices.items()],
    )


def entry_message(entry: LedgerEntry) -> ledger_entry_pb2.LedgerEntry:
    """One ledger entry."""
    return ledger_entry_pb2.LedgerEntry(
        sequence=entry.sequence,
        kind=_KINDS[entry.kind],
        credits=entry.credits,
        balance_after=entry.balance_after,
        reference_id=str(entry.reference_id),
        reason=entry.reason,
        created_by=entry.created_by,
        create_time=timestamp(entry.create_time),
    )


def top_up_message(top_up: TopUp) -> top_up_pb2.TopUp:
    """One top-up as a caller may see it."""
    return top_up_pb2.TopUp(
        top_up_id=str(top_up.top_up_id),
        organization_id=top_up.organization_id,
        status=_TOP_UP_STATUSES[top_up.status],
        credits=top_up.credits,
        unit_price=money(Money(top_up.currency_code, top_up.unit_price)),
        total=money(Money(top_up.currency_code, top_up.total)),
        hosted_invoice_url=top_up.hosted_invoice_url,
        invoice_pdf_url=top_up.invoice_pdf_url,
        invoice_number=top_up.invoice_number,
        create_time=timestamp(top_up.create_time),
        due_time=timestamp(top_up.due_time),
        paid_time=timestamp(top_up.paid_time),
        cancel_time=timestamp(top_up.cancel_time),
        failure_reason=top_up.failure_reason,
        created_by=top_up.created_by,
    )


def top_up_status(number: int) -> TopUpStatus:
    """The status that a request names; the door lets only known ones in."""
    return _TOP_UP_STATUSES_BY_NUMBER[top_up_pb2.TopUpStatus.ValueType(number)]
