"""`rotate`: seals everything that is kept under the current key, and says which keys are still needed."""

import asyncio
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from server.commands.serve import database
from server.database.pool import open_pool
from server.environment import SettingsError, load_settings
from server.otps.rotation import COLUMNS, Progress, find_needed_keys, reseal
from server.otps.vault import Vault
from server.settings import Settings

_TOLD_EVERY = 50_000


def rotate() -> int:
    """Print how it goes; 0 when no key but the current one is needed any more, 1 otherwise."""
    settings = load_settings(os.environ)
    try:
        vault = Vault(settings.secret.key_ring(), digest_secret=settings.secret.digest())
    except ValueError as error:
        raise SettingsError(str(error)) from error
    with database(settings) as url:
        needed = asyncio.run(_rotate(settings, url, vault))
    for line in verdict(vault, needed):
        print(line)
    return 0 if set(needed) <= {vault.current_key_id} else 1


def verdict(vault: Vault, needed: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """A line on each key of the ring, and on each that is needed without being there."""
    for key_id in dict.fromkeys([*vault.key_ids, *needed]):
        why = ", ".join(f"{count} {what}" for what, count in needed.get(key_id, {}).items())
        if key_id == vault.current_key_id:
            yield f"{key_id}: the current key"
        elif not why:
            yield f"{key_id}: may leave the ring"
        elif key_id in vault.key_ids:
            yield f"{key_id}: still needed by {why}; run this again in 10 minutes"
        else:
            yield f"{key_id}: needed by {why}, but not in the ring"


async def _rotate(settings: Settings, url: str, vault: Vault) -> Mapping[str, Mapping[str, int]]:
    pool = await open_pool(url, size=2, timeout_seconds=settings.database.timeout_seconds)
    try:
        for column in COLUMNS:
            progress, told = Progress(), 0
            async for progress in reseal(pool, vault, column):
                if progress.looked_at >= told + _TOLD_EVERY:
                    told = progress.looked_at
                    print(_line(column.name, progress))
            print(_line(column.name, progress))
        return await find_needed_keys(pool, now=datetime.now(UTC))
    finally:
        await pool.close()


def _line(name: str, progress: Progress) -> str:
    line = f"{name}: {progress.looked_at} looked at, {progress.sealed_anew} sealed anew"
    return f"{line}, {progress.unreadable} that no key opens" if progress.unreadable else line
