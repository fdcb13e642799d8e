"""Alerts, dashboard, runbook and the list of metrics name the same metrics and alerts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from trainwire.schemas.prometheus_metrics import GATEWAY_METRICS, WORKERS_METRICS

METRICS = (*WORKERS_METRICS, *GATEWAY_METRICS)
ROOT = Path(__file__).parents[2]
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((ROOT / "deploy/prometheus/alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((ROOT / "deploy/grafana/trainwire.json").read_text())
RUNBOOK = '{{ or $externalLabels.trainwire_runbook "docs/runbook.md" }}'
"""Prometheus inserts the external label, or without one the path in the repository."""
HISTOGRAM_PARTS = ("_bucket", "_count", "_sum")
SERIES = {metric.name for metric in METRICS if metric.kind != "histogram"} | {
    metric.name + part for metric in METRICS if metric.kind == "histogram" for part in HISTOGRAM_PARTS
}
LABELS = {label for metric in METRICS for label in metric.labels} | {"le"}


def expressions() -> list[str]:
    """Return every query of the alerts and the dashboard."""
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    variables = [one["query"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query"]
    return [rule["expr"] for rule in RULES] + panels + variables


def test_every_metric_that_is_asked_for_exists() -> None:
    """Alerts and panels use only metrics of the list."""
    named = {name for expression in expressions() for name in re.findall(r"\btrainwire_\w+", expression)}
    assert named <= SERIES


def test_every_label_that_is_asked_for_exists() -> None:
    """Alerts and panels group by labels that a metric has."""
    groups = [name for each in expressions() for name in re.findall(r"(?:by|on) ?\(([^)]*)\)", each)]
    shown = re.findall(r"{{ ?\$?(?:labels\.)?(\w+) ?}}", json.dumps(DASHBOARD) + json.dumps(RULES))
    asked = {name.strip() for group in groups for name in group.split(",") if name.strip()} | set(shown)
    assert asked - {"value"} <= LABELS


def test_every_metric_is_on_the_dashboard() -> None:
    """Every metric of the list is in a query of a dashboard panel."""
    seen = " ".join(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"])
    assert not [metric.name for metric in METRICS if metric.name not in seen]


def test_every_alert_leads_to_its_heading() -> None:
    """The runbook has a heading for each alert and for no other, and each alert links to its own."""
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs/runbook.md").read_text(), flags=re.MULTILINE)
    assert sorted(headings) == sorted(rule["alert"] for rule in RULES)
    for rule in RULES:
        assert rule["annotations"]["runbook_url"] == f"{RUNBOOK}#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"]["summary"]


def test_the_document_has_every_metric() -> None:
    """docs/metrics.md lists each metric with its labels and its help text."""
    rows = re.findall(
        r"^\| `(\w+)(?:\{([\w, ]+)\})?` \| (.+) \|$", (ROOT / "docs/metrics.md").read_text(), flags=re.MULTILINE
    )
    assert rows == [(metric.name, ", ".join(metric.labels), metric.help) for metric in METRICS]
