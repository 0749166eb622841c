"""The measurements: each of one arm, once. Whoever compares arms takes them in turn, in rounds."""

import itertools
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arms import APPS, Arm
from proc import Session, running

WAITED = "bench:waited"  # where `apps/work.py` tells of it
PROCESSES = 4  # of a worker whose throughput and memory are measured
FEW = 2  # of one whose delay is: as many as the machine has processors, here
SKIPPED = 200  # tasks that are run before those that count: processes start, connections are made
SPARE = 500  # tasks that still wait when the last that counts was taken
BURN = 0.2  # seconds of processor time of a task of the flood
FLOOD_A_SECOND = FEW / BURN  # at most; a flood is queued that outlasts what is measured beside it
SETTLED = 2.0  # seconds after its last task, when an idle worker's memory is read
SENDING = 600.0  # seconds that a process that sends may take
HEAD = 1_000  # messages that wait where the cost of a task is compared with many waiting

Figures = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much of each is measured, in each round."""

    sends: int = field(default=10_000, metadata={"help": "tasks sent one at a time"})
    drained: int = field(default=10_000, metadata={"help": "tasks run by a worker, for its rate"})
    starts: int = field(default=400, metadata={"help": "tasks whose wait is measured, twice"})
    rate: int = field(default=40, metadata={"help": "of these sent a second"})
    bulk: int = field(default=20_000, metadata={"help": "tasks sent at once"})
    waiting: int = field(default=1_000_000, metadata={"help": "the long queue"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A broker of its own, and where arms run."""

    redis: Any
    env: Mapping[str, str]
    folder: Path
    sizes: Sizes

    def enqueue(self, arm: Arm) -> Figures:
        """Sends one at a time."""
        self.empty()
        took = self.send(arm, "one_at_a_time", self.sizes.sends)
        return {"enqueue_rate": took["rate"], "enqueue_cpu": took["cpu"]}

    def bulk(self, arm: Arm) -> Figures:
        """Sends of many."""
        self.empty()
        took = self.send(arm, "many", self.sizes.bulk)
        return {"bulk_rate": took["rate"]} if took else {}

    def drain(self, arm: Arm) -> Figures:
        """Tasks a second, and CPU milliseconds of all worker processes for each."""
        self.empty()
        self.send(arm, "fill", SKIPPED + self.sizes.drained + SPARE)
        return self.consume(arm, self.sizes.drained)

    def consume(self, arm: Arm, count: int) -> Figures:
        """As `drain`, of what waits: from when some were taken until `count` more have been."""
        queue = arm.queues["quick"]
        waiting = self.redis.llen(queue)
        with self.worker(arm, "quick", PROCESSES) as worker:
            begin = waiting - SKIPPED
            worker.until(lambda: self.redis.llen(queue) <= begin, "no start", every=0.001)
            began, used, first = time.monotonic(), worker.cpu(), self.redis.llen(queue)
            worker.until(lambda: self.redis.llen(queue) <= first - count, "no end", every=0.005)
            done, took = first - self.redis.llen(queue), time.monotonic() - began
            used = worker.cpu() - used
            self.redis.delete(queue)
        return {"drain_rate": done / took, "drain_cpu": 1000 * used / done}

    def latency(self, arm: Arm) -> Figures:
        """Milliseconds from a send to the start, idle and beside a flood of another queue."""
        self.empty()
        with self.worker(arm, "quick", FEW) as quick:
            self.waits(arm, quick, 20)
            idle = self.waits(arm, quick, self.sizes.starts)
            lasts = self.sizes.starts / self.sizes.rate + 20
            self.send(arm, "burn", math.ceil(lasts * FLOOD_A_SECOND), BURN)
            queue = arm.queues["slow"]
            waiting = self.redis.llen(queue)
            with self.worker(arm, "slow", FEW) as slow:
                # Each of its processes has run one.
                slow.until(lambda: self.redis.llen(queue) <= waiting - 3 * FEW, "no flood")
                flooded = self.waits(arm, quick, self.sizes.starts)
                if not self.redis.llen(queue):
                    raise AssertionError(f"the flood of {arm.name} was over too early")
                self.redis.delete(queue)
        return {
            "p50_idle": percentile(idle, 0.5),
            "p99_idle": percentile(idle, 0.99),
            "p50_flood": percentile(flooded, 0.5),
            "p99_flood": percentile(flooded, 0.99),
            "flood_ratio": percentile(flooded, 0.99) / percentile(idle, 0.99),
        }

    def memory(self, arm: Arm) -> Figures:
        """MiB of an idle worker's processes that have run some tasks."""
        self.empty()
        with self.worker(arm, "quick", PROCESSES) as worker:
            self.waits(arm, worker, 20)
            time.sleep(SETTLED)
            return {"memory": worker.pss()}

    def head(self, arm: Arm) -> Figures:
        """CPU milliseconds for each task at the head of a short and of a long queue."""
        if arm.name != "ours":
            return {}
        short, long = (self._at_the_head_of(arm, each) for each in (HEAD, self.sizes.waiting))
        return {"head_short": short, "head_long": long, "head_ratio": long / short}

    def _at_the_head_of(self, arm: Arm, waiting: int) -> float:
        """As the CPU of `drain`, of a queue that copies of what waits in it keep this long."""
        self.empty()
        queue, count = arm.queues["quick"], self.sizes.drained
        self.send(arm, "fill", HEAD)
        copies = itertools.cycle(self.redis.lrange(queue, 0, -1))
        sent = HEAD

        def taken() -> int:
            """How many so far; they are replaced, and as many missing ones as are not there yet."""
            nonlocal sent
            gone = sent - (left := self.redis.llen(queue))
            for missing in range(waiting - left, 0, -HEAD):
                batch = list(itertools.islice(copies, min(missing, HEAD)))
                self.redis.lpush(queue, *batch)
                sent += len(batch)
            return int(gone)

        taken()
        with self.worker(arm, "quick", PROCESSES) as worker:
            worker.until(lambda: taken() >= SKIPPED, "no start", every=0.005)
            used, first = worker.cpu(), taken()
            worker.until(lambda: taken() >= first + count, "no end", every=0.005)
            used, done = worker.cpu() - used, taken() - first
            self.empty()
        return 1000 * used / done

    def waits(self, arm: Arm, worker: Session, count: int) -> list[float]:
        """Milliseconds that each of `count` tasks waited."""
        self.redis.delete(WAITED)
        self.send(arm, "pace", count, self.sizes.rate)
        worker.until(lambda: self.redis.llen(WAITED) >= count, f"not all of {count} tasks started")
        return [1000 * float(wait) for wait in self.redis.lrange(WAITED, 0, -1)]

    def empty(self) -> None:
        """At once: what is freed in the background would take processor time from what follows."""
        self.redis.execute_command("FLUSHALL", "SYNC")

    def send(self, arm: Arm, way: str, *numbers: float) -> Figures:
        """Have `apps/send.py` do it; what it says."""
        command = [sys.executable, str(APPS / "send.py"), arm.module, way, *map(str, numbers)]
        done = subprocess.run(
            command,
            env=self.env,
            cwd=self.folder,
            check=True,
            stdout=subprocess.PIPE,
            timeout=SENDING,
            start_new_session=True,  # Ctrl-C is told to us alone; it ends on our way out
        )
        figures: Figures = json.loads(done.stdout)
        return figures

    @contextmanager
    def worker(self, arm: Arm, lane: str, processes: int) -> Iterator[Session]:
        """Of this lane, for as long as the block."""
        command = arm.command(lane, processes, self.env)
        with running(command, self.env, self.folder / lane) as session:
            yield session


def percentile(values: list[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


#: By the name that `--only` takes, in the order in which they are measured.
MEASURES: dict[str, Callable[[Bench, Arm], Figures]] = {
    "enqueue": Bench.enqueue,
    "drain": Bench.drain,
    "latency": Bench.latency,
    "bulk": Bench.bulk,
    "memory": Bench.memory,
    "head": Bench.head,
}
