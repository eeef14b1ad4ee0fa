"""Configures the log: one structured line per event, on standard error, without personal data and secrets."""

import logging
import re
import sys
import traceback
from asyncio import AbstractEventLoop
from itertools import islice
from typing import Any, Final, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from server.ids import ORGANIZATION_ID

_log = structlog.get_logger(__name__)
_HIDDEN: Final = "[hidden]"
_SENSITIVE: Final = frozenset(
    {
        "api_key", "authorization", "code", "context", "database_url", "destination", "email", "otp", "password",
        "payload", "phone", "recipient", "secret", "signature", "sms", "text", "to", "token", "whatsapp",
    }
)  # fmt: skip
"""Keys of an event whose values are never logged."""
_ORGANIZATION_ID: Final = re.compile(ORGANIZATION_ID)
_CONTROL_CHARACTER: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_LONGEST_TEXT: Final = 2000
_LONGEST_ITEM: Final = 500
_LONGEST_SECRET: Final = 1000
_MOST_ITEMS: Final = 60
"""Of a list, such as a trace, and of an event's fields."""
_MOST_FRAMES: Final = 25
"""Of one error of a trace: the innermost ones."""
_WIDEST_NUMBER_BITS: Final = 64
# E-mail addresses, phone numbers, tokens and Stripe's secrets: never logged, whichever key they appear under.
_SENSITIVE_TEXT: Final = re.compile(
    r"[^\s\"'<>=:,;]+@[\w-]+\.[\w.-]+|\+\d{7,15}|eyJ[\w-]+\.[\w-]+\.[\w-]*|\b[srp]k_(?:live|test)_\w+|\bwhsec_\w+"
)


def configure_logging(*, level: str, style: Literal["json", "console"]) -> None:
    """Write the server's log lines of at least this level to standard error, and those of libraries from WARNING on."""
    structlog.configure(
        processors=[*_shared_processors(), structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.stdlib.LoggerFactory(),
    )
    as_json: Processor = structlog.processors.JSONRenderer()
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=_shared_processors(),
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            trace_without_text,
            redact,
            as_json if style == "json" else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(without_error_texts)
    handler.addFilter(_tells_something)
    logging.raiseExceptions = False  # would print the arguments of a line that cannot be made
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("server").setLevel(level.upper())


def log_unhandled(_loop: AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an exception that no task handled; an exception handler of an event loop.

    Without the exception's text, which may contain a destination.
    """
    error = context.get("exception")
    _log.error("unhandled_error", alert=True, trace=safe_traceback(error) if error else context["message"])


def safe_traceback(error: BaseException | None) -> list[str]:
    """Return the types and source lines of an error and its causes, at most 60, without their texts."""
    trace: list[str] = []
    while error is not None and len(trace) < _MOST_ITEMS:  # an error may be its own cause
        trace.append(_error_name(error))
        frames = traceback.extract_tb(error.__traceback__, limit=-_MOST_FRAMES)
        trace += [f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames]
        error = error.__cause__ or error.__context__
    return trace[:_MOST_ITEMS]


def _error_name(error: BaseException) -> str:
    sqlstate = getattr(error, "sqlstate", None)
    return f"{type(error).__name__} {sqlstate}" if sqlstate else type(error).__name__


def printable(text: str, longest: int = 64) -> str:
    """Return at most `longest` characters of a text that others choose, with U+FFFD for each control character."""
    return _CONTROL_CHARACTER.sub("\ufffd", text[:longest])


def trace_without_text(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Replace the exception of an event by its safe_traceback; a structlog processor.

    The text of a database error quotes rows. The server's own log calls pass `trace`; libraries pass exceptions.
    """
    found = event.pop("exc_info", None)
    if isinstance(found, tuple):
        found = found[1]
    elif found is True:
        found = sys.exception()
    if isinstance(found, BaseException):
        event["trace"] = safe_traceback(found)
    return event


def without_error_texts(record: logging.LogRecord) -> bool:
    """Replace exceptions among the parts of a library's message by their types; a filter that keeps every record.

    psycopg logs errors that it ignores, and the server's text of an error quotes rows. An error of psycopg without
    SQLSTATE stays: it is about a connection, and says why there is none.
    """
    record.msg = _without_error_text(record.msg)
    if isinstance(record.args, tuple):
        record.args = tuple(map(_without_error_text, record.args))
    return True


def _tells_something(record: logging.LogRecord) -> bool:
    """Leave out that psycopg's pool replaces a closed connection: a cancelled caller closes its own, as at every stop.

    The loss of the database is logged by server.postgres.pool.
    """
    return not (record.name == "psycopg.pool" and str(record.msg).startswith("discarding closed connection"))


def _without_error_text(part: object) -> Any:
    if isinstance(part, BaseException) and getattr(part, "sqlstate", "") is not None:
        return _error_name(part)
    return part


def redact(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Hide sensitive keys and texts, and bound every field; a structlog processor.

    A text becomes printable and at most 2000 characters long, an item of a list 500. A list and the event have at most
    60 items. Of anything else than texts, numbers of 64 bits and lists of them only the type is logged.

    A second line of defence: no log call should pass such values.
    """
    return {key: _bounded_field(key, value) for key, value in islice(event.items(), _MOST_ITEMS)}


def _bounded_field(key: str, value: object) -> object:
    if key in _SENSITIVE:
        return _HIDDEN
    # An organization's id may look like an e-mail address, and readers of the log need it.
    if key == "organization_id" and isinstance(value, str) and _ORGANIZATION_ID.fullmatch(value):
        return value
    if isinstance(value, list | tuple):
        return [_bounded(item, _LONGEST_ITEM) for item in value[:_MOST_ITEMS]]
    return _bounded(value, _LONGEST_TEXT)


def _bounded(value: object, longest: int) -> object:
    if isinstance(value, str):
        # Cut before the search, which takes minutes for a megabyte, and after it, so that no part of a secret is left.
        return printable(_SENSITIVE_TEXT.sub(_HIDDEN, value[: longest + _LONGEST_SECRET]), longest)
    is_short_number = isinstance(value, int) and value.bit_length() <= _WIDEST_NUMBER_BITS
    return value if value is None or is_short_number or isinstance(value, float) else type(value).__name__


def _shared_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
