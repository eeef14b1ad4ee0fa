"""`reference`: generates the tables and the state diagram of the documentation from the code."""

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from server.api.permissions import PERMISSIONS
from server.cli.signals import log_events, metrics
from server.credits.top_ups.state_machine import TRANSITIONS
from server.environment import variables
from server.otps.magic_destinations import ENDINGS, Ending
from server.providers import http, smtp, twilio, vonage, whatsapp
from server.providers.provider import OutcomeKind, Verdict
from server.providers.routing import TRY_NEXT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        help="Markdown files with sections such as <!-- settings --> … <!-- /settings -->",
    )


def reference(arguments: argparse.Namespace) -> None:
    """Rewrite the sections of each file that changed."""
    files: Sequence[Path] = arguments.files
    for file in files:
        text = file.read_text()
        if (current := with_current_tables(text)) != text:
            file.write_text(current)


def with_current_tables(text: str) -> str:
    """Return the text with its sections, such as `settings`, generated from the code.

    Of the table of log events the last two columns, meaning and what to do, are kept as they are written there.
    """
    contents = {
        "metrics": _table(_metrics()),
        "log-events": _table(_log_events(text)),
        "settings": _table(_settings()),
        "permissions": _table(_permissions()),
        "top-up-states": _state_diagram(),
        "provider-codes": _table(_provider_codes()),
        "test-destinations": _table(_test_destinations()),
    }
    for name, content in contents.items():
        before, begin, rest = text.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition(f"<!-- /{name} -->")
        if begin and end:
            text = before + begin + content + end + after
    return text


def _table(rows: Iterator[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _state_diagram() -> str:
    lines = [f"    {state} --> {to}" for state, next_states in TRANSITIONS.items() for to in sorted(next_states)]
    ends = [f"    {state} --> [*]" for state, next_states in TRANSITIONS.items() if not next_states]
    return "\n".join(["```mermaid", "stateDiagram-v2", "    [*] --> CREATING", *lines, *ends, "```", ""])


def _settings() -> Iterator[Sequence[str]]:
    yield "Setting", "Type", "Default", "Meaning"
    yield "---", "---", "---", "---"
    for variable in variables():
        default = f"`{variable.default}`" if variable.default else ""
        yield f"`{variable.name}`", variable.type, default, variable.description


def _permissions() -> Iterator[Sequence[str]]:
    yield "Service", "Rpc", "Permission"
    yield "---", "---", "---"
    for service, rpcs in PERMISSIONS.items():
        for rpc, permission in rpcs.items():
            yield service.rpartition(".")[2], rpc, f"`{permission}`"


def _metrics() -> Iterator[Sequence[str]]:
    yield "Metric", "Type", "Meaning"
    yield ("---",) * 3
    for metric in metrics():
        labels = f"{{{','.join(metric.labels)}}}" if metric.labels else ""
        yield f"`{metric.name}{labels}`", metric.type, metric.meaning


def _log_events(text: str) -> Iterator[Sequence[str]]:
    yield "Event", "Level", "Fields", "Meaning", "What to do"
    yield ("---",) * 5
    written = dict(_ROW.findall(text))
    order = list(written)
    for event in sorted(log_events(), key=lambda each: order.index(each.name) if each.name in written else len(order)):
        fields = ", ".join(f"`{name}`" for name in sorted(event.fields))
        explained = written.get(event.name, "")
        meaning, _, action = explained.partition(" | ")
        yield f"`{event.name}`", " or ".join(sorted(event.levels)), fields, meaning, action


_ROW = re.compile(r"^\| `([^`]+)` \| (?:error|warning|error or warning) \| [^|]* \| (.+) \|$", re.MULTILINE)
"""A row of the table of log events: the event, and its meaning and action."""


def _test_destinations() -> Iterator[Sequence[str]]:
    yield "E-mail", "WhatsApp and SMS", "What becomes of it"
    yield ("---",) * 3
    for ending in Ending:
        email, phone = (name for name, its_ending in ENDINGS.items() if its_ending is ending)
        yield f"`{email}`", f"`{phone}`", _ENDINGS[ending]


_ENDINGS = {
    Ending.DELIVERED: "DELIVERED; so is every destination that is not listed",
    Ending.BOUNCED: "FAILED with the reason `test_bounced`; its fallback is sent",
    Ending.TIMED_OUT: "UNKNOWN with the reason `test_timeout`",
    Ending.FRAUD: "SendOtp is refused with DESTINATION_BLOCKED",
}
_MONEY = {
    OutcomeKind.REJECTED_DESTINATION: "refunded",
    OutcomeKind.REJECTED_CONFIGURATION: "refunded, unless the next provider sends",
    OutcomeKind.NOT_SENT: "refunded, unless a later attempt sends",
    OutcomeKind.UNKNOWN: "stays charged, until a report says that it failed",
}
_LAST_STEPS = {
    OutcomeKind.REJECTED_DESTINATION: "a fallback",
    OutcomeKind.REJECTED_CONFIGURATION: "a fallback",
    OutcomeKind.NOT_SENT: "again, then a fallback",
    OutcomeKind.UNKNOWN: "wait for a report",
}


def provider_verdicts() -> Iterator[tuple[str, str, Verdict]]:
    """Each documented verdict, with its provider and its code or reply."""
    for name, codes in (("twilio", twilio.VERDICTS), ("vonage", vonage.VERDICTS), ("whatsapp", whatsapp.VERDICTS)):
        for code, verdict in codes.items():
            yield name, code, verdict
    yield "twilio", "any other code, in an HTTP 201", twilio.CREATED_AS_FAILED
    yield "vonage", "any other status", vonage.OTHER
    for code, (_, verdict) in http.STATUS_VERDICTS.items():
        yield "twilio, vonage, whatsapp", code, verdict
    for rule in smtp.RULES:
        steps = ", ".join(step.name for step in smtp.Step if step in rule.steps)
        yield "smtp", f"`{rule.pattern.pattern or 'any other reply'}` at {steps}".replace("|", "\\|"), rule.verdict


def _provider_codes() -> Iterator[Sequence[str]]:
    yield "Provider", "Code", "It is about", "Money", "Next step", "Source"
    yield ("---",) * 6
    rows: dict[tuple[str, Verdict, str], list[str]] = {}
    for provider, code, verdict in provider_verdicts():
        # The order of SMTP's rules matters, so each has a row.
        rows.setdefault((provider, verdict, code if provider == "smtp" else ""), []).append(code)
    for (provider, verdict, _), codes in rows.items():
        next_step = "the next provider, then " if verdict.kind in TRY_NEXT else ""
        yield (
            provider,
            ", ".join(codes).replace(", ".join(map(str, range(200, 300))), "200 to 299"),
            verdict.about.value,
            _MONEY[verdict.kind],
            next_step + _LAST_STEPS[verdict.kind],
            f"<{verdict.source}>",
        )
