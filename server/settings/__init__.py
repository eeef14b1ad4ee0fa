"""Every setting, read once from the environment.

A name is `PULSA_`, the group and the field below, joined by `_`: `PULSA_STRIPE_API_KEY` is `settings.stripe.api_key`.
With `_FILE` behind it, it names a file that holds the value, for secrets.
"""

from base64 import b64decode
from binascii import Error as Base64Error
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from server.settings.group import ADDRESS, AreAreas, Group, IsDatabase, Json, Words
from server.settings.providers import Sandbox, Smtp, Twilio, Vonage, Whatsapp

KEY_BYTES = 32


class Log(Group):
    """What the log says; never a destination, a code or a secret."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="the least that is written")
    format: Literal["json", "console"] = Field(default="json", description="for machines or for people")


class Metrics(Group):
    """Prometheus metrics over HTTP, at /metrics."""

    listen: str = Field(default="127.0.0.1:9464", pattern=f"^off$|{ADDRESS}", description="host:port; off: none")


class Database(Group):
    """PostgreSQL 15 or newer."""

    url: Annotated[SecretStr | None, IsDatabase] = Field(
        default=None, description="URL of PostgreSQL; unset: an embedded one in the data folder"
    )
    owner_url: Annotated[SecretStr | None, IsDatabase] = Field(
        default=None, description="URL for migrations, as the schema's owner; unset: url"
    )
    connections: int = Field(default=8, ge=2, le=200, description="connections per process")
    timeout_seconds: float = Field(default=5, gt=0, le=60, description="longest wait for a connection")
    citus: bool = Field(default=False, description="the URL is of a Citus coordinator: one organization a transaction")
    migrate: bool = Field(default=True, description="bring the schema up to date at start")


class Tls(Group):
    """Encryption of the gRPC port; files are read again when they change."""

    certificate: Path | None = Field(
        default=None, description="PEM file of the server's certificate chain; unset: plaintext"
    )
    key: Path | None = Field(default=None, description="PEM file of its private key")
    client_ca: Path | None = Field(default=None, description="PEM file of the CAs of callers; set: mutual TLS")


class Token(Group):
    """Who may call."""

    keys: Path | None = Field(
        default=None, description="JWKS or PEM file of the public keys; read again when it changes"
    )
    audience: str = Field(default="pulsa", min_length=1, description="the aud that tokens must have")
    leeway_seconds: float = Field(default=30, ge=0, le=300, description="how far clocks may differ")


class Secret(Group):
    """Keys of codes, sealed destinations and digests."""

    keys: SecretStr | None = Field(
        default=None,
        description="the key ring: id:base64 of 32 bytes, separated by commas; the last one makes, all read",
    )
    digest_key: SecretStr | None = Field(
        default=None, description="base64 of 32 bytes; changing it restarts the limits"
    )

    def key_ring(self) -> dict[str, bytes]:
        """The keys by id, oldest first. Raises ValueError for what is not such a ring."""
        ring = {}
        for entry in (self.keys.get_secret_value() if self.keys else "").split(","):
            name, _, value = entry.strip().partition(":")
            if not name or name in ring:
                raise ValueError("PULSA_SECRET_KEYS: must be id:base64 entries with different ids")
            ring[name] = _key("PULSA_SECRET_KEYS", value)
        return ring

    def digest(self) -> bytes:
        """The digest key. Raises ValueError when it is not one."""
        return _key("PULSA_SECRET_DIGEST_KEY", self.digest_key.get_secret_value() if self.digest_key else "")


class Limit(Group):
    """How much is too much; 0 switches a limit on sends off."""

    cooldown_seconds: float = Field(
        default=30, ge=0, le=3600, description="between sends to a destination for one purpose"
    )
    sends_per_destination_per_hour: int = Field(default=10, ge=0, description="sends to one destination in any hour")
    sends_per_destination_per_day: int = Field(default=30, ge=0, description="sends to one destination in any 24 hours")
    sends_per_organization_per_minute: int = Field(
        default=60_000, ge=0, description="sends of one organization in a minute"
    )
    unverified_credits_per_country: int = Field(
        default=3000, ge=0, description="credits for one country's phones whose codes nobody verified, per organization"
    )
    unverified_credits_per_prefix: int = Field(
        default=0, ge=0, description="the same for numbers that begin alike, within their country's; 0: no such limit"
    )
    unverified_prefix_digits: int = Field(
        default=7, ge=2, le=14, description="how many digits after the plus sign begin alike: +6281234 has 7"
    )
    unverified_window_hours: float = Field(default=24, gt=0, le=720, description="how long they count")
    areas: Annotated[tuple[str, ...], AreAreas, Words] = Field(
        default=(), description="countries (ID) or beginnings of numbers (+62812) that are sent to; unset: all"
    )
    blocked_areas: Annotated[tuple[str, ...], AreAreas, Words] = Field(
        default=(), description="countries or beginnings of numbers that are not sent to"
    )
    wrong_guesses: int = Field(
        default=50, ge=1, le=100, description="wrong codes at one destination in any guess_window_hours"
    )
    guess_window_hours: float = Field(default=24, gt=0, le=720, description="how long a wrong code counts")
    free_guesses: int = Field(
        default=10, ge=1, description="wrong codes before pauses begin, each twice the one before"
    )
    calls_at_once: int = Field(default=512, ge=1, description="calls in flight per process; further ones are refused")
    calls_waiting: int = Field(
        default=600,
        ge=1,
        description="calls per process that nobody has looked at yet; from there on gRPC cancels some, 25 % later all",
    )
    streams_at_once: int = Field(default=1000, ge=1, description="WatchBalance streams per process")


class Delivery(Group):
    """Sending messages."""

    lease_seconds: float = Field(
        default=60, ge=5, description="after this another replica takes a silent delivery over"
    )
    concurrency: int = Field(default=200, ge=1, description="deliveries under way per process")
    queue: int = Field(default=10_000, ge=1, description="deliveries that wait in memory; more wait in the database")
    refund_reported_failures: bool = Field(default=False, description="refund a failure reported after acceptance")
    batch_size: int = Field(default=96, ge=1, le=5000, description="calls that share a transaction, at most")
    linger_ms: float = Field(
        default=20, ge=0, le=100, description="how long a batch gathers, at most; a lone call never waits"
    )
    destination_days: int = Field(default=30, ge=1, description="how long destinations are kept, sealed")
    retention_days: int = Field(
        default=90, ge=1, description="how long OTPs and deliveries are kept; the ledger is for ever"
    )


class Stripe(Group):
    """The Stripe account that sells credits."""

    api_key: SecretStr | None = Field(default=None, description="secret or restricted key")
    webhook_secrets: SecretStr | None = Field(
        default=None,
        description="signing secrets of the webhook endpoint, separated by commas; two while one is rolled",
    )
    base_url: str | None = Field(default=None, description="address of the API; unset: Stripe's")
    api_version: str | None = Field(default=None, description="Stripe-Version, for preview features; unset: the SDK's")
    account_id: str | None = Field(default=None, description="the account that events must be of; unset: any")
    timeout_seconds: float = Field(default=10, gt=0, le=80, description="for each call to Stripe")
    wait_seconds: float = Field(default=15, gt=0, description="how long CreateTopUp and CancelTopUp wait for Stripe")
    lease_seconds: float = Field(default=60, gt=0, description="after this another replica takes a silent top-up over")
    days_until_due: int = Field(default=7, ge=1, le=90, description="days to pay an invoice")
    expire_grace_hours: float = Field(
        default=24, ge=0, description="after due time, before an unpaid invoice is voided"
    )
    trust_out_of_band: bool = Field(default=False, description="credit invoices that a person marked as paid")
    payment_methods: Annotated[dict[str, tuple[str, ...]], Json] = Field(
        default={},
        description='JSON, by currency: {"IDR": ["id_bank_transfer"]}; unset: the account\'s invoice template',
    )


class Webhook(Group):
    """The sidecar that takes Stripe's webhooks in."""

    listen: str = Field(default="127.0.0.1:8080", pattern=ADDRESS, description="host:port of its HTTP")
    server: str = Field(
        default="127.0.0.1:50051", pattern=ADDRESS, description="host:port of the gRPC server that it relays to"
    )
    token: Path | None = Field(default=None, description="file with its bearer token; read again for each webhook")
    ca: Path | None = Field(default=None, description="PEM file of the server's CA; set: TLS")
    timeout_seconds: float = Field(
        default=15, gt=0, le=20, description="for a relay, retries included; Stripe waits 20 s"
    )


class Channel(Group):
    """Which providers carry which channel, in order; the next is asked when one surely did not send."""

    email: Annotated[tuple[Literal["console", "smtp"], ...], Words] = Field(default=(), description="smtp")
    whatsapp: Annotated[tuple[Literal["console", "whatsapp"], ...], Words] = Field(default=(), description="whatsapp")
    sms: Annotated[tuple[Literal["console", "twilio", "vonage"], ...], Words] = Field(
        default=(), description="twilio, vonage, or both separated by a comma"
    )
    templates: Path | None = Field(
        default=None, description="folder of message templates that replace the built-in ones"
    )
    concurrency: int = Field(default=50, ge=1, description="messages under way per provider and process")
    wait_seconds: float = Field(default=5, gt=0, description="longest wait for a free place at a provider")
    failures_to_open: int = Field(default=5, ge=1, description="failures in a row after which a provider is left alone")
    cooldown_seconds: float = Field(default=30, gt=0, description="how long it is left alone")


class Settings(Group):
    """All of them, checked, and never changed."""

    environment: str = Field(
        default="production",
        pattern=r"^[a-z0-9-]{1,32}$",
        description="tells deployments that share a Stripe account apart",
    )
    data: Path = Field(default=Path("data"), description="folder of the embedded PostgreSQL and the development keys")
    listen: str = Field(
        default="127.0.0.1:50051", pattern=ADDRESS, description="host:port of gRPC; port 0 takes a free one"
    )
    reflection: bool = Field(default=False, description="lets tools ask which rpcs there are")
    pricing: Path | None = Field(default=None, description="TOML file of prices; unset: the built-in one")
    workers: int = Field(default=1, ge=1, le=64, description="processes that share the port")
    drain_seconds: float = Field(default=20, ge=0, description="how long calls may finish when the server goes down")
    lame_duck_seconds: float = Field(default=1, ge=0, description="between NOT_SERVING and the last new call")

    log: Log = Log()
    metrics: Metrics = Metrics()
    database: Database = Database()
    tls: Tls = Tls()
    token: Token = Token()
    secret: Secret = Secret()
    limit: Limit = Limit()
    delivery: Delivery = Delivery()
    stripe: Stripe = Stripe()
    webhook: Webhook = Webhook()
    channel: Channel = Channel()
    smtp: Smtp = Smtp()
    whatsapp: Whatsapp = Whatsapp()
    twilio: Twilio = Twilio()
    vonage: Vonage = Vonage()
    sandbox: Sandbox = Sandbox()


def _key(name: str, value: str) -> bytes:
    try:
        key = b64decode(value, validate=True)
    except Base64Error:
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(f"{name}: must be base64 of {KEY_BYTES} bytes")
    return key
