"""How the server logs: one structured line per event, to standard error."""

import logging
import re
import sys
import traceback
from asyncio import AbstractEventLoop
from typing import Any, Final, Literal

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

_log = structlog.get_logger(__name__)
_HIDDEN: Final = "[hidden]"
_SENSITIVE: Final = frozenset(
    {
        "api_key", "authorization", "code", "context", "database_url", "destination", "email", "otp", "password",
        "payload", "phone", "recipient", "secret", "signature", "sms", "text", "to", "token", "whatsapp",
    }
)  # fmt: skip
# What must never be in a log, wherever it came from: e-mail addresses, phone numbers, tokens and Stripe's secrets.
_GIVEAWAY: Final = re.compile(
    r"[^\s\"'<>=:,;]+@[\w-]+\.[\w.-]+|\+\d{7,15}|eyJ[\w-]+\.[\w-]+\.[\w-]*|\b[srp]k_(?:live|test)_\w+|\bwhsec_\w+"
)


def configure_logging(*, level: str, style: Literal["json", "console"]) -> None:
    """Send the server's logs to standard error, from this level on; its libraries' from WARNING on."""
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
            structlog.processors.format_exc_info,
            hide_giveaways,
            as_json if style == "json" else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.getLogger().handlers[:] = [handler]
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("server").setLevel(level.upper())


def tell_unforeseen(_loop: AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler: tells what nobody awaits without its text, which may hold a destination."""
    error = context.get("exception")
    _log.error("unforeseen", alert=True, trace=trace_of(error) if error else context["message"])


def trace_of(error: BaseException | None) -> list[str]:
    """What kind of error and where, and the same of its causes."""
    trace = []
    while error is not None:
        sqlstate = getattr(error, "sqlstate", None)
        trace.append(f"{type(error).__name__} {sqlstate}" if sqlstate else type(error).__name__)
        frames = traceback.extract_tb(error.__traceback__)
        trace += [f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}" for frame in frames]
        error = error.__cause__ or error.__context__
    return trace


def hide_giveaways(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A structlog processor, the last defence: nothing that is logged ought to need it."""
    return {key: _HIDDEN if key in _SENSITIVE else _without_giveaways(key, value) for key, value in event.items()}


def _without_giveaways(key: str, value: object) -> object:
    # An organization's id may look like an address, and is needed to read the log at all.
    if key == "organization_id" or not isinstance(value, str):
        return value
    return _GIVEAWAY.sub(_HIDDEN, value)


def _shared_processors() -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
