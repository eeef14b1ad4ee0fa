"""The settings of each provider; server.channels says what they mean to it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr

from server.settings.group import Group, Words


class Smtp(Group):
    """An e-mail relay."""

    host: str = Field(default="", description="its host name")
    port: int = Field(default=587, ge=1, le=65535, description="its port")
    security: Literal["starttls", "tls", "none"] = Field(
        default="starttls", description="tls is from the first byte, port 465"
    )
    sender: str = Field(default="", description="the From address")
    sender_name: str = Field(default="", description="the name before it")
    username: str = Field(default="", description="unset: no login")
    password: SecretStr = Field(default=SecretStr(""), description="for the login")
    ca_file: Path | None = Field(default=None, description="PEM file of its CA; unset: the system's")
    timeout_seconds: float = Field(default=20, gt=0, description="for a whole delivery")


class Whatsapp(Group):
    """A number of the WhatsApp Cloud API."""

    phone_number_id: str = Field(default="", description="the sending number's id")
    access_token: SecretStr = Field(default=SecretStr(""), description="Meta's token")
    template_name: str = Field(default="", description="an approved AUTHENTICATION template")
    template_languages: Annotated[tuple[str, ...], Words] = Field(
        default=("en",), description="its approved languages, separated by commas; the first is the default"
    )
    version: str = Field(default="v23.0", description="of the API")
    base_url: str = Field(default="https://graph.facebook.com", description="of the API")
    timeout_seconds: float = Field(default=10, gt=0, description="for a call")


class Twilio(Group):
    """A Twilio account."""

    account_sid: str = Field(default="", description="the account")
    auth_token: SecretStr = Field(default=SecretStr(""), description="its token, or the secret of api_key_sid")
    sender: str = Field(default="", description="a number in E.164, a sender id, or a messaging service (MG…)")
    api_key_sid: str = Field(default="", description="unset: auth_token is the account's")
    status_callback_url: str = Field(default="", description="where Twilio posts delivery reports; unset: nowhere")
    base_url: str = Field(default="https://api.twilio.com", description="of the API")
    timeout_seconds: float = Field(default=10, gt=0, description="for a call")


class Vonage(Group):
    """A Vonage account."""

    api_key: str = Field(default="", description="the account")
    api_secret: SecretStr = Field(default=SecretStr(""), description="its secret")
    sender: str = Field(default="", description="a number without its plus sign, or a sender id")
    base_url: str = Field(default="https://rest.nexmo.com", description="of the API")
    timeout_seconds: float = Field(default=10, gt=0, description="for a call")


class Sandbox(Group):
    """The stand-ins of `python -m server dev`."""

    stripe_port: int = Field(default=12111, description="port of the stand-in for Stripe on 127.0.0.1")
    messages_port: int = Field(default=12112, description="port of the page with the messages on 127.0.0.1")
    stop_at: str = Field(
        default="",
        pattern=r"^([a-z_ ]+(#[1-9][0-9]*)?)?$",
        description="for crash tests: where `dev` kills itself, as `stripe void`, or `stripe void#2` the second time",
    )
