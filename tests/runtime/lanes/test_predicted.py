"""The wait that is predicted, beside that of real workers at known rates and run times.

Chance alone moves the mean wait of one run: at 90 % use of four slots, waits are alike for about 95
run times, so that over three minutes it is off by half as often as not. So each lane is sent a row
of tasks whose wait, simulated, is near what the formula says of that row; test_capacity.py shows
that over long rows the formula is near the simulation.

What is left between the two is the workers: between two tasks a slot stands still for milliseconds,
for more of them on a busy machine, and near full use that makes waits much longer. Another lane,
which always has tasks waiting, shows for how long in the same minutes, and that is reckoned with.
"""

import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from harness import Project, running_broker, wait_until
from queueing import Task, exponential, flow_of, poisson, waits

from acme_tasks.lanes.capacity import Flow, wait_of
from acme_tasks.lanes.counting import Counted
from acme_tasks.lanes.redis.counters import Counters
from acme_tasks.lanes.status import store_of

SLOTS = 4
RUN = 0.5  # seconds on average: a hundred times what a worker spends around a task
LASTS = 150.0  # seconds
USES = {"half": 0.5, "most": 0.75, "nearly": 0.9}
FULL = "full"
LANES = "default_lane = 'half'\n" + "".join(
    f"[lanes.{name}]\nconcurrency = {SLOTS}\n" for name in (*USES, FULL)
)
NEAR = 0.3  # of the prediction
FULL_USE = 0.95


def typical_row(use: float) -> list[Task]:
    """Tasks whose simulated wait is within 3 % of what the formula says of them."""
    arrivals = use * SLOTS / RUN
    count = int(LASTS * arrivals)
    for seed in itertools.count():
        row = list(poisson(arrivals, exponential(RUN, count, seed), seed + 1))
        flow = flow_of(row)
        predicted = wait_of(flow, SLOTS).mean
        simulated = fmean(waits(row, SLOTS))
        as_wanted = abs(flow.load / SLOTS - use) < 0.02 * use
        if as_wanted and abs(simulated - predicted) < 0.03 * predicted:
            return row
    raise AssertionError


@dataclass(frozen=True, slots=True)
class Measured:
    waits: dict[str, tuple[Flow, float]]  # by lane: what came to it, seconds that it waited
    turnaround: float  # seconds for which a slot stands still between two tasks


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Measured:
    rows = {name: typical_row(use) for name, use in USES.items()}
    sends = sorted((comes, run, lane) for lane, row in rows.items() for comes, run in row)
    folder = tmp_path_factory.mktemp("predicted")
    full = folder / FULL
    with running_broker() as broker:
        project = Project(folder, LANES, broker.url)
        with project.workers(*USES, FULL), project.app() as app:
            # One more than it gets to, so that it never waits for one.
            for run in exponential(RUN, int(1.2 * SLOTS * LASTS / RUN), 99):
                app.send_task("hold", (run, str(full)), lane=FULL, ignore_result=True)
            began, started = time.monotonic(), starts(full)
            for comes, run, lane in sends:
                time.sleep(max(0.0, began + comes - time.monotonic()))
                app.send_task("hold", (run, str(folder / lane)), lane=lane, ignore_result=True)
            each = SLOTS * (time.monotonic() - began) / (starts(full) - started)
            counters = {
                name: Counters(store_of(broker.redis, app.lanes.get(name)))
                for name in (*USES, FULL)
            }
            waits = {name: _wait(counters[name], row) for name, row in rows.items()}
            run = counters[FULL].total()["hold"].run.mean
            broker.redis.delete(app.lanes.get(FULL).queue)
    return Measured(waits, each - run)


def starts(file: Path) -> int:
    """Tasks of the full lane that have begun."""
    return len(file.read_text().splitlines()) if file.exists() else 0


def _wait(counters: Counters, row: list[Task]) -> tuple[Flow, float]:
    def all_done() -> Any:
        counted = counters.total().get("hold", Counted())
        return counted if counted.outcomes["succeeded"] == len(row) else None

    counted = wait_until(all_done, f"{len(row)} tasks to be counted")
    mean, variance = counted.run.mean, counted.run.variance
    return Flow(len(row) / row[-1][0], mean, variance / mean**2), counted.wait.mean


@pytest.mark.parametrize("name", USES)
def test_tasks_wait_as_long_as_predicted(measured: Measured, name: str) -> None:
    flow, waited = measured.waits[name]
    assert flow.load / SLOTS == pytest.approx(USES[name], rel=0.05)
    taken = flow.taken + measured.turnaround
    predicted = wait_of(Flow(flow.arrivals, taken, flow.variation), SLOTS).mean
    if flow.arrivals * taken > FULL_USE * SLOTS:
        # So busy a machine that more comes than goes: a row has an end then, and no formula.
        row = [(comes, run + measured.turnaround) for comes, run in typical_row(USES[name])]
        predicted = fmean(waits(row, SLOTS))
    bare = wait_of(flow, SLOTS).mean
    assert waited == pytest.approx(predicted, rel=NEAR), (
        f"{1000 * measured.turnaround:.1f} ms between two tasks; without, {bare:.4f} s"
    )
