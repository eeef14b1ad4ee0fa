"""HTTP client of the providers: POSTs a request, and tells whether a failed one may have reached the provider."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import aiohttp

from server.providers.provider import OutcomeKind, Subject, Verdict

_BODY_LIMIT_BYTES = 64 * 1024
_KEEP_ALIVE_SECONDS = 15
_RETRY_AFTER_LIMIT_SECONDS = 3600.0
_MESSAGE_ID_LIMIT = 200
_STATUSES = "https://www.rfc-editor.org/rfc/rfc9110#section-15"

Json: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """The provider's response. Its body may quote the code and the number: read identifiers only."""

    status: int
    body: Json | None
    """The JSON object; None when the body is longer than 64 KiB, not JSON, or not an object."""
    retry_after_seconds: float | None


@dataclass(frozen=True, slots=True)
class NoReply:
    """No response was received. The kind is NOT_SENT only if there was no connection to send on."""

    kind: OutcomeKind
    failure_reason: str


STATUS_VERDICTS: Mapping[str, tuple[Sequence[int], Verdict]] = {
    "HTTP 400, 422": ((400, 422), Verdict(OutcomeKind.REJECTED_CONFIGURATION, Subject.ROUTE, _STATUSES)),
    "HTTP 429": ((429,), Verdict(OutcomeKind.NOT_SENT, Subject.ACCOUNT, _STATUSES)),
    # 407, 408 and 413 are of a proxy on the way.
    "any other HTTP 3xx or 4xx": (
        range(300, 500),
        Verdict(OutcomeKind.REJECTED_CONFIGURATION, Subject.ACCOUNT, _STATUSES),
    ),
    # The provider failed while it processed the request, or its success cannot be parsed.
    "any other HTTP status": (range(1000), Verdict(OutcomeKind.UNKNOWN, Subject.PROVIDER, _STATUSES)),
}
"""By the name and the statuses of a class, for a response without an error code that is listed: the first that fits."""


class HttpClient:
    """POSTs to one provider. Opens its connections with the first call. Returns redirects without following them."""

    def __init__(
        self,
        base_url: str,
        *,
        timeout_seconds: float,
        credentials: Mapping[str, str] | None = None,
        connections: int = 100,
    ) -> None:
        """`credentials` are headers of every request; `connections` is the most that are open at once."""
        self._base_url = base_url.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=timeout_seconds)
        self._headers = dict(credentials or {})
        self._connections = connections
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, path: str, *, form: Mapping[str, str] | None = None, document: Json | None = None
    ) -> Reply | NoReply:
        """Send a form or a JSON document. A failure of the network is a NoReply; nothing is raised for it."""
        attempt = SimpleNamespace(connected=False)
        request = self._open_session().post(
            self._base_url + path, data=form, json=document, allow_redirects=False, trace_request_ctx=attempt
        )
        try:
            async with request as response:
                body = _parse(await _read(response))
                return Reply(response.status, body, _retry_after(response.headers.get("Retry-After", "")))
        except (aiohttp.ClientError, OSError) as error:
            # Including TimeoutError and TLS errors, which are OSErrors.
            return _no_reply(error, connected=attempt.connected)
        except asyncio.CancelledError:
            if not attempt.connected:
                raise
            return NoReply(OutcomeKind.UNKNOWN, "shutdown")

    async def close(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        """The session, created inside the running event loop, to which it is bound."""
        if self._session is None:
            trace = aiohttp.TraceConfig()
            trace.on_connection_create_end.append(_note_connected)
            trace.on_connection_reuseconn.append(_note_connected)
            self._session = aiohttp.ClientSession(
                # Idle connections are closed before providers close them: a request lost that way would be UNKNOWN.
                connector=aiohttp.TCPConnector(limit=self._connections, keepalive_timeout=_KEEP_ALIVE_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=self._headers,
                timeout=self._timeout,
                trace_configs=[trace],
            )
        return self._session


def verdict_of_status(status: int) -> Verdict:
    """The verdict of a response by its HTTP status alone."""
    return next(verdict for statuses, verdict in STATUS_VERDICTS.values() if status in statuses)


def message_id(value: object) -> str:
    """The provider's message id, if `value` is printable ASCII of at most 200 characters; empty otherwise."""
    return (
        value
        if isinstance(value, str) and value.isascii() and value.isprintable() and len(value) <= _MESSAGE_ID_LIMIT
        else ""
    )


async def _note_connected(_session: object, context: SimpleNamespace, _params: object) -> None:
    context.trace_request_ctx.connected = True


def _no_reply(error: Exception, *, connected: bool) -> NoReply:
    if isinstance(error, aiohttp.ClientSSLError):
        return NoReply(OutcomeKind.REJECTED_CONFIGURATION, "tls_refused")
    if not connected:
        return NoReply(OutcomeKind.NOT_SENT, "unreachable")
    return NoReply(OutcomeKind.UNKNOWN, "timeout" if isinstance(error, TimeoutError) else "connection_lost")


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The body; empty if it is longer than the limit, as no provider's response is."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > _BODY_LIMIT_BYTES:
            return b""
    return bytes(body)


def _parse(body: bytes) -> Json | None:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _retry_after(header: str) -> float | None:
    """The seconds of a Retry-After header, at most an hour; None for a date, which these providers do not send."""
    return min(float(header), _RETRY_AFTER_LIMIT_SECONDS) if header.isdecimal() else None
