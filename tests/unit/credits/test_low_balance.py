"""The low-balance warning: told once, armed again by new credits only."""

from datetime import UTC, datetime

from server.credits.accounts import empty_account

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def test_a_refund_does_not_arm_the_warning_again_and_a_top_up_does() -> None:
    account = empty_account("acme", low_balance_threshold=100, now=NOW)
    assert not account.apply(101, now=NOW)
    assert account.apply(-3, now=NOW)
    account.give_back(3)
    told = [account.apply(-1, now=NOW), account.apply(-3, now=NOW)]
    assert (account.available_credits, told) == (97, [False, False])
    account.apply(1000, now=NOW)
    assert account.apply(-998, now=NOW)
