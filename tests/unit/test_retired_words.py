"""Words, module names and phrases that were replaced by the field's own do not come back."""

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
SEARCHED = ("server", "clients/python", "protos", "docs", "tests", "README.md", "CONTRIBUTING.md", "SECURITY.md")
SUFFIXES = {".py", ".sql", ".toml", ".proto", ".md", ".pyi"}

# The old word, and what is said instead.
RETIRED = {
    r"front[ _]door|side[ _]door|\bDoor\b|\bthe door\b": "interceptor, server or sidecar",
    r"night[ _]?watch": "periodic job",
    r"\berrands?\b": "delivery job",
    r"\bvaults?\b": "crypto",
    r"\bhallway\b|\blay_foundations\b|\bfoundations\b": "composition root, dependencies",
    r"\b(otp|credit)_?room\b|\bthe rooms?\b": "dependencies, service",
    r"\bcellar\b|\bplayground\b": "postgres, sandbox",
    r"\bforesee\w*\b|\bforeseen\b": "(gone with the batcher's callbacks)",
    r"\bhasten\b": "flush",
    r"\bhand_over\b|\bhanded over\b": "enqueue, dispatch",
    r"\bKnownAccounts\b": "AccountCache",
    r"\blent\b": "connection",
    r"\brepeat_transient\b": "retry_transient",
    r"\b(Send|Resend)Order\b|\bclass Orders\b": "SendRequest, ResendRequest, Sender",
    r"\bPaymentsError\b|\bTopUpChanges\b|\bChannelName\b": "StripeCallError, TopUpStore, Channel",
    r"\bGuardedHandlers?\b|\bJournal\b|\bthe journal\b": "LimitedHandler, AccessLog",
    r"\bgo_on\b|\bserver\.stops\b": "failpoints",
    r"\bEVERYBODY\b": "ALL_AREAS",
    r"\btell_unforeseen\b|\btrace_of\b|\bhide_giveaways\b": "log_unhandled, safe_traceback, redact",
    r"\buntil_told\w*\b|\bcalm_garbage\w*\b": "wait_for_stop_signal, tune_garbage_collector",
    r"\bwhoever\b|\bsomebody\b": "the caller, replica or operator that is meant",
    r"\ball the same\b": "still",
    r"\bserver\.(rpc|channels|payments|database|watch|commands|app)\b": "the packages of docs/architecture.md",
    r"\b(playing|played)_(server|desk)\b|\bthe desk\b|\bstorm\b": "what the test double is",
}
ALLOWED = {
    # Text that end users read.
    ("server/providers/messages/en.toml", "somebody"),
}


def files() -> list[Path]:
    found = []
    for name in SEARCHED:
        place = CHECKOUT / name
        found += [place] if place.is_file() else sorted(place.rglob("*"))
    return [path for path in found if path.suffix in SUFFIXES and path != Path(__file__) and "_pb2" not in path.name]


@pytest.mark.parametrize("pattern", RETIRED, ids=RETIRED.values())
def test_a_retired_word_is_not_used(pattern: str) -> None:
    word = re.compile(pattern, re.IGNORECASE)

    found = [
        f"{path.relative_to(CHECKOUT)}:{number}: {line.strip()[:100]}"
        for path in files()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if (match := word.search(line)) and (str(path.relative_to(CHECKOUT)), match[0].lower()) not in ALLOWED
    ]

    assert found == []


def test_no_module_has_a_retired_name() -> None:
    retired = {"door", "places", "journal", "errands", "targets", "known", "vault", "stops", "night_watch", "orders"}
    retired |= {"foundations", "hallway", "settlement", "pumping", "desk", "shop", "office", "post", "storm", "house"}
    retired |= {"ground", "books", "stage", "poller", "pause", "rows", "arrays"}

    assert [path for path in files() if path.suffix == ".py" and path.stem in retired] == []
