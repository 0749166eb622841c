"""A project watched by a real Prometheus and a real Alertmanager, set up as docs/alerts.md says.

An hour is a minute here: the windows of the rules, and how long something must last, are divided by
60, and all is scraped and evaluated each second. Nothing else of the rules is changed.
"""

import json
import re
import shutil
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import PATIENCE, Process, broker, fleet, free_port

#: As Debian calls them.
PROGRAMS = ("prometheus", "promtool", "prometheus-alertmanager", "amtool")

#: A flood misses slow's objective within seconds; quick's leaves room for a busy machine.
LANES = """
default_lane = "quick"

[lanes.slow]
latency_slo = "1s"
[lanes.quick]
latency_slo = "5s"
"""

#: Sends five tasks a second to each lane; of slow's, each takes 50 ms, for which it has two slots.
TRICKLE = """
import time
from acme_tasks.tasks import quick_task, slow_task
while True:
    quick_task.delay(1)
    slow_task.delay(0.05)
    time.sleep(0.2)
"""
FLOOD = """
import sys
from acme_tasks.tasks import slow_task
slow_task.send_many((0.05,) for _ in range(int(sys.argv[1])))
"""
#: What a lane counts for ten minutes before it says how many workers it wants is there at once, as
#: its workers would have left it.
HISTORY = """
from acme_tasks.celery import app
from acme_tasks.lanes.counting import Load, Tally
from acme_tasks.lanes.redis.counters import Counters
from acme_tasks.lanes.status import store_of

for lane in app.lanes:
    store, tally = store_of(app.server.client, lane), Tally(lane.latency_slo)
    for _ in range(100):
        tally.started("acme_tasks.tasks.before", 0.01, again=False)
        tally.ran("acme_tasks.tasks.before", 0.05)
        tally.ended("acme_tasks.tasks.before", "succeeded")
    then = store.now() - 12 * 60
    load = Load(node="before@before", slots=2, running=0, clock=0.0)
    Counters(store).add(tally.take(), now=then, owner="before@before#1", batch=1, load=load)
    for key in store.redis.scan_iter(f"lanes:{lane.name}:counts:*:*"):
        store.redis.hset(key, "backlog", f"0@{then:.0f}")
"""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}  # seconds


def missing() -> list[str]:
    """Which of `PROGRAMS` are not here."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


def block(page: str, beginning: str) -> str:
    """The page's one block of YAML that begins so."""
    blocks = re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (found,) = [text for text in blocks if text.startswith(beginning)]
    return str(found)


def hurried(rules: str) -> str:
    """The rules with their windows, their patience and their intervals a sixtieth as long."""

    def shorter(match: re.Match[str]) -> str:
        return f"{match[1]}{int(match[2]) * _UNITS[match[3]] * 1000 // 60}ms"

    return re.sub(r"(\[|offset |for: |interval: )(\d+)([smhd])\b", shorter, rules)


@dataclass(frozen=True, slots=True)
class Query:
    """One line of a panel."""

    panel: str
    kind: str  # "timeseries" or "stat"
    unit: str
    legend: str
    expression: str


def queries(dashboard: dict[str, Any], lane: str) -> list[Query]:
    """Every query of the dashboard for one lane, as Grafana fills it in at this pace."""
    return [
        Query(
            panel["title"],
            panel["type"],
            panel["fieldConfig"]["defaults"]["unit"],
            target["legendFormat"],
            target["expr"].replace("$lane", lane).replace("$__rate_interval", "10s"),
        )
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]


@dataclass(frozen=True, slots=True)
class Watch:
    """Workers of both lanes that get tasks, the exporter, Prometheus and Alertmanager."""

    start: Callable[..., Process]
    workers: dict[str, Process]
    project: Path
    prometheus: int  # port
    alertmanager: int  # port

    @property
    def dashboard(self) -> dict[str, Any]:
        """The project's, as it is on disk."""
        document: dict[str, Any] = json.loads(
            (self.project / "deploy/grafana/acme-tasks.json").read_text()
        )
        return document

    def flood(self, count: int) -> None:
        """Send slow so many tasks at once; it does forty a second."""
        self.start("flood", sys.executable, "-c", FLOOD, count)

    def query(self, expression: str) -> list[dict[str, Any]]:
        """What Prometheus knows now: series with their `metric` and `value`."""
        return self._prometheus("query", query=expression)

    def query_range(self, expression: str, begin: float, end: float) -> list[dict[str, Any]]:
        """What it knew each second: series with their `metric` and `values`."""
        return self._prometheus(
            "query_range", query=expression, start=f"{begin}", end=f"{end}", step="1"
        )

    def fired(self) -> set[tuple[str, str]]:
        """Each alert that ever fired, with its lane."""
        found = self.query('last_over_time(ALERTS{alertstate="firing"}[1h])')
        return {(each["metric"]["alertname"], each["metric"].get("lane", "")) for each in found}

    def received(self) -> dict[tuple[str, str], dict[str, Any]]:
        """What Alertmanager has, by alert and lane."""
        alerts = _get(f"http://127.0.0.1:{self.alertmanager}/api/v2/alerts")
        return {
            (each["labels"]["alertname"], each["labels"].get("lane", "")): each for each in alerts
        }

    def _prometheus(self, what: str, **parameters: str) -> list[dict[str, Any]]:
        words = urllib.parse.urlencode(parameters)
        told = _get(f"http://127.0.0.1:{self.prometheus}/api/v1/{what}?{words}")
        result: list[dict[str, Any]] = told["data"]["result"]
        return result


def _get(url: str) -> Any:  # noqa: ANN401 - what JSON holds
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:  # noqa: S310 - our own
        return json.load(answer)


@contextmanager
def watched(baked: Path, folder: Path, env: dict[str, str]) -> Iterator[Watch]:
    """The project `baked`, in a copy below `folder`, with `LANES`, while the block runs."""
    project = shutil.copytree(baked, folder / "acme-tasks")
    (project / "src/acme_tasks/lanes.toml").write_text(LANES)
    with broker() as (url, _):
        own = env | {
            "BROKER_URL": url,
            "PYTHONPATH": str(project / "src"),
            "PYTHONUNBUFFERED": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        command = (sys.executable, "-m", "acme_tasks")
        exporter, prometheus, alertmanager = free_port(), free_port(), free_port()
        with fleet(folder, own) as start:
            start("units", *command, "units", folder=project).process.wait(PATIENCE)
            _configure(project, folder, exporter=exporter, alertmanager=alertmanager)
            start("history", sys.executable, "-c", HISTORY).process.wait(PATIENCE)
            workers = {
                lane: start(lane, *command, "worker", lane, folder=project)
                for lane in ("quick", "slow")
            }
            metrics = (*command, "metrics", "--port", exporter)
            start("exporter", *metrics, folder=project).await_log("/metrics")
            start(
                "alertmanager",
                "prometheus-alertmanager",
                "--config.file=alertmanager.yml",
                f"--web.listen-address=127.0.0.1:{alertmanager}",
                "--cluster.listen-address=",
                "--storage.path=alertmanager",
            )
            start(
                "prometheus",
                "prometheus",
                "--config.file=prometheus.yml",
                f"--web.listen-address=127.0.0.1:{prometheus}",
                "--storage.tsdb.path=prometheus",
            ).await_log("Server is ready to receive web requests")
            for worker in workers.values():
                worker.await_log(" ready.")
            start("trickle", sys.executable, "-c", TRICKLE)
            watch = Watch(start, workers, project, prometheus, alertmanager)
            yield watch


def _configure(project: Path, folder: Path, *, exporter: int, alertmanager: int) -> None:
    """What docs/alerts.md shows, with the ports of this run, each second."""
    page = (project / "docs/alerts.md").read_text()
    text = block(page, "rule_files:").replace("scrape_interval: 15s", "scrape_interval: 1s")
    text = text.replace(":9464", f":{exporter}").replace(":9093", f":{alertmanager}")
    text = f"global:\n  evaluation_interval: 1s\n{text}"
    (folder / "prometheus.yml").write_text(text)
    (folder / "alertmanager.yml").write_text(block(page, "route:"))
    name = "acme-tasks.rules.yml"
    rules = (project / "deploy/prometheus" / name).read_text()
    (folder / name).write_text(hurried(rules))
