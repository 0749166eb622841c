import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from harness import Process, Project, wait_until
from matplotlib import image

from acme_tasks.lanes import config, prove
from acme_tasks.lanes.errors import UsageError
from acme_tasks.lanes.prove import experiment, keys, plot
from acme_tasks.lanes.prove.experiment import Condition, InTime, Outcome, Pair
from acme_tasks.lanes.prove.keys import KeysOutcome
from acme_tasks.lanes.worker import PACKAGE

LANES = """
default_lane = "quick"

[lanes.slow]
nice = 0
[lanes.mail]
[lanes.quick]
"""


def workers_of(pid: int) -> list[int]:
    """Celery workers that a process has started."""
    shown = ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="]
    rows = map(str.split, subprocess.check_output(shown, text=True).splitlines())
    return [int(own) for own, parent, *args in rows if parent == str(pid) and "worker" in args]


@pytest.fixture
def lanes(lanes_file: Callable[[str], Path]) -> config.Lanes:
    return config.load(lanes_file(LANES))


@pytest.mark.parametrize(
    ("waits", "p50", "p99", "highest"),
    [
        ([0.3], 0.3, 0.3, 0.3),
        ([0.4, 0.1, 0.2, 0.3], 0.2, 0.4, 0.4),
        ([n / 1000 for n in range(1, 201)], 0.1, 0.198, 0.2),
        ([0.1, None, 0.2], 0.2, math.inf, math.inf),
        ([None, None], math.inf, math.inf, math.inf),
    ],
    ids=["one", "four", "two hundred", "one not answered", "none answered"],
)
def test_a_percentile_is_the_wait_that_so_many_did_not_exceed(
    waits: list[float | None], p50: float, p99: float, highest: float
) -> None:
    condition = Condition("any", waits)
    assert [condition.percentile(share) for share in (0.5, 0.99, 1.0)] == [p50, p99, highest]


def test_the_least_urgent_lane_is_flooded_and_the_most_urgent_measured(
    lanes: config.Lanes,
) -> None:
    assert [lane.name for lane in experiment.choose(lanes)] == ["slow", "quick"]


def test_one_lane_leaves_nothing_to_compare(lanes_file: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError) as caught:
        experiment.choose(config.load(lanes_file('default_lane = "mail"\n[lanes.mail]')))
    assert str(caught.value) == (
        "prove floods one lane and measures another, and lanes.toml declares one lane; add one"
    )


def outcome(lanes: config.Lanes, *, idle: float | None, flooded: float | None) -> Outcome:
    """One task in each condition; None: not answered."""
    return Outcome(
        flood_lane=lanes.get("slow"),
        probe_lane=lanes.get("quick"),
        flood=20_000,
        enqueue_time=5.0,
        control=Condition("one queue", [None] * 10),
        pairs=[
            Pair(
                "slow tasks",
                Condition("idle", [idle], rounds=[math.inf if idle is None else idle]),
                Condition("flooded", [flooded], rounds=[math.inf if flooded is None else flooded]),
                [InTime(lanes.get("quick"), 200, 200), InTime(lanes.get("slow"), 9, 12)],
            )
        ],
    )


@pytest.mark.parametrize(
    ("idle", "flooded", "kept"),
    [
        (0.1, 1.0, True),
        (0.1, 1.1, False),
        (0.8, 1.6, True),
        (0.8, 1.7, False),
        (0.1, None, False),
        (None, None, False),
    ],
    ids=[
        "within the SLO",
        "beyond the SLO",
        "twice idle",
        "more than twice idle",
        "not answered",
        "not answered when idle either",
    ],
)
def test_the_promise_is_twice_idle_or_the_slo(
    lanes: config.Lanes, idle: float | None, flooded: float | None, kept: bool
) -> None:
    measured = outcome(lanes, idle=idle, flooded=flooded)
    assert measured.kept(measured.pairs[0]) is kept


def test_ratios_are_taken_round_by_round() -> None:
    pair = Pair(
        "slow tasks",
        Condition("idle", [], rounds=[0.1, 0.2]),
        Condition("flooded", [], rounds=[0.3, 0.2]),
        [],
    )
    assert pair.ratios == pytest.approx([3.0, 1.0])


@pytest.mark.parametrize(
    ("flooded", "verdict"),
    [(0.012, (0, "is not delayed")), (7.0, (1, "IS DELAYED"))],
    ids=["kept", "broken"],
)
def test_the_table_ends_in_a_verdict(
    lanes: config.Lanes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flooded: float,
    verdict: tuple[int, str],
) -> None:
    measured = outcome(lanes, idle=0.01, flooded=flooded)
    monkeypatch.setattr(prove, "run", lambda *_args, **_options: measured)
    arguments: dict[str, Any] = {"flood": 20_000, "burn": False, "plot": None, "as_json": False}
    exit_code, said = verdict
    assert prove.main(lanes, **arguments) == exit_code
    printed = capsys.readouterr().out
    assert "one queue, 20,000 slow tasks ahead" in printed
    assert "not answered" in printed
    assert "in 10 s" in printed
    assert f"quick {said} by 20,000 slow tasks: its p99 is " in printed
    assert "In time while 20,000 slow tasks wait, and how fast the budget burns" in printed
    lines = [line.rstrip() for line in printed.splitlines()]
    rows = [line.split() for line in lines if line.endswith((" x", "pages"))]
    assert rows == [
        ["one", "queue:", "quick", "1", "s", "0", "10", "100.0", "x,", "pages"],
        ["lanes:", "quick", "1", "s", "200", "200", "0.0", "x"],
        ["lanes:", "slow", "10", "min", "9", "12", "25.0", "x,", "pages"],
    ]


def test_what_was_not_answered_is_null_for_scripts(
    lanes: config.Lanes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = outcome(lanes, idle=0.01, flooded=None)
    monkeypatch.setattr(prove, "run", lambda *_args, **_options: measured)
    assert prove.main(lanes, flood=20_000, burn=False, plot=None, as_json=True) == 1
    text = capsys.readouterr().out
    shown = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    none = {"p50": None, "p99": None, "max": None}
    in_time = {"good": 0, "total": 10, "burn_rate": pytest.approx(100)}
    assert shown["one_queue"] == {"sent": 10, "in_time": in_time} | none
    (pair,) = shown["lanes"]
    assert pair["idle"] == {"sent": 1, "p50": 0.01, "p99": 0.01, "max": 0.01}
    assert pair["flooded"] == {"sent": 1, "p50": None, "p99": None, "max": None}
    assert pair["in_time"]["quick"] == {"good": 200, "total": 200, "burn_rate": 0.0}
    assert (pair["p99_ratios"], pair["p99_allowed"], pair["kept"]) == ([None], 1.0, False)


def test_an_experiment_that_is_ended_leaves_nothing_running(tmp_path: Path) -> None:
    """Seen before: its workers went on, and looked for their broker for ever."""
    project = Project(tmp_path, LANES, "redis://localhost:1/0")
    command = [sys.executable, "-m", PACKAGE, "prove"]
    proof = Process("prove", command, tmp_path, project.environment)
    try:
        started = wait_until(lambda: workers_of(proof.process.pid), "the experiment's workers")
    finally:
        assert proof.end() == 128 + signal.SIGTERM
    for pid in started:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_small_run_shows_the_difference(
    lanes: config.Lanes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bound: Callable[[str], Celery],
) -> None:
    # The experiment's workers are this project's, whatever the owner's tasks.py says.
    project = Project(tmp_path, LANES, "redis://localhost:1/0")
    for name in ("PYTHONPATH", "LANES_FILE"):
        monkeypatch.setenv(name, project.variables[name])
    for module in (experiment, plot):
        for name, value in {"ROUNDS": 1, "ROUND_TIME": 1, "CUT_OFF": 6.0}.items():
            monkeypatch.setattr(module, name, value)
    steps: list[str] = []

    measured = experiment.run(lanes, bound(LANES), flood=400, burn=False, step=steps.append)

    (pair,) = measured.pairs
    assert len(measured.control.waits) == experiment.CONTROL_PROBES
    assert len(pair.idle.waits) == len(pair.flooded.waits) == experiment.RATE
    # Seen: nothing answered in one queue; 3 ms in lanes, with and without the flood.
    assert pair.flooded.percentile(0.5) < measured.control.percentile(0.5)
    assert pair.flooded.percentile(1.0) < math.inf
    assert steps == [
        "one queue, 400 slow tasks ahead of a quick one",
        "lanes, 400 slow tasks in slow",
        "round 1 of 1: the flood set aside",
        "round 1 of 1: under the flood",
    ]
    shown = json.loads(json.dumps(prove.as_object(measured)))
    assert (shown["flood_lane"], shown["measured_lane"], shown["flood"]) == ("slow", "quick", 400)
    assert shown["lanes"][0]["flooded"]["sent"] == experiment.RATE
    assert shown["one_queue"]["in_time"]["good"] == 0
    # As the workers counted: none was late, and what the flood itself waits is within 10 min.
    quick, slow = (shown["lanes"][0]["in_time"][lane] for lane in ("quick", "slow"))
    assert quick == {"good": experiment.RATE, "total": experiment.RATE, "burn_rate": 0.0}
    assert slow["good"] == slow["total"] > 0

    picture = tmp_path / "plot.png"
    plot.draw(measured, picture)
    assert_drawn(picture)


def assert_drawn(picture: Path) -> None:
    """That something of each kind is in it."""
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = image.imread(picture)[:, :, :3].reshape(-1, 3)
    for colour in (plot._QUIET, plot._BUSY, plot._LATE):
        red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
        drawn = abs(pixels - (red, green, blue)).max(axis=1) < 0.02
        assert drawn.sum() > 20, f"hardly anything is drawn in {colour}"


# One key's flood


def keys_outcome(
    lanes: config.Lanes, *, idle: float | None, flooded: float | None, control: float | None = None
) -> KeysOutcome:
    return KeysOutcome(
        lane=lanes.get("quick"),
        flood=10_000,
        enqueue_time=0.5,
        idle=Condition("idle", [idle]),
        flooded=Condition("flooded", [flooded]),
        control=Condition("no keys", [control] * 10),
    )


@pytest.mark.parametrize(
    ("idle", "flooded", "kept"),
    [
        (0.1, 0.12, True),
        (0.1, 0.121, False),
        (0.1, None, False),
        (None, 0.1, False),
        (None, None, False),
    ],
    ids=["1.2 times", "more", "not answered", "idle not answered", "neither answered"],
)
def test_another_key_may_wait_for_1_2_times_as_long_under_a_flood(
    lanes: config.Lanes, idle: float | None, flooded: float | None, kept: bool
) -> None:
    assert keys_outcome(lanes, idle=idle, flooded=flooded).kept is kept


@pytest.mark.parametrize(
    ("flooded", "verdict"),
    [
        (0.02, (0, "is not delayed by 10,000 tasks of A: its p99 is 1.00 x that")),
        (0.05, (1, "IS DELAYED by 10,000 tasks of A: its p99 is 2.50 x that")),
    ],
    ids=["kept", "broken"],
)
def test_the_table_of_keys_ends_in_a_verdict(
    lanes: config.Lanes,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flooded: float,
    verdict: tuple[int, str],
) -> None:
    measured = keys_outcome(lanes, idle=0.02, flooded=flooded)
    monkeypatch.setattr(prove, "run_keys", lambda *_args, **_options: measured)
    exit_code, said = verdict
    assert prove.main_keys(lanes, flood=10_000, plot=None, as_json=False) == exit_code
    printed = capsys.readouterr().out
    assert f"Another key {said} with no task waiting, where 1.2 x is allowed." in printed
    rows = [" ".join(line.split()) for line in printed.splitlines()]
    assert "no keys, 10,000 ahead 0 of 10 not answered in 10 s" in rows
    assert "keys, all slots busy with A 1 of 1 20.0 ms 20.0 ms 20.0 ms" in rows
    assert "10,000 tasks were queued in 0.5 s, 20,000 a second." in rows


def test_what_was_not_answered_of_a_key_is_null_for_scripts(
    lanes: config.Lanes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = keys_outcome(lanes, idle=0.02, flooded=None)
    monkeypatch.setattr(prove, "run_keys", lambda *_args, **_options: measured)
    assert prove.main_keys(lanes, flood=10_000, plot=None, as_json=True) == 1
    text = capsys.readouterr().out
    shown = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert (shown["p99_ratio"], shown["p99_allowed"], shown["kept"]) == (None, 0.024, False)
    assert shown["no_keys"] == {"sent": 10, "p50": None, "p99": None, "max": None}


@pytest.mark.parametrize("limit", ["", "max_running_per_key = 2"], ids=["no limit", "a limit"])
def test_a_small_run_of_keys_shows_the_difference(
    lanes_file: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bound: Callable[[str], Celery],
    limit: str,
) -> None:
    text = f"{LANES}prefetch = 1\n{limit}\n"
    project = Project(tmp_path, text, "redis://localhost:1/0")
    for name in ("PYTHONPATH", "LANES_FILE"):
        monkeypatch.setenv(name, project.variables[name])
    for name, value in {"ROUNDS": 1, "ROUND_TIME": 1, "CONTROL_PROBES": 3}.items():
        monkeypatch.setattr(keys, name, value)
    for module in (experiment, plot):
        monkeypatch.setattr(module, "CUT_OFF", 4.0)
    steps: list[str] = []

    app = bound(text)

    @app.task(name="prove.work", shared=False)  # this app has no others' shared tasks
    def work(mean: float, key: str) -> None:
        raise NotImplementedError

    measured = keys.run_keys(config.load(lanes_file(text)), app, flood=700, step=steps.append)

    # Seen: nothing answered without keys; 20 ms with them, with and without the flood.
    assert measured.control.waits == [None] * 3
    assert None not in measured.idle.waits + measured.flooded.waits
    assert len(measured.idle.waits) == len(measured.flooded.waits) == keys.RATE
    assert steps == [
        "round 1 of 1: no task of A waiting",
        "round 1 of 1: 700 tasks of A waiting",
        "700 tasks waiting, without keys",
    ]
    picture = tmp_path / "plot.png"
    plot.draw_keys(measured, picture)
    assert_drawn(picture)
