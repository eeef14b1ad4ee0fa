"""What both rooms stand on."""

from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from server.channels.console import Console
from server.channels.templates import Templates, load_templates
from server.credits.pricing import Pricing, load_pricing
from server.database.batcher import Batching
from server.database.pool import Pool, open_pool
from server.database.queries import Queries
from server.environment import SettingsError
from server.otps.vault import Vault
from server.settings import Settings

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Foundations:
    """Settings, and what they open for everyone."""

    settings: Settings
    pool: Pool
    pricing: Pricing
    vault: Vault
    templates: Templates
    console: Console | None
    """Where a development machine shows its messages."""

    @property
    def batching(self) -> Batching:
        """How calls share transactions."""
        delivery = self.settings.delivery
        return Batching(
            size=delivery.batch_size,
            linger_seconds=delivery.linger_ms / 1000,
            by_organization=self.settings.database.citus,
        )


async def lay_foundations(
    stack: AsyncExitStack, settings: Settings, database_url: str, console: Console | None
) -> Foundations:
    """Open them; the stack closes them. Raises SettingsError or ValueError for a setting that cannot be used."""
    vault = Vault(settings.secret.key_ring(), digest_secret=settings.secret.digest())
    with read_from("PULSA_PRICING"):
        pricing = load_pricing(settings.pricing)
    with read_from("PULSA_CHANNEL_TEMPLATES"):
        templates = load_templates(settings.channel.templates)
    database = settings.database
    Queries.name_shards = database.citus
    pool = await open_pool(database_url, size=database.connections, timeout_seconds=database.timeout_seconds)
    stack.push_async_callback(pool.close)
    return Foundations(settings, pool, pricing, vault, templates, console)


@contextmanager
def read_from(name: str) -> Iterator[None]:
    """What cannot be read inside is this setting's fault: a SettingsError that names it."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise SettingsError(f"{name}: {error}") from error


def needed(value: Value | None, name: str) -> Value:
    """The value. Raises SettingsError when there is none."""
    if value is None:
        raise SettingsError(f"{name}: is needed")
    return value
