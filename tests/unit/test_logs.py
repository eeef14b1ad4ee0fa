"""The log: what a line contains, and what it never contains."""

import asyncio
import gc
import json
import logging
import re
from pathlib import Path

import psycopg
import pytest
import structlog

from server.logs import configure_logging, log_unhandled, safe_traceback


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_line_has_its_time_logger_level_and_event(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="info", style="json")
    structlog.get_logger("server.api").info("call", rpc="SendOtp", organization_id="acme@home.example")
    structlog.get_logger("server.api").debug("call", rpc="GetOtp")

    (line,) = lines(capsys)

    assert line.pop("timestamp")
    assert line == {
        "event": "call",
        "level": "info",
        "logger": "server.api",
        "organization_id": "acme@home.example",
        "rpc": "SendOtp",
    }


def test_libraries_log_from_warning_on(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="debug", style="json")
    logging.getLogger("another.package").info("chatter")
    logging.getLogger("another.package").warning("trouble with %s", "disks")

    assert [line["event"] for line in lines(capsys)] == ["trouble with disks"]


async def test_the_exception_of_a_task_that_is_not_awaited_is_logged_without_its_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    gc.collect()  # so that failed tasks of earlier tests are not logged here
    configure_logging(level="info", style="json")
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_unhandled)

    secret = "-".join("918273")

    async def fail() -> None:
        raise ValueError(secret) from KeyError(secret)

    failing = asyncio.create_task(fail())
    await asyncio.wait([failing])
    del failing
    gc.collect()
    loop.set_exception_handler(None)

    (line,) = lines(capsys)
    assert (line["event"], line["alert"]) == ("unhandled_error", True)
    assert "ValueError" in str(line["trace"])
    assert "KeyError" in str(line["trace"])
    assert secret not in str(line)


def test_the_text_of_a_libraries_exception_is_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="info", style="json")
    log = logging.getLogger("another.package")
    row = "Failing row contains (acme, 918273)."
    log.error("failed", exc_info=psycopg.errors.CheckViolation(row))
    try:
        raise psycopg.errors.CheckViolation(row) from ValueError(row)
    except psycopg.Error:
        log.exception("failed")
        structlog.get_logger("server.jobs").exception("failed")

    output = lines(capsys)
    assert [line["event"] for line in output] == ["failed"] * 3
    assert all("CheckViolation 23514" in str(line["trace"]) for line in output)
    assert "ValueError" in str(output[1]["trace"])
    assert "918273" not in str(output)


def test_no_log_call_of_the_server_passes_an_exception_or_its_text() -> None:
    server = Path(__file__).parents[2] / "server"
    careless = re.compile(r"exc_info=|log\.exception\(|log\.\w+\([^)]*\b(?:str|repr)\((?:error|result|exception)\)")
    found = [path for path in server.rglob("*.py") if careless.search(path.read_text())]

    assert found == []


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_text_that_others_choose_is_one_short_line(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="info", style="json" if style == "json" else "console")
    chosen = "acme\nlevel=error\x1b[2J\u2028" + "x" * 1_000_000
    structlog.get_logger("server.api").info("call", organization_id=chosen, subject=chosen, reason=chosen)
    logging.getLogger("another.package").warning("refused %s", chosen)

    output = capsys.readouterr().err

    assert len(output) < 10_000
    assert len(output.splitlines()) == 2
    assert "\x1b[2J" not in output


@pytest.mark.parametrize("style", ["json", "console"])
def test_every_field_is_bounded_whatever_its_type(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="info", style="json" if style == "json" else "console")
    long = "x" * 1_000_000
    log = structlog.get_logger("server.api")
    log.info(
        "call",
        list=[long, "jane@mail.example"] * 1000,
        map={long: long, "code": "918273"},
        bytes=long.encode(),
        number=10**10_000,
        error=ValueError(long),
        nested=[[long] * 1000],
    )
    log.info("call", **{f"field_{number}": long for number in range(1000)})

    output = capsys.readouterr().err

    assert len(output.splitlines()) == 2
    assert len(output) < 200_000
    assert "918273" not in output
    assert "jane" not in output


def test_numbers_texts_and_lists_of_them_are_logged_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="info", style="json")
    fields = {"count": 2**63, "seconds": 0.5, "alert": True, "status": None, "trace": ["ValueError", "a.py:1 in f"]}
    structlog.get_logger("server.api").info("call", **fields)

    (line,) = lines(capsys)

    assert {name: line[name] for name in fields} == fields


def test_a_trace_is_bounded_and_ends_when_an_error_is_its_own_cause() -> None:
    def deeply(depth: int) -> None:
        if depth:
            deeply(depth - 1)
        else:
            error = ArithmeticError()
            raise error from error

    with pytest.raises(ArithmeticError) as caught:
        deeply(500)

    trace = safe_traceback(caught.value)
    assert len(trace) <= 60
    assert trace[0] == "ArithmeticError"
    assert "raise error from error" in trace[25]


def test_a_librarys_message_names_errors_without_their_texts(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="info", style="json")
    log = logging.getLogger("another.package")
    row = psycopg.errors.UniqueViolation("Key (destination)=(918273) already exists.")
    log.warning("error ignored in %s: %s", "rollback", row)
    log.warning(row)
    log.warning("error ignored: %r", ValueError("918273"))
    log.warning("error connecting: %s", psycopg.OperationalError("connection refused"))

    assert [line["event"] for line in lines(capsys)] == [
        "error ignored in rollback: UniqueViolation 23505",
        "UniqueViolation 23505",
        "error ignored: 'ValueError'",
        "error connecting: connection refused",
    ]


def test_the_arguments_of_a_line_that_cannot_be_made_are_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="info", style="json")
    logging.getLogger("another.package").warning("%d messages", "jane@mail.example")

    assert "jane" not in capsys.readouterr().err


def test_an_organization_id_is_shown_only_in_its_own_form(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="info", style="json")
    for organization_id in ("acme@home.example", "jane@mail.example +6281234567890"):
        structlog.get_logger("server.api").info("call", organization_id=organization_id)

    assert [line["organization_id"] for line in lines(capsys)] == ["acme@home.example", "[hidden] [hidden]"]


@pytest.mark.parametrize("style", ["json", "console"])
def test_secrets_and_destinations_are_hidden(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(level="info", style="json" if style == "json" else "console")
    log = structlog.get_logger("server.otps")
    secrets = ["918273", "jane@mail.example", "+6281234567890", "eyJhbGciOi.eyJzdWI.c2ln", "sk_test_51Abc", "whsec_9z"]
    log.info("sent", code="918273", destination="jane@mail.example")
    for secret in secrets[1:]:
        log.info("careless", detail=f"text with {secret}.")
        logging.getLogger("another.package").error("refused %s", secret)
    failure = ValueError(f"cannot reach {secrets[1]}")
    logging.getLogger("another.package").error("failed", exc_info=failure)

    output = capsys.readouterr().err

    assert output.count("[hidden]") >= 2 * len(secrets)
    assert not [secret for secret in secrets if secret in output]
