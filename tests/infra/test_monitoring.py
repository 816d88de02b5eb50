"""Alerts and the dashboard against the table of metrics: queries parse, and names, labels and values in them exist."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from specbatch.jobs.running.metrics_table import JOB_LABEL, MEMORY_KINDS, METRICS, WORKER_STATES

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "monitoring"
LABELS = {metric.exported_name: set(metric.all_labels) for metric in METRICS}
VALUES = {"state": WORKER_STATES, "kind": MEMORY_KINDS, "outcome": ("ok", "error")}
NOT_USED: frozenset[str] = frozenset()
"""Metrics that neither an alert nor a panel shows, on purpose."""


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((FOLDER / "dashboard.json").read_text())
    return loaded


def queries() -> Iterator[tuple[str, str]]:
    """(where, expression); Grafana's own variables stand for what Prometheus will see."""
    for rule in rules():
        yield rule["alert"], rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m").replace("$job", ".*")


def selectors(expression: Any) -> Iterator[Any]:
    """Every selector of metrics in a parsed expression."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression
    for name in ("vector_selector", "vs", "expr", "lhs", "rhs", "param"):
        inner = getattr(expression, name, None)
        if inner is not None and not isinstance(inner, str):
            yield from selectors(inner)
    for inner in getattr(expression, "args", None) or ():
        yield from selectors(inner)


def groupings(expression: Any) -> Iterator[tuple[set[str], set[str]]]:
    """(labels that are grouped by, metrics below) of every aggregation and matching of two sides."""
    modifier = getattr(expression, "modifier", None)
    for labels in (getattr(modifier, "labels", None), getattr(getattr(modifier, "matching", None), "labels", None)):
        if labels:
            yield set(labels), {selector.name for selector in selectors(expression)}
    for name in ("expr", "lhs", "rhs"):
        inner = getattr(expression, name, None)
        if inner is not None and not isinstance(inner, str):
            yield from groupings(inner)
    for inner in getattr(expression, "args", None) or ():
        yield from groupings(inner)


def problems(text: str) -> list[str]:
    """What is wrong with a query, as far as the table can tell."""
    try:
        parsed = promql_parser.parse(text)
    except ValueError as error:
        return [f"does not parse: {error}"]
    found, names = [], []
    for selector in selectors(parsed):
        names.append(selector.name)
        if selector.name not in LABELS:
            found.append(f"there is no metric {selector.name}")
            continue
        for matcher in selector.matchers.matchers:
            if matcher.name not in LABELS[selector.name]:
                found.append(f"{selector.name} has no label {matcher.name}")
            elif matcher.name in VALUES and matcher.value not in VALUES[matcher.name]:
                found.append(f"{matcher.name} is never {matcher.value}")
    for labels, metrics in groupings(parsed):
        for name in metrics & set(LABELS):
            found += [f"{name} has no label {label}" for label in labels - LABELS[name]]
    # The parser must have shown all of them.
    found += [f"overlooked {name}" for name in set(re.findall(r"ray_\w+", text)) - set(names)]
    return found


@pytest.mark.parametrize(("where", "query"), list(queries()))
def test_queries_ask_for_what_there_is(where: str, query: str) -> None:
    assert problems(query) == []


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("sum by (job) (ray_specbatch_rows)", "there is no metric"),
        ('ray_specbatch_workers{status="ready"}', "has no label status"),
        ('ray_specbatch_workers{state="idle"}', "is never idle"),
        ("sum by (code) (rate(ray_specbatch_parts_total[5m]))", "has no label code"),
        ("ray_specbatch_k / on (kind) ray_specbatch_parts_total", "has no label kind"),
        ("sum by (job) (rate(ray_specbatch_parts_total[5m])", "does not parse"),
    ],
)
def test_the_check_sees_what_is_wrong(query: str, problem: str) -> None:
    assert any(problem in found for found in problems(query))


def test_every_metric_is_shown_or_left_out_on_purpose() -> None:
    text = " ".join(query for _, query in queries())
    used = {name for name in LABELS if re.search(rf"\b{name}\b", text)}
    assert set(LABELS) - used == NOT_USED
    shown = " ".join(target["expr"] for panel in dashboard()["panels"] for target in panel["targets"])
    assert all(name in shown for name in LABELS), "the dashboard has them all"


def test_counters_are_looked_at_by_their_rise() -> None:
    """A counter begins anew with each run, so only a sum over all runs may be compared with a number by itself."""
    for rule in rules():
        for name in re.findall(r"ray_\w+_total\b", rule["expr"]):
            assert re.search(rf"(?:rate|increase)\({name}(?:{{[^}}]*}})?\[", rule["expr"]), rule["alert"]


def test_a_job_that_never_finished_a_part_is_seen() -> None:
    """A counter that never rose is not there, and nothing is equal to 0 where there is nothing."""
    (rule,) = [rule for rule in rules() if rule["alert"] == "SpecbatchStandsStill"]
    assert " unless " in rule["expr"]


def test_every_alert_has_a_runbook_that_exists_and_says_whom_it_concerns() -> None:
    headings = (ROOT / "docs" / "observability.md").read_text()
    anchors = {line[3:].lower().replace(" ", "-") for line in headings.splitlines() if line.startswith("## ")}
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert page == "docs/observability.md"
        assert anchor in anchors
        assert rule["labels"]["severity"] in ("page", "warn", "info")
        assert f"$labels.{JOB_LABEL}" in rule["annotations"]["summary"]


def test_the_dashboard_can_be_loaded() -> None:
    board = dashboard()
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = {(x, y) for panel in panels for x, y in [(panel["gridPos"]["x"], panel["gridPos"]["y"])]}
    assert len(places) == len(panels), "two panels in one place"
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)
    assert all(panel["description"] for panel in panels)
    assert all(target["datasource"]["uid"] == "${datasource}" for panel in panels for target in panel["targets"])
