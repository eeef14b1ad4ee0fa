"""Kill -9 of PostgreSQL: the server keeps running, and works again once the database does."""

import os
import signal
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from server.postgres import embedded
from tests.faults.load import under_load
from tests.faults.process_deployment import deployed_processes

KILLS = 2


async def test_under_load_every_accepted_send_is_kept_and_charged_once(tmp_path: Path) -> None:
    # The operating system keeps running, and with it the pages that PostgreSQL has written: fsync would only cost time.
    start = partial(embedded.start, tmp_path / "postgres", settings={"fsync": "off"})
    postgres = start()
    port = urlsplit(postgres.url).port
    try:
        async with deployed_processes(postgres.url, tmp_path, PULSA_DATABASE_MIGRATE="true") as deployment:
            await deployment.grant(100_000)
            async with under_load(deployment) as load:
                for _ in range(KILLS):
                    await load.wait_for_answers(50)
                    os.kill(postgres.pid, signal.SIGKILL)
                    postgres.stop()
                    postgres = start(port=port)
                await load.wait_for_answers(50)
            await load.assert_charged_once(100_000)
            assert "every ledger holds" in await deployment.audit()
    finally:
        postgres.stop()
