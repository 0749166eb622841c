"""Prometheus' rules of a project, by Debian's promtool: each alert of each lane, made to fire.

The tests of rules are made here for whatever lanes there are, from a table of thresholds that was
worked out by hand.
"""

import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from support import BAKES, run, succeed

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not here (Debian: prometheus)"
)

Baked = Callable[[str], Path]
Series = dict[str, str]  # values by series, in promtool's notation

#: By slo_target: the shares of late starts at which the three alerts of a budget fire.
THRESHOLDS = {
    0.5: (0.9, 0.9, 0.5),  # 14.4 x 0.5 and 6 x 0.5 are more than all starts
    0.9: (0.9, 0.6, 0.1),  # 14.4 x 0.1 is more than all
    0.935: (0.9, 0.39, 0.065),  # 14.4 x 0.065 = 0.936 is nearly all
    0.99: (0.144, 0.06, 0.01),
    0.999: (0.0144, 0.006, 0.001),
    0.99999: (0.000144, 0.00006, 0.00001),
}
BURNS = {
    "LaneLateNow": (60, "page", "in the last hour"),  # long window in minutes
    "LaneLateForHours": (360, "page", "in the last 6 hours"),
    "LaneLateForDays": (4320, "ticket", "in the last 3 days"),
}
DEAD = ("expired", "failed", "malformed", "poison", "unknown", "worker")

#: Names that YAML takes for something else, and keys that decide what is rendered.
ODD = """
default_lane = "on"
[lanes.on]
slo_target = 0.5
latency_slo = "250ms"
[lanes.no]
slo_target = 0.9
latency_slo = "1h"
[lanes.y]
slo_target = 0.935
latency_slo = "301500ms"
[lanes.null]
slo_target = 0.999
[lanes.e1]
slo_target = 0.99999
"""


@dataclass(frozen=True, slots=True)
class Lane:
    """What of a lane the rules go by."""

    name: str
    seconds: float = 30.0  # latency_slo
    target: float = 0.99

    @property
    def patience(self) -> int:
        """Minutes for which the oldest may wait beyond the objective; a part counts as one."""
        return max(5, -int(-self.seconds // 60))


SLO = {"quick": 1.0, "standard": 30.0, "slow": 600.0}
CASES = {
    name: (name, None, [Lane(lane, SLO[profile]) for lane, profile in BAKES[name].lanes.items()])
    for name in ("default", "longest")
} | {
    "odd-names": (
        "default",
        ODD,
        [
            Lane("on", 0.25, 0.5),
            Lane("no", 3600, 0.9),
            Lane("y", 301.5, 0.935),
            Lane("null", target=0.999),
            Lane("e1", target=0.99999),
        ],
    )
}


@dataclass(frozen=True, slots=True)
class Expected:
    """An alert that fires."""

    severity: str
    summary: str
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trial:
    """What is scraped, and whether an alert then fires, and of what: nothing else of its name."""

    name: str
    alert: str
    lane: str
    series: Series
    minutes: int  # when it is looked at, from the first sample
    fires: list[Expected]
    every: int = 1  # minutes between two samples


def trials(job: str, lanes: list[Lane]) -> Iterator[Trial]:
    """Each alert of each lane, firing and not."""
    for lane in lanes:
        neighbour = next((other for other in lanes if other != lane), None)
        for alert in BURNS:
            yield from burning(job, lane, neighbour, alert)
        yield from waiting(job, lane)
        yield from unserved(job, lane)
        yield from set_aside(job, lane)
        yield from redelivered(job, lane)
        yield from clocks(job, lane)
    yield from overdue(job)
    up = {f'lanes_broker_up{{job="{job}"}}': "1x60"}
    down = "the exporter cannot reach the broker, and nothing is known of any lane"
    fires = [Expected("page", down, {"job": job})]
    gone = {f'lanes_broker_up{{job="{job}"}}': "1x10 0x60"}
    yield Trial("down", "LanesBrokerDown", "", gone, 14, fires)
    yield Trial("up", "LanesBrokerDown", "", up, 14, [])
    copies = gone | {f'lanes_broker_up{{job="{job}", instance="b"}}': "1x60"}
    yield Trial("one of two copies reaches it", "LanesBrokerDown", "", copies, 14, [])
    absent = "no exporter is scraped, so that no other alert about lanes can fire"
    fires = [Expected("page", absent, {"job": job})]
    other = {'lanes_broker_up{job="another"}': "1x60"}
    yield Trial("another project's", "LanesExporterAbsent", "", other, 10, fires)
    yield Trial("scraped", "LanesExporterAbsent", "", up, 10, [])


def overdue(job: str) -> Iterator[Trial]:
    """By Prometheus' clock, which is 0 at the first sample here."""
    alert = "LanesRunOverdue"
    due = f'lanes_schedule_next_run_timestamp_seconds{{job="{job}", entry="nightly"}}'
    summary = "nightly: a run of the schedule was due 6m 0s ago, and nobody has sent it"
    fires = [Expected("ticket", summary, {"job": job, "entry": "nightly"})]
    yield Trial("six minutes ago", alert, "", {due: "600x30"}, 16, fires)
    yield Trial("four minutes ago", alert, "", {due: "600x30"}, 14, [])
    yield Trial("sent meanwhile", alert, "", {due: "600x12 4200x30"}, 16, [])


def starts(job: str, lane: Lane, *phases: tuple[int, float, float]) -> Series:
    """Of two tasks and two copies of the exporter: (minutes, starts a minute, share late), ..."""

    def grown(share: Callable[[float], float]) -> str:
        parts, value = [], 0.0
        for minutes, rate, late in phases:
            step = rate * share(late)
            parts.append(f"{value:.9f}+{step:.9f}x{minutes - 1}")
            value += step * minutes
        return " ".join(parts)

    good, total = grown(lambda late: 1 - late), grown(lambda _late: 1)
    return {
        f"lanes_slo_{name}"
        f'{{job="{job}", lane="{lane.name}", task="{task}", instance="{instance}"}}': values
        for name, values in (("good_total", good), ("total", total))
        for task in "ab"
        for instance in "12"
    }


def burning(job: str, lane: Lane, neighbour: Lane | None, alert: str) -> Iterator[Trial]:
    window, severity, when = BURNS[alert]
    limit = THRESHOLDS[lane.target][list(BURNS).index(alert)]
    every = window // 60  # so that each window has some samples
    long, short = 60, (6 if window < 4320 else 8)  # the windows, and a little more, in samples
    kept = starts(job, neighbour, (long, 1e7, 0)) if neighbour else {}

    def trial(name: str, series: Series, late: float | None = None) -> Trial:
        fires = []
        if late is not None:
            budget = 100 * (1 - lane.target)
            summary = (
                f"{lane.name}: {100 * late:.4g}% of the starts {when} came later than "
                f"{lane.seconds:g} s; {budget:.4g}% may, over 30 days"
            )
            fires = [Expected(severity, summary, {"job": job, "lane": lane.name})]
        minutes = (long - 1) * every
        return Trial(name, alert, lane.name, series, minutes, fires, every)

    above, below = limit * 1.05, limit * 0.95
    yield trial(
        "above, beside a lane that is not", starts(job, lane, (long, 1e7, above)) | kept, above
    )
    yield trial("below", starts(job, lane, (long, 1e7, below)) | kept)
    mended = starts(job, lane, (long - short, 1e7, above), (short, 1e7, 0)) | kept
    yield trial("above, but no more", mended)
    begun = starts(job, lane, (long - short, 1e7, 0), (short, 1e7, above)) | kept
    yield trial("above, for the short window alone", begun)
    yield trial("all late, and few", starts(job, lane, (long, 0.05, 1)) | kept)
    yield trial("nothing starts", starts(job, lane, (long, 0, 1)) | kept)


def gauge(job: str, lane: Lane, **values: str) -> Series:
    return {f'lanes_{name}{{job="{job}", lane="{lane.name}"}}': v for name, v in values.items()}


def waiting(job: str, lane: Lane) -> Iterator[Trial]:
    alert, late, patience = "LaneOldestWaitsTooLong", lane.seconds + 7, lane.patience
    summary = f"{lane.name}: the oldest task has waited for {duration(late)}; it should start "
    fires = [
        Expected(
            "page",
            f"{summary}within {lane.seconds:g} s",
            {"job": job, "lane": lane.name},
        )
    ]
    going = gauge(job, lane, oldest_wait_seconds=f"{late}x200", paused="0x200")
    yield Trial("beyond it", alert, lane.name, going, patience + 1, fires)
    yield Trial("not for long", alert, lane.name, going, patience - 1, [])
    kept = gauge(job, lane, oldest_wait_seconds=f"{lane.seconds}x200", paused="0x200")
    yield Trial("at it", alert, lane.name, kept, patience + 1, [])
    at_times = gauge(
        job, lane, oldest_wait_seconds=f"{late}x{patience - 2} 0x0 {late}x200", paused="0x200"
    )
    yield Trial("beyond it at times", alert, lane.name, at_times, patience + 1, [])
    paused = gauge(job, lane, oldest_wait_seconds=f"{late}x200", paused="1x200")
    yield Trial("paused", alert, lane.name, paused, patience + 1, [])


def duration(seconds: float) -> str:
    """As Prometheus' humanizeDuration tells what these tests have."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    whole = f"{int(rest)}s" if minutes or hours else f"{rest:.4g}s"
    return f"{f'{hours}h ' if hours else ''}{f'{minutes}m ' if minutes or hours else ''}{whole}"


def unserved(job: str, lane: Lane) -> Iterator[Trial]:
    labels = {"job": job, "lane": lane.name}
    alert = "LaneHasNoWorker"
    summary = f"{lane.name}: 7 messages wait, and the lane has no worker"
    fires = [Expected("page", summary, labels)]
    waits = {"waiting": "7x90", "workers": "0x90", "paused": "0x90"}
    yield Trial("none", alert, lane.name, gauge(job, lane, **waits), 6, fires)
    yield Trial("none yet", alert, lane.name, gauge(job, lane, **waits), 4, [])
    for name, other in {
        "one": {"workers": "1x90"},
        "nothing waits": {"waiting": "0x90"},
        "paused": {"paused": "1x90"},
    }.items():
        yield Trial(name, alert, lane.name, gauge(job, lane, **waits | other), 6, [])
    alert = "LanePausedForLong"
    summary = f"{lane.name}: paused for an hour or longer, and 7 messages wait"
    fires = [Expected("ticket", summary, labels)]
    paused = gauge(job, lane, **waits | {"paused": "1x90"})
    yield Trial("paused", alert, lane.name, paused, 61, fires)
    yield Trial("not for long", alert, lane.name, paused, 59, [])
    empty = gauge(job, lane, **waits | {"paused": "1x90", "waiting": "0x90"})
    yield Trial("nothing waits", alert, lane.name, empty, 61, [])


def set_aside(job: str, lane: Lane) -> Iterator[Trial]:
    alert = "LaneDeadLetters"
    known = {f'lanes_broker_up{{job="{job}", instance="{copy}"}}': "1x180" for copy in "12"}

    def counted(outcome: str, values: str, tasks: str = "a") -> Series:
        return {
            "lanes_tasks_total"
            f'{{job="{job}", lane="{lane.name}", task="{task}", outcome="{outcome}", '
            f'instance="{copy}"}}': values
            for task in tasks
            for copy in "12"
        }

    def fires(number: int, reason: str) -> list[Expected]:
        summary = f"{lane.name}: {number} dead letters in the last hour, reason: {reason}"
        return [Expected("ticket", summary, {"job": job, "lane": lane.name, "outcome": reason})]

    firsts, fired = dict(known), []
    for reason in DEAD:
        firsts |= counted(reason, "_x99 3x80")
        fired += fires(3, reason)
    yield Trial("the first, of each reason", alert, lane.name, firsts, 101, fired)
    more = known | counted("failed", "40x99 43x80", "ab") | counted("poison", "5x180")
    yield Trial("more, of two tasks", alert, lane.name, more, 101, fires(6, "failed"))
    yield Trial("an hour later", alert, lane.name, more, 165, [])
    yield Trial("none before", alert, lane.name, more, 99, [])
    # Which happens at a fail-over.
    lost = known | counted("failed", "40x99 37x80")
    yield Trial("fewer", alert, lane.name, lost, 101, [])
    unseen = dict.fromkeys(known, "_x60 1x100") | counted("failed", "_x60 40x100")
    yield Trial("what was there at the first look", alert, lane.name, unseen, 101, [])
    well = dict(known)
    for outcome in ("succeeded", "retried", "ignored", "revoked"):
        well |= counted(outcome, "_x99 3x80")
    yield Trial("of other outcomes", alert, lane.name, well, 101, [])


def redelivered(job: str, lane: Lane) -> Iterator[Trial]:
    alert = "LaneRedelivers"
    summary = (
        f"{lane.name}: {{}} tasks were begun anew in the last hour, more than 1% of all: their "
        "workers were lost, or handed them back"
    )

    def again(a_minute: float, of: float) -> Series:
        return starts(job, lane, (60, of / 2, 0)) | {
            f'lanes_redeliveries_total{{job="{job}", lane="{lane.name}", task="{task}"}}': (
                f"0+{a_minute / 2:g}x59"
            )
            for task in "ab"
        }

    fires = [Expected("ticket", summary.format("59"), {"job": job, "lane": lane.name})]
    yield Trial("one of fifty", alert, lane.name, again(1, 50), 59, fires)
    yield Trial("one of two hundred", alert, lane.name, again(1, 200), 59, [])
    yield Trial("one of two, and few", alert, lane.name, again(0.1, 0.2), 59, [])


def clocks(job: str, lane: Lane) -> Iterator[Trial]:
    alert = "LaneClockDiffers"
    summary = f"{lane.name}: the clock of a worker's host is 1.5s off the broker's"
    fires = [Expected("ticket", summary, {"job": job, "lane": lane.name})]
    differs = gauge(job, lane, clock_difference_seconds="1.5x30")
    yield Trial("by 1.5 s", alert, lane.name, differs, 11, fires)
    yield Trial("not for long", alert, lane.name, differs, 9, [])
    agrees = gauge(job, lane, clock_difference_seconds="0.9x30")
    yield Trial("by 0.9 s", alert, lane.name, agrees, 11, [])


def written(trial: Trial) -> dict[str, Any]:
    """In the form of https://prometheus.io/docs/prometheus/latest/configuration/unit_testing_rules/."""
    annotations = {"runbook_url": f"docs/alerts.md#{trial.alert.lower()}"}
    alerts = [
        {
            "exp_labels": {"severity": fired.severity} | fired.labels,
            "exp_annotations": {"summary": fired.summary} | annotations,
        }
        for fired in trial.fires
    ]
    looked = {"eval_time": f"{trial.minutes}m", "alertname": trial.alert, "exp_alerts": alerts}
    return {
        "name": f"{trial.alert}, {trial.lane}: {trial.name}",
        "interval": f"{trial.every}m",
        "input_series": [
            {"series": series, "values": values} for series, values in trial.series.items()
        ],
        "alert_rule_test": [looked],
    }


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules on disk, and what belongs to them."""

    path: Path
    job: str
    lanes: list[Lane]

    @property
    def alerts(self) -> set[tuple[str, str]]:
        """Each alert, with its lane where it is of one."""
        document = yaml.safe_load(self.path.read_text())
        return {
            (rule["alert"], rule["labels"].get("lane", ""))
            for group in document["groups"]
            for rule in group["rules"]
            if "alert" in rule
        }


@pytest.fixture(params=CASES)
def rules(
    request: pytest.FixtureRequest,
    baked: Baked,
    env: dict[str, str],
    tmp_path: Path,
) -> Rules:
    name, toml, lanes = CASES[request.param]
    slug, package = BAKES[name].slug, BAKES[name].package
    source = env | {"PYTHONPATH": str(baked(name) / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    if toml:
        (tmp_path / "lanes.toml").write_text(toml)
        source["LANES_FILE"] = str(tmp_path / "lanes.toml")
    words = (sys.executable, "-m", package, "units", "--out", tmp_path / "deploy")
    succeed(*words, cwd=tmp_path, env=source)
    return Rules(tmp_path / f"deploy/prometheus/{slug}.rules.yml", slug, lanes)


def promtool(folder: Path, rules: Path, made: list[Trial], env: dict[str, str]) -> tuple[int, str]:
    """What `promtool test rules` says of `rules`."""
    groups = [group["name"] for group in yaml.safe_load(rules.read_text())["groups"]]
    paths = []
    for every in sorted({trial.every for trial in made}):
        tests = [written(trial) for trial in made if trial.every == every]
        document = {
            "rule_files": [str(rules)],
            "evaluation_interval": f"{every}m",
            "group_eval_order": groups,  # what is recorded first
            "tests": tests,
        }
        paths.append(folder / f"every-{every}m.yml")
        paths[-1].write_text(yaml.safe_dump(document))
    done = run("promtool", "test", "rules", *paths, cwd=folder, env=env)
    return done.returncode, done.stdout + done.stderr


def test_promtool_finds_nothing_wrong_with_the_rules(rules: Rules, env: dict[str, str]) -> None:
    words = ("promtool", "check", "rules", "--lint-fatal", "--lint=all", rules.path)
    told = succeed(*words, cwd=rules.path.parent, env=env)
    assert f"SUCCESS: {8 + 8 + 4 * len(rules.lanes)} rules found" in told


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_alert_fires_when_it_must_and_only_then(
    rules: Rules, env: dict[str, str], tmp_path: Path
) -> None:
    made = list(trials(rules.job, rules.lanes))
    code, told = promtool(tmp_path, rules.path, made, env)
    assert code == 0, told


def test_each_alert_of_each_lane_has_trials_of_both_kinds(rules: Rules) -> None:
    of_one = {alert for alert, lane in rules.alerts if lane}
    for fires in (True, False):
        made = {
            (trial.alert, trial.lane if trial.alert in of_one else "")
            for trial in trials(rules.job, rules.lanes)
            if bool(trial.fires) == fires
        }
        assert made == rules.alerts


def test_each_alert_leads_to_its_heading_and_each_heading_is_an_alert(
    baked: Baked, rules: Rules
) -> None:
    page = (baked("default") / "docs/alerts.md").read_text()
    headings = re.findall(r"^## (Lanes?[A-Z]\w+)$", page, re.MULTILINE)
    assert sorted(headings) == sorted({alert for alert, _lane in rules.alerts})


def test_a_rule_with_a_capped_threshold_has_its_arithmetic(rules: Rules) -> None:
    said = re.findall(r"# (.*? = .*)\n      - alert: (\w+)", rules.path.read_text())
    for lane in rules.lanes:
        budget = Decimal(1) - Decimal(str(lane.target))
        for alert, factor, limit in zip(
            BURNS, ("14.4", "6", "1"), THRESHOLDS[lane.target], strict=True
        ):
            meant = Decimal(factor) * budget
            text = (
                f"{budget:f} of the starts may be late, by slo_target; {factor} x {budget:f} = "
                f"{meant.normalize():f}"
            )
            if meant > Decimal("0.9"):
                text += ", which none could come to, or few: 0.9 instead"
            assert (text, alert) in said, said
            assert min(float(meant), 0.9) == pytest.approx(limit)


def block(page: str, beginning: str) -> str:
    """The block of YAML that begins so."""
    found = [
        text
        for text in re.findall(r"^```yaml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        if text.startswith(beginning)
    ]
    assert len(found) == 1
    return str(found[0])


def test_prometheus_and_alertmanager_take_what_the_page_shows(
    baked: Baked, env: dict[str, str], tmp_path: Path
) -> None:
    page = (baked("default") / "docs/alerts.md").read_text()
    (tmp_path / "prometheus.yml").write_text(block(page, "rule_files:"))
    rules = baked("default") / "deploy/prometheus/acme-tasks.rules.yml"
    shutil.copy(rules, tmp_path)
    told = succeed("promtool", "check", "config", "prometheus.yml", cwd=tmp_path, env=env)
    assert "SUCCESS: 24 rules found" in told
    (tmp_path / "alertmanager.yml").write_text(block(page, "route:"))
    told = succeed("amtool", "check-config", "alertmanager.yml", cwd=tmp_path, env=env)
    assert "2 inhibit rules" in told
    route = ("amtool", "config", "routes", "test", "--config.file=alertmanager.yml")
    for severity, receiver in (("page", "pages"), ("ticket", "tickets")):
        told = succeed(*route, f"severity={severity}", cwd=tmp_path, env=env)
        assert told.strip() == receiver


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "alert"),
    [
        ("> 0.144", "> 0.16", "LaneLateNow, slow: above"),
        ("> 0.144", "> 0.13", "LaneLateNow, slow: below"),
        ("> 10\n", "> 0\n", "LaneLateNow, slow: all late, and few"),
        ("for: 10m", "for: 20m", "LaneOldestWaitsTooLong, slow: beyond it"),
        ("offset 1h", "offset 3h", "LaneDeadLetters, slow: the first"),
        ("max by (job, lane, task, outcome)", "sum by (job, lane, task, outcome)", "of two tasks"),
    ],
)
def test_the_trials_find_rules_that_are_wrong(
    baked: Baked, env: dict[str, str], tmp_path: Path, old: str, new: str, alert: str
) -> None:
    text = (baked("default") / "deploy/prometheus/acme-tasks.rules.yml").read_text()
    assert old in text
    (tmp_path / "rules.yml").write_text(text.replace(old, new))
    (slow, _quick) = CASES["default"][2]
    made = [trial for trial in trials("acme-tasks", [slow]) if trial.every == 1]
    code, told = promtool(tmp_path, tmp_path / "rules.yml", made, env)
    assert code == 1
    assert alert in told
