"""`python -m server postgres`, which `make postgres` runs: both signals stop it, also where it ignored SIGINT."""

import signal
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.faults.processes import Process


@pytest.fixture
def sigint_is_ignored() -> Iterator[None]:
    """Ignored by this process and by those that it starts, as a shell does for a command that ends with `&`."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.usefixtures("sigint_is_ignored")
async def test_a_signal_stops_the_embedded_postgres_and_removes_its_url(number: signal.Signals, tmp_path: Path) -> None:
    process = Process("postgres", {"PULSA_DATA": str(tmp_path / "data")}, output=tmp_path / "postgres.log")
    await process.wait_for_output("PostgreSQL is running")
    url = (tmp_path / "data" / "postgres.url").read_text()
    psycopg.connect(url).close()

    process.signal(number)

    assert await process.wait_for_exit() == 0
    assert not (tmp_path / "data" / "postgres.url").exists()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
