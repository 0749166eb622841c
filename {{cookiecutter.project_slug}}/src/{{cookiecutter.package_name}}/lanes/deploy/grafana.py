"""Grafana's dashboard: a row for each lane, of what `metrics` tells and prometheus.py records.

https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

import json
from collections.abc import Mapping
from typing import Any

from .prometheus import CLOSE, OPEN, selector

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_RATE = "[$__rate_interval]"


def dashboard(slug: str, description: str) -> str:
    """The dashboard as JSON, with `description` in its first line."""
    whole = {
        "description": description,
        "uid": slug,  # 40 characters at most, as both may have
        "title": f"{slug}: lanes",
        "tags": ["celery", "lanes"],
        "timezone": "browser",
        "editable": True,
        "schemaVersion": 38,  # Grafana 10; later ones bring it up to theirs
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": _variables(slug)},
        "panels": _row(slug),
    }
    # Its first line has the mark, which tells whose file it is.
    return "{" + json.dumps(whole, indent=2).removeprefix("{\n ") + "\n"


def _variables(slug: str) -> list[dict[str, Any]]:
    lanes = f"label_values(lanes_waiting{selector(slug)}, lane)"
    return [
        {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus"},
        {
            "type": "query",
            "name": "lane",
            "label": "Lane",
            "datasource": _SOURCE,
            "query": {"query": lanes, "refId": "lane"},
            "refresh": 2,  # with each change of the time range
            "sort": 1,  # by name
            "multi": True,
            "includeAll": True,
            "current": {"text": ["All"], "value": ["$__all"]},
        },
    ]


def _row(slug: str) -> list[dict[str, Any]]:
    """A row and its panels, which Grafana repeats for each lane that is chosen."""
    here = selector(slug, 'lane=~"$lane"')
    late = "job_lane:lanes_late:ratio"
    target = f"max by (job, lane) (lanes_slo_target{here})"
    wait = f"sum by (le) (rate(lanes_queue_wait_seconds_bucket{here}{_RATE}))"
    run = f"sum by (le, task) (rate(lanes_run_seconds_bucket{here}{_RATE}))"
    outcomes = f"max by (task, outcome) (rate(lanes_tasks_total{here}{_RATE}))"
    panels = [
        _panel(
            "Objective",
            "percentunit",
            {
                "in time, 30 days": f"1 - {late}30d{here}",
                "target": target,
                "budget left": f"1 - {late}30d{here} / (1 - {target})",
            },
            kind="stat",
        ),
        _panel(
            "Starts in time",
            "percentunit",
            {
                "5 minutes": f"1 - {late}5m{here}",
                "1 hour": f"1 - {late}1h{here}",
                "target": target,
            },
        ),
        _panel(
            "Wait before the start",
            "s",
            {
                "p50": f"histogram_quantile(0.5, {wait})",
                "p95": f"histogram_quantile(0.95, {wait})",
                "p99": f"histogram_quantile(0.99, {wait})",
                "objective": f"max(lanes_latency_slo_seconds{here})",
            },
        ),
        _panel(
            "Messages",
            "short",
            {
                name: f"max(lanes_{name}{here})"
                for name in ("waiting", "running", "delayed", "dead")
            },
        ),
        _panel(
            "Tasks by outcome",
            "ops",
            {f"{OPEN}outcome{CLOSE}": f"sum by (outcome) ({outcomes})"},
        ),
        _panel(
            "Run time by task, p95",
            "s",
            {f"{OPEN}task{CLOSE}": f"histogram_quantile(0.95, {run})"},
        ),
        _panel(
            "Workers",
            "short",
            {name: f"max(lanes_{name}{here})" for name in ("workers", "wanted_workers")},
        ),
        _panel(
            "Keys",
            "short",
            {name: f"max(lanes_keys_{name}{here})" for name in ("waiting", "held")},
        ),
    ]
    # Below the row's title, in lines that add up to 24.
    places = [(0, 1, 4), (4, 1, 7), (11, 1, 7), (18, 1, 6)]
    places += [(0, 9, 6), (6, 9, 6), (12, 9, 6), (18, 9, 6)]
    for number, (panel, (x, y, width)) in enumerate(zip(panels, places, strict=True), start=2):
        panel |= {"id": number, "gridPos": {"x": x, "y": y, "w": width, "h": 8}}
    row = {"id": 1, "type": "row", "title": "$lane", "repeat": "lane", "panels": []}
    return [row | {"gridPos": {"x": 0, "y": 0, "w": 24, "h": 1}}, *panels]


def _panel(
    title: str, unit: str, queries: Mapping[str, str], *, kind: str = "timeseries"
) -> dict[str, Any]:
    """A panel of `queries`, each with its name in the legend."""
    targets = [
        {"refId": chr(ord("A") + place), "expr": query, "legendFormat": name, "range": True}
        for place, (name, query) in enumerate(queries.items())
    ]
    return {
        "type": kind,
        "title": title,
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": targets,
    }
