"""Kill -9 of PostgreSQL: the server lives on, and works again as soon as the database does."""

import os
import signal
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from server.database import embedded
from tests.faults.load import under_load
from tests.faults.site import open_site

KILLS = 2


async def test_under_load_every_accepted_send_stays_and_is_charged_once(tmp_path: Path) -> None:
    # The machine lives on, and with it what PostgreSQL has written: fsync would only cost time.
    start = partial(embedded.start, tmp_path / "postgres", settings={"fsync": "off"})
    postgres = start()
    port = urlsplit(postgres.url).port
    try:
        async with open_site(postgres.url, tmp_path) as site:
            await site.grant(100_000)
            async with under_load(site) as load:
                for _ in range(KILLS):
                    await load.has_answers(50)
                    os.kill(postgres.pid, signal.SIGKILL)
                    postgres.stop()
                    postgres = start(port=port)
                await load.has_answers(50)
            await load.is_charged_once(100_000)
            assert "every ledger holds" in await site.audit()
    finally:
        postgres.stop()
