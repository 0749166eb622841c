"""Flood a lane by one key, and measure how long another key's tasks wait in it.

What they wait for when nothing is queued is a free slot: so in both conditions the lane is as busy
with the first key's tasks, and only how many of these wait is another.
"""

import itertools
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .. import worker
from ..config import Lane, Lanes
from ..errors import UsageError
from ..status import store_of
from .experiment import INCLUDE, Bench, Condition, Step, bench_of
from .tasks import AGAIN

RATE = 20  # tasks of other keys a second, sent whether or not the last was answered
ROUNDS = 3  # of idle, then flooded: the machine's own drift falls on both alike
ROUND_TIME = 10  # seconds of each
WORK_TIME = 0.05  # seconds that a task of the flood takes, on average
CONTROL_PROBES = 10  # tasks sent behind the flood without keys
ALLOWED = 1.2  # times idle's p99 that the flooded one may be
FLOOD_KEY = "A"


@dataclass(frozen=True, slots=True)
class KeysOutcome:
    """Everything measured in one run."""

    lane: Lane
    flood: int  # tasks
    enqueue_time: float  # seconds for `flood` tasks with a key
    idle: Condition  # all slots taken by the flood's key, and none of its tasks waiting
    flooded: Condition
    control: Condition  # the same flood, without keys

    @property
    def ratio(self) -> float:
        """p99 under the flood by p99 without it."""
        return self.flooded.percentile(0.99) / self.idle.percentile(0.99)

    @property
    def allowed(self) -> float:
        """Seconds that p99 may reach under the flood."""
        return ALLOWED * self.idle.percentile(0.99)

    @property
    def kept(self) -> bool:
        """Whether the flood of one key did not delay the others."""
        return math.isfinite(self.allowed) and self.flooded.percentile(0.99) <= self.allowed


def run_keys(lanes: Lanes, app: Any, *, flood: int, step: Step) -> KeysOutcome:
    """Measure the most urgent lane, on a Valkey that ends with it.

    Args:
        flood: tasks in the flood.
        step: told what begins, for a progress line.

    Raises:
        UsageError: when the flood ran dry, or the extra is missing.
        BrokerError: when a worker does not start.
    """
    lane = min(lanes, key=lambda each: each.latency_slo)
    commands = [
        [*worker.command(lane, instance=number), INCLUDE] for number in range(1, lane.workers + 1)
    ]
    idle, flooded, control = (Condition(name, []) for name in ("idle", "flooded", "no keys"))
    enqueue_time = 0.0
    with bench_of(app) as bench:
        flows = Flows(bench, lane)
        with bench.running(commands, app, [lane.queue]):
            for number in range(1, ROUNDS + 1):
                step(f"round {number} of {ROUNDS}: no task of {FLOOD_KEY} waiting")
                with flows.one_after_another():
                    flows.measure(idle)
                step(f"round {number} of {ROUNDS}: {flood:,} tasks of {FLOOD_KEY} waiting")
                with flows.flood(flood, FLOOD_KEY) as enqueue_time:
                    flows.measure(flooded)
            step(f"{flood:,} tasks waiting, without keys")
            with flows.flood(flood, None):
                flows.measure(control, count=CONTROL_PROBES, keyed=False)
    return KeysOutcome(lane, flood, enqueue_time, idle, flooded, control)


class Flows:
    """What is sent to a lane: one key's tasks that keep all its slots busy, and others' beside."""

    def __init__(self, bench: Bench, lane: Lane) -> None:
        self.bench, self.lane = bench, lane
        self.store = store_of(bench.redis, lane)
        held = lane.concurrency * lane.prefetch * lane.workers
        self.held = min(held, lane.max_running_per_key or held)  # messages of one key

    def measure(
        self, condition: Condition, *, count: int | None = None, keyed: bool = True
    ) -> None:
        """Send tasks, each of a key of its own, so that no limit of the lane holds them back."""
        first, count = len(condition.waits), count or RATE * ROUND_TIME
        waits = self.bench.probe(
            self.bench.app,
            self.lane.queue,
            count,
            rate=RATE,
            key=lambda number: f"B {first + number}" if keyed else None,
        )
        condition.waits.extend(waits)
        condition.times.extend((first + number) / RATE for number in range(count))
        condition.rounds.append(Condition("", waits).percentile(0.99))

    def work(self, count: int, key: str | None) -> float:
        """Send so many tasks that take a slot; returns the seconds that took."""
        began = time.monotonic()
        task = self.bench.app.tasks["prove.work"]
        task.send_many(itertools.repeat((WORK_TIME, key), count), lane=self.lane.name, key=key)
        return time.monotonic() - began

    @contextmanager
    def flood(self, count: int, key: str | None) -> Iterator[float]:
        """Have `count` tasks wait, for as long as the block; yields the seconds of sending."""
        sent_in = self.work(count, key)
        self._await_full()
        yield sent_in
        if not self.store.counts().waiting:
            raise UsageError(
                f"the flood of {count:,} tasks ran dry before the end: give --slow more"
            )
        self._clear()

    @contextmanager
    def one_after_another(self) -> Iterator[None]:
        """Keep every slot busy, for as long as the block: the next is sent when one ends."""
        self.bench.redis.set(AGAIN, "")
        self.work(self.held, FLOOD_KEY)
        self._await_full()
        yield
        self.bench.redis.delete(AGAIN)
        self._clear()

    def _await_full(self) -> None:
        most = 1 if self.lane.rate_per_key else self.held
        self.bench.await_workers(lambda: self.store.counts().leased >= most, "took no tasks")

    def _clear(self) -> None:
        """Nothing waits, nothing runs."""
        for _ in self.store.purge("waiting", 1_000_000):
            pass
        self.bench.await_workers(lambda: not self.store.counts().leased, "did not end its tasks")
