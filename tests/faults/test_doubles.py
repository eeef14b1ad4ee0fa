"""A short form of `make test-faults`: replicas that are killed, frozen and cut off send a message twice only then."""

from pathlib import Path

from tests.faults import doubles


async def test_a_message_goes_twice_only_for_a_cause(database_url: str, tmp_path: Path) -> None:
    assert await doubles.run(database_url, tmp_path, faults=5)
