"""docs/monitoring/ and docs/runbooks.md: expressions name metrics and labels of the code, each alert has its page."""

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from server.cli.signals import log_events, metrics
from server.jobs import PeriodicJob, RetentionPeriods, periodic_jobs

DOCS = Path(__file__).parents[2] / "docs"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((DOCS / "monitoring/alerts.yaml").read_text())["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
SELECTOR = re.compile(r"\b(?P<name>pulsa_\w+)(?:\{(?P<labels>[^}]*)\})?")
RECORDED = re.compile(r"\bpulsa:[\w:]+")
TARGET_LABELS = {"instance", "job"}
"""Those that Prometheus adds to every series. A metric's own `job` is called exported_job then."""
LABELS_OF = {
    series: {"exported_job" if label == "job" else label for label in metric.labels} | TARGET_LABELS
    for metric in metrics()
    for series in metric.series
}


def panels() -> Iterator[dict[str, Any]]:
    for panel in json.loads((DOCS / "monitoring/dashboard.json").read_text())["panels"]:
        yield from (panel, *panel.get("panels", ()))


def expressions() -> dict[str, str]:
    rules = {rule.get("alert") or rule["record"]: rule["expr"] for rule in RULES}
    return rules | {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in panels()
        for target in panel.get("targets", ())
    }


@pytest.mark.parametrize("expression", expressions().values(), ids=expressions())
def test_an_expression_names_metrics_and_labels_that_exist(expression: str) -> None:
    for found in SELECTOR.finditer(expression):
        assert found["name"] in LABELS_OF, found[0]
        labels = set(re.findall(r"(\w+)\s*[=!]", re.sub(r'"[^"]*"', "", found["labels"] or "")))
        assert labels - {"le"} <= LABELS_OF[found["name"]], found[0]
    recorded = {rule["record"] for rule in RULES if "record" in rule}
    assert set(RECORDED.findall(expression)) <= recorded


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {
        found["name"]
        for panel in panels()
        for target in panel.get("targets", ())
        for found in SELECTOR.finditer(target["expr"])
    }

    assert [metric.name for metric in metrics() if not shown & set(metric.series)] == []


def every_job() -> list[PeriodicJob]:
    nothing: Any = SimpleNamespace(refresh=None)  # the jobs are not run
    needed = inspect.signature(periodic_jobs).parameters
    periods = RetentionPeriods(*[timedelta()] * len(fields(RetentionPeriods)))
    return periodic_jobs(**(dict.fromkeys(needed, nothing) | {"periods": periods, "settings_seconds": 5.0}))


def test_the_jobs_that_one_replica_at_a_time_runs_have_the_alert_of_maintenance() -> None:
    late, maintenance = (
        next(rule["expr"] for rule in ALERTS if rule["alert"] == name)
        for name in ("PulsaJobLate", "PulsaMaintenanceLate")
    )
    (left_out,) = re.findall(r'exported_job!~"([^"]+)"', late)
    watched = "|".join(re.findall(r'exported_job=~?"([^"]+)"', maintenance))

    for job in every_job():
        assert bool(re.fullmatch(left_out, job.name)) is job.is_maintenance, job.name
        assert bool(re.fullmatch(watched, job.name)) is job.is_maintenance, job.name


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_leads_to_its_page(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    _, _, page = (DOCS / "runbooks.md").read_text().partition(f"\n## {name}\n")
    page, _, _ = page.partition("\n## ")

    assert alert["annotations"]["runbook"] == f"docs/runbooks.md#{name.lower()}"
    assert alert["labels"]["severity"] in {"page", "ticket"}
    assert [part for part in ("**Means**", "**Look**", "**Cure**", "**Ends**") if part not in page] == []


def test_there_is_no_page_without_its_alert() -> None:
    pages = re.findall(r"^## (Pulsa\w+)$", (DOCS / "runbooks.md").read_text(), re.MULTILINE)

    assert pages == [alert["alert"] for alert in ALERTS]


def test_an_alert_is_played_by_a_test() -> None:
    played = (DOCS.parent / "tests/monitoring/alerts.py").read_text()

    assert [alert["alert"] for alert in ALERTS if f'"{alert["alert"]}"' not in played] == []


def test_every_log_event_says_what_it_means_and_what_to_do() -> None:
    rows = re.findall(
        r"^\| `([^`]+)` \| (?:error|warning|error or warning) \| [^|]*\| ([^|]+) \| ([^|]+) \|$",
        (DOCS / "operations.md").read_text(),
        re.MULTILINE,
    )

    assert len(rows) > 40
    assert {event for event, meaning, action in rows if meaning.strip() and action.strip()} == {
        event.name for event in log_events()
    }
