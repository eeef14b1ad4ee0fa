"""The settings of the log, the metrics and the traces."""

from typing import Literal

from pydantic import Field, SecretStr

from server.setting_types import ADDRESS, Group


class Log(Group):
    """The log, on standard error. It never contains a destination, a code or a secret."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="lowest level that is logged"
    )
    format: Literal["json", "console"] = Field(
        default="json", description="json: one JSON object per line; console: text for a terminal"
    )


class Metrics(Group):
    """Prometheus metrics over HTTP, at /metrics."""

    listen: str = Field(
        default="127.0.0.1:9464",
        pattern=f"^off$|{ADDRESS}",
        description="host:port of the metrics endpoint; off: no endpoint",
    )


class Traces(Group):
    """Spans of calls, by OpenTelemetry; needs the extra `traces`. They never contain a destination or a code."""

    endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^/]+/",
        description="URL that takes spans by OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; unset: no traces",
    )
    headers: SecretStr | None = Field(
        default=None,
        description="HTTP headers for it, such as a token, as name=value separated by commas: authorization=Bearer …",
    )
    ratio: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="share of the calls without a W3C traceparent that are sampled; a traceparent decides by its flag",
    )

    @property
    def header_fields(self) -> dict[str, str]:
        """The headers by their names. Raises ValueError for one without a name or a value."""
        if self.headers is None:
            return {}
        fields = [field.strip().partition("=") for field in self.headers.get_secret_value().split(",")]
        if not all(name and value for name, _, value in fields):
            raise ValueError("PULSA_TRACES_HEADERS: must be name=value, separated by commas")
        return {name: value for name, _, value in fields}
