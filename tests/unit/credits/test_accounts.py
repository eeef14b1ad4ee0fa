"""The low-balance warning: given once, and again only after new credits."""

from datetime import UTC, datetime

from server.credits.accounts import empty_account

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def test_the_low_balance_warning_repeats_after_a_top_up_and_not_after_a_refund() -> None:
    account = empty_account("acme", low_balance_threshold=100, now=NOW)
    assert not account.apply(101, now=NOW)
    assert account.apply(-3, now=NOW)
    account.refund(3)
    warned = [account.apply(-1, now=NOW), account.apply(-3, now=NOW)]
    assert (account.available_credits, warned) == (97, [False, False])
    account.apply(1000, now=NOW)
    assert account.apply(-998, now=NOW)
