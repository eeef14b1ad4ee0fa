"""The transition table of top-ups has the properties that the product requires."""

from server.credits.top_ups.state_machine import IN_WORK, PAYABLE, TRANSITIONS, UNFINISHED, TopUpStatus


def test_every_status_has_its_transitions() -> None:
    assert set(TRANSITIONS) == set(TopUpStatus)


def test_every_status_can_become_paid_until_it_is_or_a_person_decides() -> None:
    assert {status for status in TopUpStatus if TopUpStatus.PAID in TRANSITIONS[status]} == set(TopUpStatus) - {
        TopUpStatus.PAID, TopUpStatus.REVIEW, TopUpStatus.RESOLVED,
    }  # fmt: skip


def test_paid_and_resolved_are_final_and_review_waits_for_a_person() -> None:
    assert TRANSITIONS[TopUpStatus.PAID] == TRANSITIONS[TopUpStatus.RESOLVED] == frozenset()
    assert TRANSITIONS[TopUpStatus.REVIEW] == {TopUpStatus.RESOLVED}


def test_a_finished_top_up_never_becomes_unfinished_again() -> None:
    for status in set(TopUpStatus) - UNFINISHED:
        assert not TRANSITIONS[status] & UNFINISHED


def test_every_status_is_reached_from_creating() -> None:
    reached, frontier = {TopUpStatus.CREATING}, {TopUpStatus.CREATING}
    while frontier:
        frontier = {after for before in frontier for after in TRANSITIONS[before]} - reached
        reached |= frontier
    assert reached == set(TopUpStatus)


def test_every_unfinished_or_payable_status_can_become_paid() -> None:
    for status in IN_WORK | PAYABLE | UNFINISHED:
        assert TopUpStatus.PAID in TRANSITIONS[status]
