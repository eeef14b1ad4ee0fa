"""The transition table against what must be true of any such table."""

from server.credits.top_up_states import IN_WORK, PAYABLE, TRANSITIONS, UNFINISHED, TopUpStatus


def test_every_state_has_its_row() -> None:
    assert set(TRANSITIONS) == set(TopUpStatus)


def test_paid_wins_over_everything_but_a_persons_review() -> None:
    assert {status for status in TopUpStatus if TopUpStatus.PAID in TRANSITIONS[status]} == set(TopUpStatus) - {
        TopUpStatus.PAID, TopUpStatus.REVIEW,
    }  # fmt: skip


def test_paid_and_review_are_left_by_nothing() -> None:
    assert TRANSITIONS[TopUpStatus.PAID] == TRANSITIONS[TopUpStatus.REVIEW] == frozenset()


def test_what_has_ended_never_takes_the_organizations_one_place_again() -> None:
    for status in set(TopUpStatus) - UNFINISHED:
        assert not TRANSITIONS[status] & UNFINISHED


def test_every_state_is_reached_from_creating() -> None:
    reached, frontier = {TopUpStatus.CREATING}, {TopUpStatus.CREATING}
    while frontier:
        frontier = {after for before in frontier for after in TRANSITIONS[before]} - reached
        reached |= frontier
    assert reached == set(TopUpStatus)


def test_whatever_is_unfinished_or_payable_can_still_be_paid() -> None:
    for status in IN_WORK | PAYABLE | UNFINISHED:
        assert TopUpStatus.PAID in TRANSITIONS[status]
