"""Any interleaving of what several workers do to a lane, on a real Valkey: no message is lost.

hypothesis chooses what happens next: sending, with a key or to be sent once, delaying, fetching,
renewing, acknowledging, handing back, dying, rescuing, pausing, retrying, purging, and any of them
cut off half-way. After each step
the whole of Redis is compared with what must be there. Time passes by moving what Redis holds.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha1
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from harness import running_broker
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.exceptions import ResponseError

from acme_tasks.lanes.redis import clock as clock_module
from acme_tasks.lanes.redis import fetch as fetch_module
from acme_tasks.lanes.redis import store as store_module
from acme_tasks.lanes.redis.clock import Clock
from acme_tasks.lanes.redis.fetch import Fetch
from acme_tasks.lanes.redis.store import (
    FULL,
    LOOK,
    NO_LIMITS,
    PRIORITY_LISTS,
    RAN,
    STAND_IN,
    Keys,
    Limits,
    Store,
    in_order,
)

KEYS = Keys("quick", "quick_tasks")
LIMITS = (NO_LIMITS, Limits(running=1), Limits(running=2), Limits(interval=5.0), Limits(2, 5.0))
TOKEN = json.dumps(STAND_IN).encode()
LEASE = 15.0  # seconds
AT_ONCE = 2  # tasks that a worker runs at once
MOST = 2  # deliveries that make a message poison
CAP, SIZE, AGE = 2, 900, 1e9  # of dead letters: some are dropped here, for either
EXAMPLES = 50  # 800 were run when this was written, in three minutes


class Worker:
    """One worker process: what it knows, which is less than what Redis holds in its name."""

    def __init__(self, redis: Any, number: int, shift: float, limits: Limits) -> None:
        self.redis, self.shift = redis, shift  # seconds that its host's clock is ahead
        self.owner = f"quick-{number}@host#{number}"
        keys = Keys(KEYS.lane, KEYS.queue, limits)
        self.store = Store(redis, keys)
        self.clock = Clock(self.store.now)
        self.connection = redis.connection_pool.get_connection()
        self.fetch = Fetch(keys, owner=self.owner, lease=LEASE)
        self.held: list[str] = []
        self.done: list[str] = []  # acknowledged, and not told yet
        self.last = 0

    def ask(self, wanted: int) -> Any:
        """A round up to its replies, which the caller reads, or not."""
        acks, self.done = self.done, []
        commands = self.fetch.begin(wanted, acks, last=self.last)
        if len(self.fetch.round.commands) > 1:
            commands = commands[1:]  # the wait changes nothing, and takes half a second
        self.connection.send_packed_command(self.connection.pack_commands(commands))
        replies: list[Any] = [None] if len(self.fetch.round.commands) > 1 else []
        try:
            replies.append(self.connection.read_response())
        except ResponseError as error:
            replies.append(error)
        return replies


class Lane(RuleBasedStateMachine):
    """The steps, and what must be true after each."""

    redis: ClassVar[Any]

    @initialize(
        shifts=st.lists(st.sampled_from([0.0, -3600.0, 40.0]), min_size=2, max_size=2),
        limits=st.sampled_from(LIMITS),
    )
    def begin(self, shifts: list[float], limits: Limits) -> None:
        self.redis.flushdb()
        self.limits = limits
        self.store = Store(self.redis, Keys(KEYS.lane, KEYS.queue, limits))
        self.workers = [
            Worker(self.redis, number, shift, limits)
            for number, shift in enumerate(shifts, start=1)
        ]
        self.latest: dict[str, bytes] = {}  # by id, what takes the place of a message that waits
        self.redis.script_load(store_module.EXCHANGE)
        self.sent = 0
        self.there: Counter[bytes] = Counter()  # every message that has not left
        self.counted: dict[bytes, int] = defaultdict(int)  # deliveries of what came back
        self.served: str | None = None  # the key of which a message was leased last
        self.paused = False

    def teardown(self) -> None:
        for worker in getattr(self, "workers", []):
            worker.redis.connection_pool.release(worker.connection)

    # Sending

    def _message(self, **headers: Any) -> bytes:
        self.sent += 1
        whole = {"body": self.sent, "headers": {"id": _id(self.sent), **headers}}
        message = json.dumps(whole).encode()
        self.there[message] += 1
        return message

    @rule(step=st.sampled_from(["", *PRIORITY_LISTS]))
    def send(self, step: str) -> None:
        self.redis.lpush(KEYS.queue + step, self._message())

    @rule(worker=st.integers(0, 1), seconds=st.sampled_from([-5, 0, 3, 20]))
    def send_delayed(self, worker: int, seconds: float) -> None:
        """With a countdown, from a host whose clock is its own."""
        with _on_the_host_of(self.workers[worker]):
            due = self.workers[worker].clock.now() + seconds
        assert abs(due - seconds - self.store.now()) < 5, "a countdown is by the server's clock"
        self.store.delay({self._message(eta=due): due})

    @rule(
        key=st.sampled_from(["A", "A", "B", ""]),
        once=st.sampled_from(["", "", "done", "start", "latest"]),
        seconds=st.sampled_from([None, None, -5, 3]),
    )
    def send_with_a_key(self, key: str, once: str, seconds: float | None) -> None:
        """Or without one, and to be sent once, for which there are two locks."""
        id_, name = _id(self.sent + 1), f"lock-{key}"
        headers = {"lane_key": key} if key else {}
        if once:
            headers["lane_once"] = f"{once} 0 0 {id_} {name}"
        message = self._message(**headers)
        held = self.redis.get(KEYS(f"once:{name}")) if once else None
        due = None if seconds is None else self.store.now() + seconds
        (holder,) = self.store.send([message], due=due)
        assert (holder or None) == (held and held.decode().split(" ")[1])
        if holder:
            self.there[message] -= 1
            if once == "latest":
                (_, said) = self.redis.hget(KEYS("latest"), holder).split(b" ", 1)
                assert json.loads(said)["headers"]["id"] == holder
                self.latest[holder] = said

    @rule(number=st.integers(0, 1), wanted=st.integers(1, 2), seconds=st.sampled_from([None, -5]))
    def a_key_sends_more_than_may_start(
        self, number: int, wanted: int, seconds: float | None
    ) -> None:
        for _ in range(3):
            self.send_with_a_key("A", "", seconds)
        self.fetch(number, wanted, lost=False)

    @rule(number=st.integers(0, 1), key=st.sampled_from(["A", ""]))
    def what_runs_is_to_be_replaced(self, number: int, key: str) -> None:
        self.send_with_a_key(key, "done", None)
        self.fetch(number, 5, lost=False)
        self.send_with_a_key(key, "latest", None)

    # Working

    def _some(self, worker: Worker, share: float) -> list[str]:
        return worker.held[: max(1, round(share * len(worker.held)))]

    @rule(number=st.integers(0, 1), wanted=st.integers(1, 5), lost=st.booleans())
    def fetch(self, number: int, wanted: int, lost: bool) -> None:
        """Whose reply may be lost: then the worker does not know what it holds."""
        worker = self.workers[number]
        told = list(worker.done)
        before = self._leased()
        due = self._due("delayed")
        plain = self.redis.llen(KEYS.queue)
        turns = self.redis.exists(KEYS("keyed:state"))
        waited = self._waiting()
        may_start = {key for key, found in waited.items() if found and not self._is_held(key)}
        in_turn = self.redis.exists(KEYS("keyed:state"))
        replies = worker.ask(wanted)
        for id_ in told:
            self._done(before.pop(id_, None))
        self._put_in_place()
        after = self._leased()
        taken = [after[id_] for id_ in in_order(after.keys() - before.keys())]
        assert len(taken) <= wanted
        assert before.items() <= after.items(), "what was leased stays leased"
        assert not Counter(taken) & Counter(before.values()), "leased, and fetched again"
        from_due = [message for message in taken if message in due]
        assert not (self.paused and taken), "a paused lane gives nothing"
        if in_turn and taken:
            is_once = any(_once_of(each) for found in waited.values() for each in found)
            if may_start - {self.served} and not is_once:
                assert _key_of(taken[0]) != self.served, "who had the last turn has not the next"
            self.served = _key_of(taken[-1])
        if turns or self._keys_of(taken) != [""] * len(taken):
            self._take_turns(wanted, taken, waited)
        elif not self.paused and not self.latest:
            assert from_due == due[: len(from_due)], "first due, first fetched"
            assert len(taken) == min(wanted, len(due) + self._plain_before(plain, taken, due))
            if wanted > 1 and due and plain:
                assert 0 < len(from_due) < len(taken), "neither keeps the other waiting"
        if lost:
            worker.done += worker.fetch.lost()
        else:
            fetched = worker.fetch.end(replies)
            assert [each.message for each in fetched.messages] == taken
            worker.held += [each.id for each in fetched.messages]
            worker.last = max([worker.last, *(int(i.split("@")[0]) for i in worker.held)])

    def _take_turns(self, wanted: int, taken: list[bytes], waited: dict[str, list[bytes]]) -> None:
        """What is taken where messages have keys; `waited` by key, those due before the fetch."""
        keys = self._keys_of(taken)
        for key in set(keys) - {""}:
            of_key = [message for message in taken if _key_of(message) == key]
            if not any(_once_of(message) for message in waited.get(key, ())):
                assert of_key == waited[key][: len(of_key)], "first in, first out, within a key"
            if self.limits.running:
                running = self._keys_of(self._leased().values()).count(key)
                assert running <= self.limits.running
            if self.limits.interval:
                assert len(of_key) == 1, "starts of one key are apart"
        if self.paused:
            return
        left = {key for key, found in self._waiting().items() if found and not self._is_held(key)}
        for key in left:
            most = max(Counter(keys).values(), default=0)
            assert keys.count(key) >= most - 1, "keys take turns"
        assert not left or len(taken) >= wanted, "what may start is not left"

    def _is_held(self, key: str) -> bool:
        if not key:
            return False
        running = self._keys_of(self._leased().values()).count(key)
        if self.limits.running and running >= self.limits.running:
            return True
        return self.redis.zscore(KEYS("keyed:rates"), key) is not None

    def _due(self, name: str) -> list[bytes]:
        delayed = self.redis.zrange(KEYS(name), 0, -1, withscores=True)
        return [message for message, at in delayed if at <= self.store.now()]

    def _waiting(self) -> dict[str, list[bytes]]:
        """What may be fetched, by key, the next first; what is due is behind the rest."""
        found: dict[str, list[bytes]] = defaultdict(list)
        for place in self._places()[:-4]:
            for message in reversed(place):
                found[_key_of(message)].append(message)
        for name in ("delayed", "keyed:delayed"):
            for message in self._due(name):
                found[_key_of(message)].append(message)
        return found

    def _keys_of(self, messages: Iterable[bytes]) -> list[str]:
        return [_key_of(message) for message in messages]

    def _put_in_place(self) -> None:
        """What took the place of a message that was to start: that one is there no more."""
        pending = {id_.decode() for id_ in self.redis.hkeys(KEYS("latest"))}
        for id_ in self.latest.keys() - pending:
            new = self.latest.pop(id_)
            for old in list(self.there):
                if json.loads(old)["headers"]["id"] == id_ and old != new and self.there[old]:
                    self._gone(old)
                    self.there[new] += 1

    def _plain_before(self, plain: int, taken: list[bytes], due: list[bytes]) -> int:
        """What was to be had beside what is due: the queue, and its lists of priorities."""
        lists = sum(self.redis.llen(KEYS(name)) for name in PRIORITY_LISTS)
        now_in_queue = self.redis.llen(KEYS.queue)
        from_lists = sum(message not in due for message in taken) - (plain - now_in_queue)
        return plain + lists + from_lists

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(number=st.integers(0, 1), share=st.floats(0, 1), at_once=st.booleans())
    def acknowledge(self, number: int, share: float, at_once: bool) -> None:
        worker = self.workers[number]
        for id_ in self._some(worker, share) if worker.held else []:
            worker.held.remove(id_)
            worker.done.append(id_)
        if at_once:
            before = self._leased()
            worker.store.acknowledge(worker.done)
            for id_ in worker.done:
                self._done(before.pop(id_, None))
            worker.done = []

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(number=st.integers(0, 1), share=st.floats(0, 1))
    def hand_back(self, number: int, share: float) -> None:
        worker = self.workers[number]
        ids = self._some(worker, share) if worker.held else []
        back = [message for id_, message in self._leased().items() if id_ in ids]
        worker.store.hand_back(ids)
        worker.held = [id_ for id_ in worker.held if id_ not in ids]
        for message in back:
            self.counted[message] += 0
        if back and not self.redis.exists(KEYS("keyed:state")):
            assert self.redis.lindex(KEYS.queue, -1) in back, "at the front"
        for key in {_key_of(message) for message in back} - {""}:
            assert self.redis.lindex(KEYS(f"keyed:messages:{key}"), -1) in back, "at the front"

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(number=st.integers(0, 1), seconds=st.sampled_from([2, 30]))
    def postpone(self, number: int, seconds: float) -> None:
        worker = self.workers[number]
        ids = worker.held[:1]
        worker.store.postpone({id_: self.store.now() + seconds for id_ in ids})
        worker.held = worker.held[1:]

    @rule(number=st.integers(0, 1))
    def renew(self, number: int) -> None:
        worker = self.workers[number]
        _, renewed = worker.store.renew(worker.held, LEASE, owner=worker.owner, note="")
        assert set(renewed) == set(worker.held) & self._leased().keys()

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(number=st.integers(0, 1), cut=st.booleans())
    def requeue(self, number: int, cut: bool) -> None:
        """A task that killed its child; the worker may die before it sets poison aside."""
        worker = self.workers[number]
        for id_ in worker.held[:1]:
            worker.held.remove(id_)
            message = self._leased().get(id_)
            rescued = worker.store.requeue([id_], lease=LEASE, most=MOST)
            if message is not None:
                self.counted[message] += 1
            self._settle(worker, rescued, cut=cut)

    @precondition(lambda self: any(worker.held for worker in self.workers))
    @rule(
        number=st.integers(0, 1),
        reason=st.sampled_from(["failed", "unknown"]),
        error=st.sampled_from(["", "x" * 200]),
    )
    def set_aside(self, number: int, reason: str, error: str) -> None:
        worker = self.workers[number]
        for id_ in list(worker.held):
            if self._set_aside(worker, id_, {"reason": reason, "error": error}):
                worker.held.remove(id_)

    @rule(number=st.integers(0, 1), reason=st.sampled_from(["failed", "unknown", "unknown"]))
    def a_flood_is_set_aside(self, number: int, reason: str) -> None:
        for _ in range(3):
            self.send("")
        self.fetch(number, 5, lost=False)
        self.set_aside(number, reason, "")

    def _set_aside(self, worker: Worker, id_: str, report: dict[str, str]) -> bool:
        """Whether it is not held any more."""
        message = self._leased().get(id_)
        before, redis = self._letters(), self.redis.hgetall(KEYS("dead:totals"))
        dropped = worker.store.set_aside(id_, report, cap=CAP, size=SIZE, age=AGE)
        after = self._letters()
        if message is None:
            assert (dropped, after) == (-1, before)
            return True
        if dropped == FULL:
            assert report["reason"] not in RAN, "one that ran is always taken"
            assert after == before
            assert self._leased()[id_] == message, "nothing was done"
            never = [letter for letter in before.values() if letter[1] not in RAN]
            assert len(never) >= CAP or int(redis[b"never_bytes"]) >= SIZE
            return False
        gone = [letter for number, letter in before.items() if number not in after]
        assert len(gone) == dropped
        assert all(reason in RAN for _, reason in gone), "what never ran is never dropped"
        for old, _ in gone:
            self._gone(old)
        self.counted.pop(message, None)
        self._replaced(message)
        if dropped:
            ran = [number for number, letter in before.items() if letter[1] in RAN]
            assert [before[number] for number in ran[:dropped]] == gone, "the oldest first"
        return True

    def _letters(self) -> dict[int, tuple[bytes, str]]:
        """Message and reason of each dead letter, oldest first."""
        letters = self.store.dead_letters(self.store.dead_numbers())
        return {number: (message, report["reason"]) for number, message, report in letters}

    # Dying, and what others do about it

    @rule(number=st.integers(0, 1), certain=st.booleans())
    def die(self, number: int, certain: bool) -> None:
        """Killed; where that is certain, the next of its name takes all back at once."""
        dead = self.workers[number]
        dead.held, dead.done = [], []
        if certain:
            self._rescue(dead, [id_ for id_ in self._leased() if id_.endswith(dead.owner)])

    @rule(seconds=st.sampled_from([1.0, 6.0, 16.0]))
    def pass_time(self, seconds: float) -> None:
        """All that Redis holds becomes older."""
        for name in ("leases", "delayed", "keyed:delayed", "keyed:rates"):
            for member in self.redis.zrange(KEYS(name), 0, -1):
                self.redis.zincrby(KEYS(name), -seconds, member)
        for field in self.redis.hkeys(KEYS("watch")):
            self.redis.hincrbyfloat(KEYS("watch"), field, -seconds)

    @rule(number=st.integers(0, 1), times=st.integers(1, MOST), cut=st.booleans())
    def all_die_of_it(self, number: int, times: int, cut: bool) -> None:
        """Of a task that takes its worker along, again and again; then one looks, until sure."""
        for _ in range(times):
            self.fetch(number, 5, lost=True)
            for each in self.workers:
                each.held, each.done = [], []
            for seconds in (16.0, 6.0):
                self.pass_time(seconds)
                self.rescue(1 - number, cut)

    @rule(number=st.integers(0, 1), cut=st.booleans())
    def rescue(self, number: int, cut: bool) -> None:
        """Take back what ran out; two at once find it once."""
        worker = self.workers[number]
        ends = dict(self.redis.zrange(KEYS("leases"), 0, -1, withscores=True))
        over = [id_.decode() for id_, end in ends.items() if end <= self.store.now()]
        self._rescue(worker, over, expired=True, cut=cut)

    def _rescue(
        self, worker: Worker, ids: list[str], *, expired: bool = False, cut: bool = False
    ) -> None:
        before = self._leased()
        options: Any = {"lease": LEASE, "at_once": AT_ONCE, "most": MOST}
        if expired:
            watch = {key: float(at) for key, at in self.redis.hgetall(KEYS("watch")).items()}
            now = self.store.now()
            nobody_looked = now - watch.get(b"looked", 0.0) > 2 * LOOK
            rescued = worker.store.rescue_expired(**options)
            waits = rescued.wait is not None
            assert waits == (nobody_looked or now < watch.get(b"grace", 0.0))
            if waits:
                assert self._leased() == before, "owners are given time first"
                return
        else:
            rescued = worker.store.rescue_from(worker.owner, **options)
        for owner in {id_.partition("@")[2] for id_ in ids}:
            theirs = in_order(id_ for id_ in ids if id_.endswith("@" + owner))
            assert before.keys() >= set(theirs), "each lease has its message"
            for place, id_ in enumerate(theirs):
                self.counted[before[id_]] += int(place < AT_ONCE)
        assert self._leased().keys() == before.keys() - set(ids) | {i for i, _, _ in rescued.poison}
        again = self.workers[1 - self.workers.index(worker)].store.rescue_expired(**options)
        assert not again.poison, "what one has, another does not find"
        self._settle(worker, rescued, cut=cut)

    def _settle(self, worker: Worker, rescued: Any, *, cut: bool) -> None:
        for id_, deliveries, message in rescued.poison:
            assert deliveries == self.counted[message] >= MOST
            if not cut:
                self._set_aside(worker, id_, {"reason": "poison"})

    # The operator

    @rule()
    def pause_or_resume(self) -> None:
        self.paused = not self.paused
        self.store.pause(paused=self.paused)

    @rule(purge=st.booleans())
    def empty_the_dead(self, purge: bool) -> None:
        numbers = self.store.dead_numbers()
        letters = {number: message for number, message, _ in self.store.dead_letters(numbers)}
        if not letters:
            return
        if purge:
            assert self.store.purge_dead(numbers) == len(letters)
            for message in letters.values():
                self._gone(message)
        else:
            assert self.store.retry(letters) == len(letters)
            assert self.store.retry(letters) == 0

    @rule(what=st.sampled_from(["waiting", "delayed"]), most=st.integers(1, 9))
    def purge(self, what: str, most: int) -> None:
        waiting = [message for of_key in self._waiting().values() for message in of_key]
        there = waiting
        if what == "delayed":
            sets = self._places()[-4:-2]
            there = [message for each in sets for message in each if message not in waiting]
        gone = sum(self.store.purge(what, most))
        assert gone == min(most, len(there)), (gone, there)
        self._forget(there)

    @rule(what=st.sampled_from(["waiting", "delayed"]), key=st.sampled_from("AB"))
    def purge_a_key(self, what: str, key: str) -> None:
        waiting = self._waiting()[key]
        there = waiting
        if what == "delayed":
            delayed = self._places()[-3]
            of_key = [message for message in delayed if _key_of(message) == key]
            there = [message for message in of_key if message not in waiting]
        assert sum(self.store.purge(what, 1000, key=key)) == len(there)
        self._forget(there)

    def _forget(self, there: list[bytes]) -> None:
        left = {message for place in self._places() for message in place}
        pending = {id_.decode() for id_ in self.redis.hkeys(KEYS("latest"))}
        self.latest = {id_: each for id_, each in self.latest.items() if id_ in pending}
        for message in there:
            if message not in left:
                self._gone(message)

    # What must be true

    def _gone(self, message: bytes | None) -> None:
        if message is not None:
            self.there[message] -= 1
            self.counted.pop(message, None)

    def _done(self, message: bytes | None) -> None:
        """Acknowledged: what was to take its place while it ran is sent now."""
        self._gone(message)
        if message is not None:
            self._replaced(message)

    def _replaced(self, message: bytes) -> None:
        if new := self.latest.pop(json.loads(message)["headers"]["id"], None):
            self.there[new] += 1

    def _places(self) -> list[list[bytes]]:
        """Where messages are; the last four: delayed, with a key and without; leased; dead."""
        names = ["keyed:messages:", "queue", *PRIORITY_LISTS]
        names += ["keyed:messages:A", "keyed:messages:B"]
        lists = [self.redis.lrange(KEYS(name), 0, -1) for name in names]
        sets = [self.redis.zrange(KEYS(name), 0, -1) for name in ("delayed", "keyed:delayed")]
        hashes = [self.redis.hvals(KEYS(name)) for name in ("leased", "dead:messages")]
        return [
            [message for message in place if message != TOKEN] for place in (*lists, *sets, *hashes)
        ]

    def _leased(self) -> dict[str, bytes]:
        return {id_.decode(): each for id_, each in self.redis.hgetall(KEYS("leased")).items()}

    @invariant()
    def each_message_is_in_exactly_one_place(self) -> None:
        places = self._places()
        assert Counter(message for place in places for message in place) == +self.there

    @invariant()
    def what_is_noted_of_keys_agrees(self) -> None:
        """No place of a key leaks, and there is a token for each message that may start."""
        leased = Counter(self._keys_of(self._leased().values()))
        del leased[""]
        assert self._numbers("keyed:running") == leased
        lists = {key: self.redis.llen(KEYS(f"keyed:messages:{key}")) for key in ("", "A", "B")}
        may_start = {}
        for key in "AB":
            count = lists[key]
            if self.limits.running:
                count = min(count, self.limits.running - leased[key])
            if self.limits.interval:
                is_free = self.redis.zscore(KEYS("keyed:rates"), key) is None
                count = min(count, int(is_free))
            may_start[key] = count
        noted = self._numbers("keyed:keys")
        assert {key for key, count in lists.items() if key and count} <= noted.keys()
        assert +Counter({key: said // 2 for key, said in noted.items()}) == +Counter(may_start)
        turns = [key.decode() for key in self.redis.lrange(KEYS("keyed:turns"), 0, -1) if key]
        assert Counter(turns) == Counter({key: 1 for key, said in noted.items() if said % 2})
        assert set(turns) >= (+Counter(may_start)).keys()
        if not self.redis.exists(KEYS("keyed:state")):
            self.served = None
        state = self._numbers("keyed:state")
        tokens = self.redis.lrange(KEYS.queue, 0, -1)
        count = tokens.count(TOKEN)
        assert state["added"] - state["removed"] == count == sum(may_start.values()) + lists[""]
        seen = min(max(0, state["seen"] - state["removed"]), len(tokens))
        assert tokens[len(tokens) - seen :] == [TOKEN] * seen
        assert state["waiting"] == lists["A"] + lists["B"]
        assert state["free"] == len(+Counter(may_start))

    @invariant()
    def a_lock_is_held_for_a_task_that_is_there(self) -> None:
        *waiting, leased, _ = self._places()
        for name in ("lock-A", "lock-B", "lock-"):
            held = self.redis.get(KEYS(f"once:{name}"))
            modes = {
                (mode, id_)
                for places, kept in ((waiting, ("done", "start", "latest")), ([leased], ("done",)))
                for place in places
                for mode, id_ in (_once_of(message)[:2] for message in place if _once_of(message))
                if mode in kept
            }
            if held:
                assert held.decode().split(" ")[1] in {id_ for _, id_ in modes}
        for id_ in self.latest:
            assert self.redis.hexists(KEYS("latest"), id_)

    def _numbers(self, name: str) -> Counter[str]:
        noted = self.redis.hgetall(KEYS(name))
        return Counter(
            {key.decode(): int(count) for key, count in noted.items() if key != b"served"}
        )

    @invariant()
    def what_is_noted_of_them_agrees(self) -> None:
        assert set(self.redis.zrange(KEYS("leases"), 0, -1)) == set(
            self.redis.hkeys(KEYS("leased"))
        )
        dead = [set(self.redis.hkeys(KEYS(name))) for name in ("dead:messages", "dead:reports")]
        assert dead == [set(self.redis.zrange(KEYS("dead"), 0, -1))] * 2
        letters = self._letters()
        ran = {number for number, (_, reason) in letters.items() if reason in RAN}
        assert {int(number) for number in self.redis.zrange(KEYS("dead:ran"), 0, -1)} == ran
        totals = Counter()
        for number, (message, reason) in letters.items():
            kind = "ran" if reason in RAN else "never"
            report = self.redis.hget(KEYS("dead:reports"), str(number))
            totals += Counter({kind: 1, f"{kind}_bytes": len(message) + len(report)})
        noted = self.redis.hgetall(KEYS("dead:totals"))
        assert Counter({key.decode(): int(value) for key, value in noted.items()}) == totals
        assert totals["never"] <= CAP
        assert len(letters) <= CAP + 1
        counts = self.store.counts()
        parts = counts.waiting + counts.delayed + counts.leased + counts.dead
        assert (parts, counts.paused) == (self.there.total(), self.paused)

    @invariant()
    def deliveries_are_counted(self) -> None:
        digests = {sha1(each, usedforsecurity=False).hexdigest(): each for each in self.there}
        noted = {
            digests[digest.decode()]: int(count)
            for digest, count in self.redis.hgetall(KEYS("deliveries")).items()
        }
        assert noted == self.counted


def _id(number: int) -> str:
    """Of a task; as with Celery's, nothing else in its message reads like it."""
    return f"task-{number:06d}"


def _key_of(message: bytes) -> str:
    return str(json.loads(message)["headers"].get("lane_key", ""))


def _once_of(message: bytes) -> tuple[str, str, str] | None:
    """Mode, id and name of its lock."""
    said = json.loads(message)["headers"].get("lane_once")
    if not said:
        return None
    mode, _, _, id_, name = said.split(" ")
    return mode, id_, name


@contextmanager
def _on_the_host_of(worker: Worker) -> Iterator[None]:
    """With that host's clock."""
    real = clock_module.time
    shifted = SimpleNamespace(
        time=lambda: real.time() + worker.shift,
        monotonic=lambda: real.monotonic() + 1000 * worker.shift,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock_module, "time", shifted)
        yield


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with running_broker() as broker:
        import redis

        Lane.redis = redis.Redis.from_url(broker.url)
        yield
        Lane.redis.close()


def run(*, examples: int, steps: int, explain: bool = True) -> None:
    """So many examples of so many steps each; an AssertionError tells the shortest that fails."""
    run_state_machine_as_test(
        Lane,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate, Phase.shrink] if explain else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_interleaving_loses_doubles_or_miscounts_a_message() -> None:
    run(examples=EXAMPLES, steps=40)


FORGET = "redis.call('ZREM', KEYS[1], ARGV[index])"

#: Faults that this project has had, put back: the script, what it says, what it said.
FAULTS = {
    "what is due later runs first": (
        "exchange",
        "  lease(due[index])",
        "  lease(due[share + 1 - index])",
    ),
    "poison is found by every worker that looks": (
        "rescue",
        "      redis.call('ZADD', KEYS[2], now + lease, id)\n",
        "",
    ),
    "all that a dead worker held counts as delivered": (
        "rescue",
        "ARGV[index + 1] == '1'",
        "true",
    ),
    "a message is taken before it is leased": (
        "exchange",
        "  redis.call('HSET', KEYS[5], id, message)",
        "  if number % 7 > 0 then redis.call('HSET', KEYS[5], id, message) end",
    ),
    "what never ran is dropped for the cap": (
        "set_aside",
        "redis.call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')",
        "redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')",
    ),
    "what never ran is taken without room": (
        "set_aside",
        "if not ran and (total('never') >= cap or total('never_bytes') >= size) then",
        "if false then",
    ),
    "purged messages leave their counts behind": (
        "purge",
        "redis.call('HDEL', KEYS[1], digest, 'unknown:' .. digest)",
        "",
    ),
    "a letter that goes is still counted": ("take_dead", "forget(ARGV[index])", FORGET),
    "a key's place is not given back": (
        "parts/lane",
        "if redis.call('HINCRBY', running, key, -1) <= 0 then",
        "if false then",
    ),
    "what is owed to a key is not paid when a place is free": (
        "parts/lane",
        "if at_once > 0 or not_begun or redis.call('HGET', keys, key) == '0' then",
        "if false then",
    ),
    "a key at its limit is taken all the same": (
        "parts/lane",
        "want = math.max(0, math.min(want, free_places(key)))",
        "want = want",
    ),
    "what comes back stands behind the others of its key": (
        "parts/lane",
        "redis.call('RPUSH', messages .. key, message)",
        "redis.call('LPUSH', messages .. key, message)",
    ),
    "a key that had its turn has the next": (
        "parts/lane",
        "redis.call('LPUSH', turns, key)",
        "redis.call('RPUSH', turns, key)",
    ),
    "a new key waits for the one that had the last turn": (
        "parts/lane",
        "local last = not had_turn and redis.call('LINDEX', turns, 0)",
        "local last = false",
    ),
    "a purge leaves a lock behind": (
        "purge",
        "  ended(header(message, 'lane_once'), 'purged')",
        "",
    ),
    "a dead letter leaves a lock behind": (
        "set_aside",
        "ended(unmark(ARGV[1]), 'undone')",
        "unmark(ARGV[1])",
    ),
    "what is to take another's place is lost when that one has begun": (
        "parts/lane",
        "if message and how ~= 'purged' then",
        "if false then",
    ),
    "owners get no time after an outage": (
        "rescue",
        "  if now < grace then",
        "  if now < 0 then",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_model_finds_a_fault_that_is_put_back(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, right, wrong = FAULTS[fault]
    script = store_module._SCRIPTS / f"{name}.lua"
    assert script.read_text(encoding="utf-8").count(right) == 1
    build = Store.__init__

    def broken(self: Store, redis: Any, keys: Keys) -> None:
        build(self, redis, keys)
        for each, script in self._scripts.items():
            self._scripts[each] = redis.register_script(script.script.replace(right, wrong))

    monkeypatch.setattr(Store, "__init__", broken)
    if right in store_module.EXCHANGE:
        text = store_module.EXCHANGE.replace(right, wrong)
        monkeypatch.setattr(store_module, "EXCHANGE", text)
        digest = sha1(text.encode(), usedforsecurity=False).hexdigest()
        monkeypatch.setattr(fetch_module, "EXCHANGE_SHA", digest)
    with pytest.raises(AssertionError):
        run(examples=300, steps=40, explain=False)
