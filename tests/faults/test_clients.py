"""The Python clients through outages of the server, the network and the database, as programs of their own."""

from pathlib import Path
from typing import Final

import pytest

from tests.stacks.outages import cut, failover, overload, restart
from tests.stacks.programs import Programs

CLIENTS: Final = ("Python asyncio", "Python threads")


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


async def test_no_send_is_lost_or_charged_twice_when_the_server_is_restarted_or_killed(
    programs: Programs, database_url: str, tmp_path: Path
) -> None:
    await restart(programs, CLIENTS, database_url, tmp_path)


async def test_no_send_is_lost_or_charged_twice_in_an_overload(
    programs: Programs, database_url: str, tmp_path: Path
) -> None:
    await overload(programs, CLIENTS, database_url, tmp_path)


async def test_no_send_is_lost_or_charged_twice_when_connections_are_cut(
    programs: Programs, database_url: str, tmp_path: Path
) -> None:
    await cut(programs, CLIENTS, database_url, tmp_path)


async def test_no_send_is_lost_or_charged_twice_in_a_failover(programs: Programs, tmp_path: Path) -> None:
    await failover(programs, CLIENTS, tmp_path)
