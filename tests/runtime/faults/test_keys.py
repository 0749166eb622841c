"""Within a lane keys take turns, and the limits of a key hold through kills and restarts."""

import itertools
import json
import random
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from conftest import MakeFleet
from harness import Process, wait_until
from support import SOAK, Fleet, Server, message, ticks

from acme_tasks.lanes.redis.store import BATCH, KEY, Keys, Store

_dice = random.Random(13)  # noqa: S311 - moments, not secrets
LEASE = 5.0  # seconds: a worker of a busy machine may be silent for as long, and is not dead


def store_of(fleet: Fleet) -> Store:
    return Store(fleet.redis, Keys.of(fleet.lane))


def send(fleet: Fleet, messages: Sequence[dict[str, Any]], *, due: float | None = None) -> None:
    """Send messages with a key, as our senders do; to stock, as any producer does."""
    if fleet.stock:
        fleet.send(*messages)
        return
    for start in range(0, len(messages), BATCH):
        raw = [json.dumps(each) for each in messages[start : start + BATCH]]
        assert store_of(fleet).send(raw, due=due) == [""] * len(raw)


def of_key(key: str, names: Sequence[str], seconds: float = 0.0, task: str = "tick") -> Any:
    return [message(task, [name, seconds], **{KEY: key}) for name in names]


def of_keys(keys: str, count: int, seconds: float) -> dict[str, list[Any]]:
    """By key, so many messages, whose tasks are named by it: `a-0`, `a-1`, ..."""
    return {
        key: of_key(key, [f"{key}-{number}" for number in range(count)], seconds, "tick_of")
        for key in keys
    }


def send_in_turn(fleet: Fleet, messages: dict[str, list[Any]]) -> list[str]:
    """Send them, and return the names of their tasks."""
    send(fleet, list(itertools.chain.from_iterable(zip(*messages.values(), strict=True))))
    return [f"{key}-{number}" for key, each in messages.items() for number in range(len(each))]


class Squad:
    """Three workers, of which one is killed at a time."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.workers: dict[int, Process] = {}  # by instance
        for instance in (1, 2, 3):
            self.workers[instance] = fleet.start(instance=instance, ready=False)
        for process in self.workers.values():
            process.await_log(" ready.")
        self.killed: dict[int, float] = {}  # by process group, when all of it was gone

    def kill_one(self, *, for_good: bool) -> None:
        """At a moment at random; another starts in its place, or one that knows nothing of it."""
        self.fleet.await_progress(_dice.randint(100, 900))  # bytes; a run is some 70
        time.sleep(_dice.random() * 0.05)
        instance = _dice.choice(list(self.workers))
        process = self.workers.pop(instance)
        self.fleet.kill(process)
        self.killed[process.process.pid] = time.time()
        if for_good:
            instance = max(self.workers) + 1 + instance
        self.workers[instance] = self.fleet.start(instance=instance, ready=False)

    def await_all(self, names: Sequence[str]) -> None:
        self.fleet.await_ended(names, "all to run", 90)
        store = store_of(self.fleet)

        def is_over() -> bool:
            counts = store.counts()
            return not (counts.waiting or counts.delayed or counts.leased)

        wait_until(is_over, "nothing to be left")


def by_key(runs: Sequence[tuple[str, float, float]]) -> dict[str, list[tuple[float, float]]]:
    """Start and end of each run, by the key in its name."""
    found = defaultdict(list)
    for name, start, end in runs:
        found[name.partition("-")[0]].append((start, end))
    return found


def most_at_once(spans: Sequence[tuple[float, float]]) -> int:
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    return max(itertools.accumulate(change for _, change in changes))


@pytest.mark.ours_only("stock has no keys")
@pytest.mark.timeout(SOAK)
def test_no_key_ever_runs_more_than_its_limit_and_no_place_is_lost(
    make_fleet: MakeFleet, server: Server, rounds: int
) -> None:
    """Over kills, rescues, and a restart of the broker. Seen without the limit: 4 at once."""
    fleet = make_fleet(max_running_per_key=2, lease=f"{LEASE}s", max_deliveries=1000)
    names = send_in_turn(fleet, of_keys("abcde", 60 * rounds, 0.2))
    squad = Squad(fleet)
    for _ in range(rounds):
        squad.kill_one(for_good=False)
        squad.kill_one(for_good=True)
        server.restart()
        squad.kill_one(for_good=True)
        squad.kill_one(for_good=False)
    squad.await_all(names)
    at_once = {
        key: most_at_once(spans) for key, spans in by_key(fleet.ledger.runs(squad.killed)).items()
    }
    again = fleet.ledger.started.total() - len(names)
    print(f"{len(squad.killed)} kills, {again} started again; most at once: {at_once}")
    assert at_once == dict.fromkeys("abcde", 2)
    for part in ("running", "tokens", "turns", "waiting", "leased"):
        assert not fleet.redis.exists(fleet.keys(f"keyed:{part}")), part
    # Each has both of its places.
    held = [f"{key}-held-{number}" for key in "abcde" for number in (1, 2)]
    for name in held:
        send(fleet, [message("hold", [name], **{KEY: name[0]})])
    wait_until(lambda: set(held) <= fleet.ledger.started.keys(), "two of each key to run at once")
    for name in held:
        fleet.mend(name)


@dataclass
class Noted:
    """What was seen of leases, in seconds since 1970 by the clock of Redis."""

    #: By task's name, when its leases began; later than that by up to `blind`, for one that was
    #: renewed before it was seen.
    began: dict[str, list[float]] = field(default_factory=dict)
    #: By key, until when each of its leases held the next one back.
    held_back: dict[str, set[float]] = field(default_factory=lambda: defaultdict(set))
    blind: float = 0.0  # seconds, the longest time between two looks


@contextmanager
def leases_noted(fleet: Fleet) -> Iterator[Noted]:
    """What is seen of leases meanwhile."""
    first: dict[str, float] = {}
    named: dict[str, str] = {}
    found = Noted()
    over = threading.Event()

    def look() -> None:
        looked = time.monotonic()
        while not over.wait(0.005):
            with fleet.redis.pipeline() as pipe:
                pipe.zrange(fleet.keys("leases"), 0, -1, withscores=True)
                pipe.hgetall(fleet.keys("leased"))
                pipe.zrange(fleet.keys("keyed:rates"), 0, -1, withscores=True)
                ends, held, rates = pipe.execute()
            found.blind = max(found.blind, time.monotonic() - looked)
            looked = time.monotonic()
            for key, until in rates:
                found.held_back[key.decode()].add(until)
            for id_, end in ends:
                # The first end is the earliest: each renewal puts it off.
                first.setdefault(id_, end - fleet.lane.lease)
                if id_ not in named and id_ in held:
                    named[id_] = json.loads(held[id_])["headers"]["shadow"]

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()
        for id_, began in first.items():
            found.began.setdefault(named[id_], []).append(began)


@pytest.mark.ours_only("stock has no keys")
@pytest.mark.timeout(SOAK)
def test_no_two_starts_of_a_key_are_closer_than_its_rate_allows(
    make_fleet: MakeFleet, rounds: int
) -> None:
    """Over three workers and kills; and they do not wait for much longer than they must.

    A start is counted when a worker is given the message. The task itself starts some milliseconds
    later, or on a busy machine more, so that two of them can be closer by as much as the first of
    them was late: that is measured, and allowed. Seen without the rate: in the same step.
    """
    interval = 0.2
    fleet = make_fleet(rate_per_key="5/s", lease=f"{LEASE}s", max_deliveries=1000)
    messages = of_keys("abc", 40 * rounds, 0.1)
    for key, each in messages.items():
        for number, one in enumerate(each):
            one["headers"]["shadow"] = f"{key}-{number}"
    names = send_in_turn(fleet, messages)
    with leases_noted(fleet) as noted:
        squad = Squad(fleet)
        for _ in range(rounds):
            squad.kill_one(for_good=False)
            squad.kill_one(for_good=True)
            squad.kill_one(for_good=False)
        squad.await_all(names)
    runs = fleet.ledger.runs(squad.killed)
    late = 0.0
    for name, start, _ in runs:
        begun = [at for at in noted.began.get(name, []) if at <= start + 0.001]
        late = max(late, start - max(begun)) if begun else late
    late += noted.blind
    starts = noted.held_back.values()
    gaps = [b - a for each in starts for a, b in itertools.pairwise(sorted(each))]
    print(
        f"{len(squad.killed)} kills, {len(runs)} runs of {len(names)}, {len(gaps) + 3} leases seen;"
        f" closest: {min(gaps):.6f} s; a task starts up to {late * 1000:.0f} ms after its lease"
    )
    assert len(gaps) > 0.8 * len(names), "most were seen"
    assert min(gaps) > interval - 0.0001  # a float of today's time, and its rounding
    assert statistics.median(gaps) < 1.5 * interval
    for spans in by_key(runs).values():
        began = sorted(start for start, _ in spans)
        for first, then in itertools.combinations(range(len(began)), 2):
            assert began[then] - began[first] > (then - first) * interval - late - 0.001
    assert not fleet.redis.exists(fleet.keys("keyed:running"), fleet.keys("keyed:tokens"))


def ran_before(fleet: Fleet, name: str, since: float) -> int:
    """How many others started after `since`, seconds since 1970, and before this one."""
    (at,) = fleet.ledger.when(name)
    lines = fleet.ledger.path.read_text(encoding="utf-8").splitlines()
    starts = [float(line.split()[2]) for line in lines if line.startswith("start ")]
    return sum(since < each < at for each in starts)


@pytest.mark.stock("fails: did not start in the 2 minutes that the test waits")
def test_a_flood_of_one_key_does_not_delay_another(make_fleet: MakeFleet) -> None:
    fleet = make_fleet(concurrency=2)
    send(fleet, of_key("a", [f"a-{number}" for number in range(10_000)], 0.01))
    fleet.start()
    wait_until(lambda: len(fleet.ledger.started) > 20, "the flood to run")
    send(fleet, of_key("b", ["b"]))
    since = time.time()
    fleet.await_ended(["b"], "the one of another key")
    ahead = ran_before(fleet, "b", since)
    print(f"{ahead} of 10,000 started before it")
    # What both slots had, and the turn of the other key; what was noted late on a busy machine.
    assert ahead <= 2 * (fleet.lane.concurrency + 1)


@pytest.mark.ours_only("stock has no keys, and keeps what is delayed in its workers")
@pytest.mark.parametrize("flood", ["waiting", "due at once"])
def test_a_flood_of_one_key_delays_neither_what_has_none_nor_what_is_due(
    make_fleet: MakeFleet, flood: str
) -> None:
    """Of 20,000; a thousand of those that are due are sorted by key in one step."""
    fleet = make_fleet(concurrency=2)
    flooded = of_key("a", [f"a-{number}" for number in range(20_000)], 0.01)
    send(fleet, flooded, due=time.time() if flood == "due at once" else None)
    few = ("plain", "of-another-key", "delayed", "delayed-without-a-key")
    fleet.start()
    wait_until(lambda: len(fleet.ledger.started) > 20, "the flood to run")
    ahead = {}
    for name in few:
        due = time.time() + 0.2 if name.startswith("delayed") else None
        if name == "plain":
            fleet.send(*ticks([name]))
        elif name == "delayed-without-a-key":
            store_of(fleet).delay({json.dumps(message("tick", [name])): due})
        else:
            send(fleet, of_key("b", [name]), due=due)
        since = due or time.time()
        fleet.await_ended([name], name)
        ahead[name] = ran_before(fleet, name, since)
    print(f"of 20,000 {flood}, so many started before it: {ahead}")
    sorted_by_key = 20_000 / BATCH if flood == "due at once" else 0
    # At 0.01 s a task, also those that run while a busy machine has not noted it.
    for name, count in ahead.items():
        assert count <= 2 * (fleet.lane.concurrency + 1) + 2 * sorted_by_key, name


@pytest.mark.ours_only("stock has no keys")
def test_an_idle_worker_starts_what_has_a_key_as_fast_as_what_has_none(
    make_fleet: MakeFleet,
) -> None:
    fleet = make_fleet(concurrency=2)
    fleet.start()
    fleet.run_good("the start")
    waits: dict[str, list[float]] = {"plain": [], "keyed": []}
    for number, (kind, found) in itertools.product(range(40), waits.items()):
        name = f"{kind}-{number}"
        sent_at = time.time()
        if kind == "plain":
            fleet.send(*ticks([name]))
        else:
            send(fleet, of_key(f"k{number}", [name]))
        fleet.await_ended([name], name)
        found.append(fleet.ledger.when(name)[0] - sent_at)
    plain, keyed = (1000 * statistics.median(each) for each in waits.values())
    print(f"median from send to start: {plain:.1f} ms plain, {keyed:.1f} ms with a key")
    assert keyed < 3 * plain + 5
