"""Prometheus' rules: what is recorded of each lane, and what pages somebody or opens a ticket.

Objectives are watched by how fast the budget of late starts is spent, over two windows each
(https://sre.google/workbook/alerting-on-slos/). Beside them stands what no ratio of starts can see,
such as a lane in which nothing starts. docs/alerts.md has a heading for each alert.
"""

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal

from ..config import Lane, Lanes

#: Around what Prometheus and Grafana fill in. Made here, since Cookiecutter would fill in by itself
#: what stands between two such braces in this file.
OPEN, CLOSE = "{" * 2, "}" * 2

_WINDOWS, _LONG_WINDOWS = ("5m", "30m", "1h", "6h"), ("3d", "30d")
_OVERDUE = 300  # seconds: a run that is late for as long is not just late
_FEW = 10  # late starts; in a quiet lane one would be beyond any share, and page
_HIGHEST = Decimal("0.9")  # of the starts: a threshold beyond it is met too rarely to be of use
_PATIENCE = 300  # seconds that something lasts before it pages: longer than a restart
_DEAD = "expired|failed|malformed|poison|unknown|worker"  # outcomes that leave a dead letter
_LANE = f"{OPEN} $labels.lane {CLOSE}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Alert:
    """An alert, which has a heading in docs/alerts.md."""

    name: str
    severity: str  # "page": somebody is woken; "ticket": somebody looks at it within days
    expression: str
    lasting: str = ""  # for how long the expression holds before the alert fires
    lane: str = ""  # where each lane has a rule of this name: no two may look alike
    summary: str

    def text(self) -> str:
        """The rule in YAML; what is JSON in it is YAML too."""
        lasting = f"        for: {self.lasting}\n" if self.lasting else ""
        lane = f"          lane: {json.dumps(self.lane)}\n" if self.lane else ""
        return f"""\
      - alert: {self.name}
        expr: |-
{_indented(self.expression)}{lasting}        labels:
          severity: {self.severity}
{lane}        annotations:
          summary: {json.dumps(self.summary)}
          runbook_url: docs/alerts.md#{self.name.lower()}
"""


@dataclass(frozen=True, slots=True)
class _Burn:
    """How fast the budget of late starts may be spent, and for how long."""

    alert: str
    severity: str
    factor: Decimal  # times as fast as would use up the budget in 30 days
    long: str  # window
    short: str  # window, so that the alert ends soon after its cause
    when: str  # the long window in words


_BURNS = (
    _Burn("LaneLateNow", "page", Decimal("14.4"), "1h", "5m", "in the last hour"),
    _Burn("LaneLateForHours", "page", Decimal(6), "6h", "30m", "in the last 6 hours"),
    _Burn("LaneLateForDays", "ticket", Decimal(1), "3d", "6h", "in the last 3 days"),
)


def rules(lanes: Lanes, slug: str) -> str:
    """The rules, for `rule_files` of a Prometheus that scrapes the exporter as the job `slug`."""
    groups = [
        _group(f"{slug}: recorded", [*_sums(selector(slug)), *_ratios(slug, _WINDOWS)]),
        # Below the 5 minutes for which Prometheus takes a sample as the latest.
        _group(f"{slug}: recorded over days", _ratios(slug, _LONG_WINDOWS), interval="2m"),
        _group(f"{slug}: all lanes", (alert.text() for alert in _of_all(slug))),
    ]
    groups += [_group(f"{slug}: lane {lane.name}", _of_lane(lane, slug)) for lane in lanes]
    return "groups:\n" + "\n".join(groups)


def selector(slug: str, *more: str) -> str:
    """Which series: the project's, and `more`, such as `lane="quick"`."""
    return "{" + ", ".join([f'job="{slug}"', *more]) + "}"


def _group(name: str, texts: Iterable[str], interval: str = "") -> str:
    every = f"    interval: {interval}\n" if interval else ""
    return f"  - name: {json.dumps(name)}\n{every}    rules:\n" + "".join(texts)


def _record(name: str, expression: str) -> str:
    return f"      - record: {name}\n        expr: |-\n{_indented(expression)}"


def _indented(expression: str) -> str:
    return "".join(f"          {line}\n" for line in expression.splitlines())


def _sums(here: str) -> Iterator[str]:
    # In one rule, or a scrape that comes between two would count in one of them alone.
    yield _record(
        "job_lane_starts:lanes_slo:sum",
        "\n  or ".join(
            f'label_replace({_sum(f"lanes_slo_{name}{here}")}, "starts", "{starts}", "", "")'
            for starts, name in (("all", "total"), ("good", "good_total"))
        ),
    )
    yield _record("job_lane:lanes_redeliveries:sum", _sum(f"lanes_redeliveries_total{here}"))


def _sum(counter: str) -> str:
    # Of the largest, since each copy of the exporter tells the same numbers.
    return f"sum by (job, lane) (max by (job, lane, task) ({counter}))"


def _starts(slug: str, window: str, *more: str) -> tuple[str, str]:
    """How many tasks started in `window`, and how many in time, as expressions."""
    all_, good = (selector(slug, *more, f'starts="{starts}"') for starts in ("all", "good"))
    increase = "increase(job_lane_starts:lanes_slo:sum"
    return f"{increase}{all_}[{window}])", f"{increase}{good}[{window}])"


def _ratios(slug: str, windows: tuple[str, ...]) -> Iterator[str]:
    for window in windows:
        started, good = _starts(slug, window)
        yield _record(
            f"job_lane:lanes_late:ratio{window}",
            f"1 - {good}\n  / ignoring (starts) {started}",
        )


def _of_lane(lane: Lane, slug: str) -> Iterator[str]:
    here = selector(slug, f'lane="{lane.name}"')
    for burn in _BURNS:
        yield from _burn(burn, lane, slug)
    patience = math.ceil(max(_PATIENCE, lane.latency_slo))
    # Where nothing starts, a ratio of starts says nothing.
    yield _Alert(
        name="LaneOldestWaitsTooLong",
        severity="page",
        expression=f"max by (job, lane) (lanes_oldest_wait_seconds{here}) > {lane.latency_slo:g}\n"
        f"  unless max by (job, lane) (lanes_paused{here}) == 1",
        lasting=f"{patience}s" if patience % 60 else f"{patience // 60}m",
        lane=lane.name,
        summary=f"{lane.name}: the oldest task has waited for {_value('humanizeDuration')}; it "
        f"should start within {lane.latency_slo:g} s",
    ).text()


def _burn(burn: _Burn, lane: Lane, slug: str) -> Iterator[str]:
    name = f'lane="{lane.name}"'
    here, (started, good) = selector(slug, name), _starts(slug, burn.long, name)
    budget = 1 - Decimal(str(lane.slo_target))
    meant = burn.factor * budget
    limit = min(meant, _HIGHEST)
    shown = _plain(limit)
    capped = f", which none could come to, or few: {shown} instead" if limit < meant else ""
    yield (
        f"      # {_plain(budget)} of the starts may be late, by slo_target; "
        f"{burn.factor} x {_plain(budget)} = {_plain(meant)}{capped}\n"
    )
    yield _Alert(
        name=burn.alert,
        severity=burn.severity,
        expression=f"job_lane:lanes_late:ratio{burn.long}{here} > {shown}\n"
        f"  and job_lane:lanes_late:ratio{burn.short}{here} > {shown}\n"
        f"  and {started}\n    - ignoring (starts) {good} > {_FEW}",
        lane=lane.name,
        summary=f"{lane.name}: {_value('humanizePercentage')} of the starts {burn.when} came later "
        f"than {lane.latency_slo:g} s; {_plain(100 * budget)}% may, over 30 days",
    ).text()


def _of_all(slug: str) -> Iterator[_Alert]:
    here, largest = selector(slug), "max by (job, lane)"
    yield _Alert(
        name="LaneHasNoWorker",
        severity="page",
        expression=f"{largest} (lanes_waiting{here}) > 0\n"
        f"  and {largest} (lanes_workers{here}) == 0\n"
        f"  unless {largest} (lanes_paused{here}) == 1",
        lasting="5m",
        summary=f"{_LANE}: {_value('humanize')} messages wait, and the lane has no worker",
    )
    yield _Alert(
        name="LanePausedForLong",
        severity="ticket",
        expression=f"{largest} (lanes_waiting{here}) > 0\n"
        f"  and {largest} (lanes_paused{here}) == 1",
        lasting="1h",
        summary=f"{_LANE}: paused for an hour or longer, and {_value('humanize')} messages wait",
    )
    # By difference, since a reason has no series until something is set aside for it; and only
    # where the exporter was there an hour ago to tell of it.
    by_reason = "sum by (job, lane, outcome) (max by (job, lane, task, outcome)"
    dead = f"lanes_tasks_total{selector(slug, f'outcome=~{json.dumps(_DEAD)}')}"
    yield _Alert(
        name="LaneDeadLetters",
        severity="ticket",
        expression=f"{by_reason} ({dead}))\n"
        f"  - ({by_reason} ({dead} offset 1h))\n"
        f"    or 0 * {by_reason} ({dead})))\n"
        f"  > 0 and on (job) max by (job) (lanes_broker_up{here} offset 1h) == 1",
        summary=f"{_LANE}: {_value('humanize')} dead letters in the last hour, reason: "
        f"{OPEN} $labels.outcome {CLOSE}",
    )
    yield _Alert(
        name="LaneRedelivers",
        severity="ticket",
        expression=f"increase(job_lane:lanes_redeliveries:sum{here}[1h]) > {_FEW}\n"
        f"  and increase(job_lane:lanes_redeliveries:sum{here}[1h])\n"
        f"    > ignoring (starts) 0.01 * {_starts(slug, '1h')[0]}",
        summary=f"{_LANE}: {_value('humanize')} tasks were begun anew in the last hour, more than "
        "1% of all: their workers were lost, or handed them back",
    )
    yield _Alert(
        name="LaneClockDiffers",
        severity="ticket",
        expression=f"{largest} (lanes_clock_difference_seconds{here}) > 1",
        lasting="10m",
        summary=f"{_LANE}: the clock of a worker's host is {_value('humanizeDuration')} off the "
        "broker's",
    )
    overdue = f"time() - lanes_schedule_next_run_timestamp_seconds{here}"
    yield _Alert(
        name="LanesRunOverdue",
        severity="ticket",
        expression=f"max by (job, entry) ({overdue}) > {_OVERDUE}",
        summary=f"{OPEN} $labels.entry {CLOSE}: a run of the schedule was due "
        f"{_value('humanizeDuration')} ago, and nobody has sent it",
    )
    yield _Alert(
        name="LanesBrokerDown",
        severity="page",
        expression=f"max by (job) (lanes_broker_up{here}) == 0",
        lasting="2m",
        summary="the exporter cannot reach the broker, and nothing is known of any lane",
    )
    yield _Alert(
        name="LanesExporterAbsent",
        severity="page",
        expression=f"absent(lanes_broker_up{here})",
        lasting="5m",
        summary="no exporter is scraped, so that no other alert about lanes can fire",
    )


def _value(form: str) -> str:
    return f"{OPEN} $value | {form} {CLOSE}"


def _plain(number: Decimal) -> str:
    return f"{number.normalize():f}"
