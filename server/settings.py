"""Every setting: its type, default and meaning. server.environment reads them from environment variables.

A name is `PULSA_`, the group and the field below, joined by `_`: `PULSA_STRIPE_API_KEY` is `settings.stripe.api_key`.
With `_FILE` appended, it names a file that holds the value; meant for secrets.
"""

from datetime import timedelta
from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr

from server.provider_settings import Channel, Smtp, Stripe, Twilio, Vonage, Whatsapp
from server.setting_types import (
    ADDRESS,
    MAXIMUM_DIGEST_KEYS,
    AreAreas,
    ArePrefixes,
    Group,
    IsDatabase,
    NumberType,
    Words,
    key_ring,
)
from server.telemetry_settings import Log, Metrics, Traces


class Database(Group):
    """PostgreSQL 15 or newer."""

    url: Annotated[SecretStr | None, IsDatabase] = Field(
        default=None, description="PostgreSQL URL; unset: start an embedded server in PULSA_DATA"
    )
    urls: SecretStr | None = Field(
        default=None,
        description="of a Citus cluster: PostgreSQL URLs of workers, separated by spaces, through which batches go to "
        "the worker that has their organizations; unset: all go through PULSA_DATABASE_URL",
    )
    owner_url: Annotated[SecretStr | None, IsDatabase] = Field(
        default=None, description="PostgreSQL URL of the schema owner, for migrations; unset: PULSA_DATABASE_URL"
    )
    connections: int = Field(default=8, ge=2, le=200, description="size of the connection pool of each process")
    timeout_seconds: float = Field(
        default=2, gt=0, le=60, description="maximum wait for a connection, and for opening one, in seconds"
    )
    transaction_seconds: float = Field(
        default=2, gt=0, le=600, description="maximum use of a connection by one call or batch, in seconds"
    )
    lock_seconds: float = Field(
        default=1, gt=0, le=60, description="maximum wait of a statement for a locked row, in seconds (lock_timeout)"
    )
    busy_seconds: float = Field(
        default=2, gt=0, le=60, description="a call whose rows stay locked for longer gets ACCOUNT_BUSY, in seconds"
    )
    job_seconds: float = Field(
        default=300, gt=0, le=3600, description="maximum use of a connection by a periodic job or a command, in seconds"
    )
    idle_seconds: float = Field(
        default=5, gt=0, le=600, description="maximum wait of a transaction for its next statement, in seconds"
    )
    flushes: int = Field(
        default=4,
        ge=1,
        le=64,
        description="maximum batches of one kind in flight to PostgreSQL, or to each worker of Citus; half of them may "
        "wait for locks",
    )
    citus: bool = Field(
        default=False,
        description="has no effect: the server finds out by itself whether tables are distributed over Citus' workers",
    )
    shards: int = Field(
        default=8,
        ge=1,
        le=1024,
        description="shards into which migrate and distribute part the tables of a Citus cluster, once: about four for "
        "each worker that it will have, as a batch has calls of one shard only",
    )
    migrate: bool = Field(
        default=False,
        description="serve applies missing migrations at its start; false: only migrate does. An embedded PostgreSQL "
        "is migrated by either",
    )


class Tls(Group):
    """TLS on the gRPC port. Changed files are reloaded without a restart."""

    certificate: Path | None = Field(
        default=None, description="PEM file of the server's certificate chain; unset: no TLS"
    )
    key: Path | None = Field(default=None, description="PEM file of the certificate's private key")
    client_ca: Path | None = Field(
        default=None,
        description="PEM file of the CAs that sign client certificates; set: clients must present one (mutual TLS)",
    )


class Token(Group):
    """Verification of bearer tokens."""

    keys: Path | None = Field(
        default=None,
        description="JWKS or PEM file of the public keys that tokens are verified with; reloaded when it changes",
    )
    audience: str = Field(default="pulsa", min_length=1, description="required `aud` claim")
    leeway_seconds: float = Field(
        default=30, ge=0, le=300, description="allowed clock skew for `exp` and `nbf`, in seconds"
    )


class Secret(Group):
    """Keys that encrypt destinations and make codes, and keys of digests."""

    keys: SecretStr | None = Field(
        default=None,
        description="encryption keys as id:base64 of 32 bytes, separated by commas, oldest first: the last one "
        "encrypts, all of them decrypt",
    )
    digest_keys: SecretStr | None = Field(
        default=None,
        description="keys that make digests of destinations and requests, as PULSA_SECRET_KEYS: the last one makes "
        "them; at most two",
    )

    def key_ring(self) -> dict[str, bytes]:
        """The encryption keys by id, oldest first. Raises ValueError when PULSA_SECRET_KEYS is unset or malformed."""
        return key_ring("PULSA_SECRET_KEYS", self.keys)

    def digest_key_ring(self) -> dict[str, bytes]:
        """The digest keys by id, oldest first. Raises ValueError when PULSA_SECRET_DIGEST_KEYS is unset or wrong."""
        ring = key_ring("PULSA_SECRET_DIGEST_KEYS", self.digest_keys)
        if len(set(ring.values())) < len(ring) or len(ring) > MAXIMUM_DIGEST_KEYS:
            raise ValueError("PULSA_SECRET_DIGEST_KEYS: must be one key, or two different ones")
        return ring


class Audit(Group):
    """Keys of the ledger's MACs, with which `audit` tells edited history, and of receipts."""

    keys: SecretStr | None = Field(
        default=None,
        description="keys of the ledger's MACs as id:base64 of 32 bytes, separated by commas, oldest first: the last "
        "one makes them, all of them check; unset: no MACs are made or checked",
    )

    signing_keys: SecretStr | None = Field(
        default=None,
        description="Ed25519 keys of receipts as id:base64 of 32 random bytes, separated by commas, oldest first: the "
        "last one signs each day; needs PULSA_AUDIT_KEYS; unset: there are no receipts",
    )

    def key_ring(self) -> dict[str, bytes] | None:
        """The keys by id, oldest first; None when PULSA_AUDIT_KEYS is unset. Raises ValueError when it is malformed."""
        return key_ring("PULSA_AUDIT_KEYS", self.keys) if self.keys else None

    def signing_key_ring(self) -> dict[str, bytes] | None:
        """The signing keys, as `key_ring`. Raises ValueError when there are some without PULSA_AUDIT_KEYS."""
        if self.signing_keys is None:
            return None
        if self.keys is None:
            raise ValueError("PULSA_AUDIT_SIGNING_KEYS: needs PULSA_AUDIT_KEYS")
        return key_ring("PULSA_AUDIT_SIGNING_KEYS", self.signing_keys)


class Limit(Group):
    """Rate limits and concurrency limits. 0 disables a limit on sends."""

    cooldown_seconds: float = Field(
        default=30, ge=0, le=3600, description="minimum seconds between sends to one destination for one purpose"
    )
    sends_per_destination_per_hour: int = Field(
        default=10, ge=0, description="maximum sends to one destination within any hour"
    )
    sends_per_destination_per_day: int = Field(
        default=30, ge=0, description="maximum sends to one destination within any 24 hours"
    )
    sends_per_organization_per_minute: int = Field(
        default=60_000, ge=0, description="maximum sends of one organization per minute"
    )
    unverified_credits_per_country: int = Field(
        default=3000,
        ge=0,
        description="maximum credits that an organization may spend, per window, on sends to one country's phone "
        "numbers that end without a verified code",
    )
    unverified_credits_per_prefix: int = Field(
        default=0,
        ge=0,
        description="the same limit for numbers with a common prefix, in addition to the country's; 0: no limit",
    )
    unverified_prefix_digits: int = Field(
        default=7, ge=2, le=14, description="length of a common prefix in digits, without the plus sign: +6281234 has 7"
    )
    unverified_window_hours: float = Field(
        default=24, gt=0, le=720, description="length of the window of unverified credits, in hours"
    )
    areas: Annotated[tuple[str, ...], AreAreas, Words] = Field(
        default=(), description="countries (ID) or number prefixes (+62812) that sends are allowed to; unset: all"
    )
    blocked_areas: Annotated[tuple[str, ...], AreAreas, Words] = Field(
        default=(), description="countries or number prefixes that sends are refused to, also within PULSA_LIMIT_AREAS"
    )
    number_types: Annotated[tuple[NumberType, ...], Words] = Field(
        default=("mobile", "fixed_line_or_mobile"), description="types of phone numbers that sends are allowed to"
    )
    extra_prefixes: Annotated[tuple[str, ...], ArePrefixes, Words] = Field(
        default=(), description="prefixes (+88064) of mobile numbers that the installed phonenumberslite does not know"
    )
    wrong_guesses: int = Field(
        default=50,
        ge=1,
        le=100,
        description="maximum wrong codes per destination within any PULSA_LIMIT_GUESS_WINDOW_HOURS",
    )
    guess_window_hours: float = Field(default=24, gt=0, le=720, description="how long a wrong code counts, in hours")
    free_guesses: int = Field(
        default=10,
        ge=1,
        description="wrong codes before delays between guesses start; each further wrong code doubles the delay",
    )
    calls_at_once: int = Field(
        default=512,
        ge=1,
        description="maximum calls in flight per process; further calls get RESOURCE_EXHAUSTED. One organization may "
        "have four fifths of them, sends of all together seven eighths",
    )
    calls_waiting: int = Field(
        default=600,
        ge=1,
        description="queued calls per process above which gRPC starts to cancel; at 125 % it cancels all. A larger "
        "value lets more callers of a burst receive RetryInfo, at the price of latency under sustained overload",
    )
    batch_items_at_once: int = Field(
        default=10_000,
        ge=1000,
        description="maximum requests of BatchSendOtps in progress per process; one organization may have four fifths "
        "of them. More than PULSA_DELIVERY_QUEUE has room for are refused too. At least 1000, as one call may have",
    )
    calls_per_connection: int = Field(
        default=480,
        ge=1,
        description="maximum calls and streams open on one connection; further ones wait in the caller's gRPC library, "
        "or end there with UNAVAILABLE. Keep it below PULSA_LIMIT_CALLS_WAITING: then no connection fills the queue "
        "alone. A caller with more streams opens more connections",
    )
    streams_at_once: int = Field(
        default=1000,
        ge=1,
        description="maximum WatchBalance, WatchEvents and ExportLedger streams per process; one organization may have "
        "four fifths of them",
    )


class Delivery(Group):
    """Deliveries, batches and retention."""

    lease_seconds: float = Field(
        default=60, ge=5, description="seconds after which another replica takes over an unfinished delivery"
    )
    concurrency: int = Field(default=200, ge=1, description="maximum deliveries in progress per process")
    queue: int = Field(
        default=10_000,
        ge=1000,
        description="maximum deliveries queued in memory per process; the others wait in the database. At least 1000, "
        "as one BatchSendOtps may have",
    )
    refund_reported_failures: bool = Field(
        default=False, description="refund a delivery that is reported as failed after the provider had accepted it"
    )
    suppression_days: int = Field(default=30, ge=1, description="days that an address gets no mail after a bounce")
    batch_size: int = Field(default=96, ge=1, le=5000, description="maximum calls per transaction")
    batch_items: int = Field(
        default=500,
        ge=100,
        le=5000,
        description="maximum requests of BatchSendOtps per transaction, in steps of 100. More cost less each, and "
        "other calls of their organization wait longer",
    )
    linger_ms: float = Field(
        default=20,
        ge=0,
        le=100,
        description="maximum milliseconds that a batch collects calls; a single call never waits",
    )
    outcome_batch_size: int = Field(
        default=1000,
        ge=1,
        le=5000,
        description="maximum outcomes per transaction, and maximum messages per process whose outcomes are not stored, "
        "in progress or sent: a crash repeats them. At least PULSA_DELIVERY_CONCURRENCY counts",
    )
    outcome_linger_ms: float = Field(
        default=100, ge=0, le=1000, description="maximum milliseconds that outcomes wait to be stored together"
    )
    destination_days: int = Field(default=30, ge=1, description="days after which encrypted destinations are erased")
    retention_days: int = Field(
        default=90,
        ge=1,
        description="days after which OTPs, deliveries, notices and Stripe events are deleted, OTPs and deliveries in "
        "whole weeks; ledger entries and usage are kept",
    )
    request_days: int | None = Field(
        default=None,
        ge=7,
        description="days for which a repeated request_id gets its first answer; a new one that is a time-ordered UUID "
        "older than that is refused; unset: 7 more than PULSA_DELIVERY_RETENTION_DAYS, as OTPs are removed by weeks",
    )

    @property
    def request_life(self) -> timedelta:
        """How long requests are kept."""
        return timedelta(days=self.request_days or 7 + self.retention_days)


class Event(Group):
    """The events of organizations that have them enabled."""

    days: int = Field(default=7, ge=1, le=400, description="days for which events are kept for WatchEvents")


class Organization(Group):
    """What organizations may choose by UpdateSettings, and test organizations."""

    settings_seconds: float = Field(
        default=5, ge=0.1, le=60, description="maximum seconds until every process uses changed settings"
    )
    senders: Annotated[tuple[str, ...], Words] = Field(
        default=(), description="sender ids and numbers that organizations may choose; unset: any"
    )
    refund_choice: bool = Field(
        default=False, description="organizations may choose refunds of deliveries that are reported as failed"
    )
    test: Annotated[tuple[str, ...], Words] = Field(
        default=(), description="test organizations: no provider, no charge, codes that begin 12345678"
    )


class Webhook(Group):
    """The sidecar that receives Stripe's webhooks and relays them over gRPC."""

    listen: str = Field(
        default="127.0.0.1:8080", pattern=ADDRESS, description="host:port of the webhook endpoint (HTTP)"
    )
    server: str = Field(
        default="127.0.0.1:50051",
        pattern=ADDRESS,
        description="host:port of the gRPC server that receives the webhooks",
    )
    token: Path | None = Field(default=None, description="file of the sidecar's bearer token; read for each webhook")
    ca: Path | None = Field(default=None, description="PEM file of the CA of the gRPC server; unset: no TLS")
    certificate: Path | None = Field(
        default=None, description="PEM file of the sidecar's own certificate chain, for mutual TLS"
    )
    key: Path | None = Field(default=None, description="PEM file of that certificate's private key")
    timeout_seconds: float = Field(
        default=15, gt=0, le=20, description="maximum seconds to relay a webhook, retries included; Stripe waits 20 s"
    )


class Sandbox(Group):
    """The stand-ins of `python -m server dev`."""

    stripe_port: int = Field(default=12111, description="port of the Stripe stand-in, on 127.0.0.1")
    billing_port: int = Field(default=12110, description="port of the sample billing pages, on 127.0.0.1")
    messages_port: int = Field(default=12112, description="port of the page that shows sent messages, on 127.0.0.1")
    failpoint: str = Field(
        default="",
        pattern=r"^([a-z_ ]+(#[1-9][0-9]*)?)?$",
        description="for crash tests: failpoint at which `dev` kills itself, such as `stripe void`, or `stripe void#2` "
        "for the second time it is reached",
    )


class Settings(Group):
    """All settings, validated and immutable."""

    environment: str = Field(
        default="production",
        pattern=r"^[a-z0-9-]{1,32}$",
        description="name of the deployment; distinguishes deployments that share a Stripe account",
    )
    data: Path = Field(
        default=Path("data"), description="folder of the embedded PostgreSQL and of the development keys"
    )
    listen: str = Field(
        default="127.0.0.1:50051", pattern=ADDRESS, description="host:port of the gRPC server; port 0: any free port"
    )
    reflection: bool = Field(default=False, description="serve gRPC reflection, so that tools can list the rpcs")
    pricing: Path | None = Field(default=None, description="TOML file of prices; unset: the built-in prices")
    pin_polling_thread: bool = Field(
        default=True,
        description="pin gRPC's polling thread to the event loop's processor (Linux only; saves about 10 % of a send)",
    )
    workers: int = Field(default=1, ge=1, le=64, description="number of processes that share the port")
    drain_seconds: float = Field(
        default=20,
        ge=0,
        description="maximum seconds at shutdown for calls in flight to finish, and then, in what is left, deliveries",
    )
    lame_duck_seconds: float = Field(
        default=1, ge=0, description="seconds from reporting NOT_SERVING until new calls are refused"
    )
    keepalive_seconds: float = Field(
        default=30, ge=1, description="seconds of silence after which the server pings a connection"
    )
    repeat_balance_seconds: float = Field(
        default=30,
        gt=0,
        description="seconds without a change after which a balance stream sends the balance again, and a stream of "
        "events its cursor, so that no proxy takes it for dead",
    )

    log: Log = Log()
    metrics: Metrics = Metrics()
    traces: Traces = Traces()
    database: Database = Database()
    tls: Tls = Tls()
    token: Token = Token()
    secret: Secret = Secret()
    audit: Audit = Audit()
    limit: Limit = Limit()
    delivery: Delivery = Delivery()
    event: Event = Event()
    organization: Organization = Organization()
    stripe: Stripe = Stripe()
    webhook: Webhook = Webhook()
    channel: Channel = Channel()
    smtp: Smtp = Smtp()
    whatsapp: Whatsapp = Whatsapp()
    twilio: Twilio = Twilio()
    vonage: Vonage = Vonage()
    sandbox: Sandbox = Sandbox()
