"""The settings of the channels and their providers, and of Stripe: groups of server.settings."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from server.setting_types import FixedTax, Group, HeaderValue, IsSender, Json, Words


class Channel(Group):
    """Providers of each channel, in order of preference: the next is tried when one certainly sent nothing."""

    email: Annotated[tuple[Literal["console", "smtp"], ...], Words] = Field(
        default=(), description="providers of e-mail: smtp"
    )
    whatsapp: Annotated[tuple[Literal["console", "whatsapp"], ...], Words] = Field(
        default=(), description="providers of WhatsApp: whatsapp"
    )
    sms: Annotated[tuple[Literal["console", "twilio", "vonage"], ...], Words] = Field(
        default=(),
        description="providers of SMS: twilio, vonage, or both separated by a comma, the preferred one first",
    )
    console: bool = Field(
        default=False,
        description="allow the provider console, which prints messages with their codes: for development only",
    )
    templates: Path | None = Field(
        default=None, description="folder of message templates that replace the built-in ones"
    )
    concurrency: int = Field(default=50, ge=1, description="maximum messages in progress per provider and process")
    wait_seconds: float = Field(
        default=5, gt=0, description="maximum seconds that a message waits for a free concurrency slot"
    )
    failures_to_open: int = Field(
        default=5, ge=1, description="consecutive failures that open a provider's circuit breaker"
    )
    cooldown_seconds: float = Field(
        default=30,
        gt=0,
        description="maximum seconds until an open circuit breaker tries the provider again; 1, 2, 4 and so on while "
        "it cannot be reached",
    )


class Smtp(Group):
    """The mail relay."""

    host: str = Field(default="", description="host name of the mail relay")
    port: int = Field(default=587, ge=1, le=65535, description="port of the mail relay")
    security: Literal["starttls", "tls", "none"] = Field(
        default="starttls",
        description="starttls: upgrade after connecting; tls: from the first byte, usually port 465; none: plaintext",
    )
    sender: Annotated[str, IsSender] = Field(default="", description="address in the From header and the envelope")
    sender_name: str = Field(default="", description="display name in the From header")
    reply_to: HeaderValue = Field(default="", description="Reply-To header, an address; unset: none")
    feedback_id: HeaderValue = Field(default="", description="Feedback-ID header, for Gmail's reports; unset: none")
    auto_response_suppress: HeaderValue = Field(
        default="", description="X-Auto-Response-Suppress header, for Exchange, such as All; unset: none"
    )
    username: str = Field(default="", description="login name; unset: no login")
    password: SecretStr = Field(default=SecretStr(""), description="password of the login")
    ca_file: Path | None = Field(default=None, description="PEM file of the relay's CA; unset: the system's CAs")
    bounce_address: Annotated[str, IsSender] = Field(
        default="",
        description="envelope's sender; bounces@… becomes bounces+TOKEN@…, a token per mail; unset: the sender",
    )
    timeout_seconds: float = Field(default=20, gt=0, description="timeout of a mail until its final dot, in seconds")
    dot_timeout_seconds: float = Field(default=60, gt=0, description="timeout of the final dot's reply, in seconds")
    connections: int = Field(
        default=50, ge=1, description="maximum connections per process; fewer if the relay refuses"
    )
    idle_seconds: float = Field(default=30, gt=0, description="seconds after which an idle connection is closed")
    mails_per_connection: int | None = Field(
        default=None,
        ge=1,
        description="mails after which a connection is closed; unset: 10 if the relay greets as Exim, which by default "
        "keeps further ones until its next queue run, and otherwise none",
    )


class Whatsapp(Group):
    """A sender of the WhatsApp Cloud API."""

    phone_number_id: str = Field(default="", description="id of the sending phone number")
    access_token: SecretStr = Field(default=SecretStr(""), description="access token from Meta")
    template_name: str = Field(default="", description="name of an approved AUTHENTICATION template")
    template_languages: Annotated[tuple[str, ...], Words] = Field(
        default=("en",), description="approved languages of the template, separated by commas; the first is the default"
    )
    version: str = Field(default="v23.0", description="version of the Cloud API")
    base_url: str = Field(default="https://graph.facebook.com", description="base URL of the API")
    timeout_seconds: float = Field(default=10, gt=0, description="timeout of one API request, in seconds")


class Twilio(Group):
    """A Twilio account."""

    account_sid: str = Field(default="", description="account SID")
    auth_token: SecretStr = Field(
        default=SecretStr(""), description="auth token of the account, or the secret of PULSA_TWILIO_API_KEY_SID"
    )
    sender: str = Field(
        default="", description="sender: an E.164 number, an alphanumeric id, or a messaging service SID (MG…)"
    )
    api_key_sid: str = Field(default="", description="SID of an API key; unset: log in with the account SID")
    status_callback_url: str = Field(default="", description="URL that Twilio posts delivery reports to; unset: none")
    base_url: str = Field(default="https://api.twilio.com", description="base URL of the API")
    timeout_seconds: float = Field(default=10, gt=0, description="timeout of one API request, in seconds")


class Vonage(Group):
    """A Vonage account."""

    api_key: str = Field(default="", description="API key of the account")
    api_secret: SecretStr = Field(default=SecretStr(""), description="secret of the API key")
    sender: str = Field(default="", description="sender: a number without its plus sign, or an alphanumeric id")
    base_url: str = Field(default="https://rest.nexmo.com", description="base URL of the API")
    timeout_seconds: float = Field(default=10, gt=0, description="timeout of one API request, in seconds")


class Stripe(Group):
    """The Stripe account whose invoices sell credits."""

    api_key: SecretStr | None = Field(default=None, description="secret or restricted API key")
    webhook_secrets: SecretStr | None = Field(
        default=None,
        description="signing secrets of the webhook endpoint, separated by commas; two while one is being rolled",
    )
    base_url: str | None = Field(default=None, description="base URL of the API; unset: Stripe's")
    api_version: str | None = Field(
        default=None, description="Stripe-Version header, for preview features; unset: the SDK's version"
    )
    account_id: str | None = Field(
        default=None, description="account of the API key; an event that names another is rejected; unset: any other"
    )
    timeout_seconds: float = Field(
        default=10,
        gt=0,
        le=80,
        description="timeout of one HTTP request to Stripe, in seconds; a call makes at most three",
    )
    wait_seconds: float = Field(
        default=15, gt=0, description="maximum seconds that CreateTopUp and CancelTopUp wait for Stripe"
    )
    lease_seconds: float = Field(
        default=60, gt=0, description="seconds after which another replica takes over an unfinished top-up"
    )
    days_until_due: int = Field(default=7, ge=1, le=90, description="days until an invoice is due")
    expire_grace_hours: float = Field(
        default=24, ge=0, description="hours after the due time until an unpaid invoice is voided"
    )
    trust_out_of_band: bool = Field(
        default=False, description="add credits for invoices that a person marked as paid in Stripe (paid out of band)"
    )
    freeze_disputed: bool = Field(
        default=False, description="take back what is left of a disputed top-up's credits until the dispute is won"
    )
    charge_failures: int = Field(
        default=3,
        ge=1,
        le=10,
        description="failed charges in a row that switch an organization's automatic top-ups off",
    )
    charge_pause_hours: float = Field(
        default=4,
        ge=0.001,
        le=168,
        description="hours from a failed charge of an automatic top-up to the next; each further pause is doubled",
    )
    tax_rates: Annotated[dict[str, FixedTax], Json] = Field(
        default={},
        description='tax rates made at Stripe, such as {"IDR": {"id": "txr_…", "percent": "11", "inclusive": false}}',
    )
    automatic_tax: Literal["off", "exclusive", "inclusive"] = Field(
        default="off",
        description="Stripe computes the tax of currencies without a rate from the billing address of CreateTopUp",
    )
    payment_methods: Annotated[dict[str, tuple[str, ...]], Json] = Field(
        default={},
        description='payment method types by currency, such as {"IDR": ["id_bank_transfer"]}; unset: those of the '
        "account's invoice template",
    )
