"""What a worker process holds: renewed while it lives, given up in order when it stops."""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import RedisError, ResponseError

from .. import logs
from ..counting import OTHER, Addition, Load, Tally
from ..excerpt import ERROR, TRACEBACK, excerpt
from ..results import store_lost
from . import identity
from .clock import Clock
from .counters import Counters
from .store import BATCH, FULL, LOOK, REVOKED, Rescued, Store, in_order, number_of

_TELL = 1.0  # seconds between two times that Redis is told what was counted
_IDLE = 60.0  # seconds likewise, where nothing was
_AWAY = 1.0  # seconds between two tries while the broker is away: who renews first keeps its leases
_UNTIL_ROOM = 600.0  # seconds until there is another look for room for a dead letter
_AGAIN = 60.0  # seconds between two lines of log that say the same of many messages
_NAME = 1_000  # characters of a task's name or id in a report, likewise:
_LONGEST = {"error": ERROR, "traceback": TRACEBACK}
_FULL = (
    "the lane's dead letters are full of messages that never ran, which are not dropped "
    "(dead_cap is %d, dead_size %d bytes): others like them stay delayed until `dead retry` or "
    "`dead purge` makes room"
)

logger = logging.getLogger(__name__)


class Leases:
    """The leases of this process, with a thread that renews them.

    They outlive channels and connections: a task may run through an outage of the broker and be
    acknowledged after it (on stock kombu the acknowledgement dies with the channel, and the worker
    with it). Nothing here raises when the broker is away; what it could not be told, the thread
    tells it later.
    """

    def __init__(  # noqa: PLR0913 - the lane's own keys, by name
        self,
        store: Store,
        clock: Clock,
        *,
        node: str,
        concurrency: int,
        lease: float,
        max_deliveries: int,
        dead_cap: int,
        dead_size: int,
        dead_age: float,
        latency_slo: float,
        running: Callable[[], int],
    ) -> None:
        """Take back what an earlier worker of this name held, and start renewing.

        Args:
            clock: the server's; each look at the leases sets it.
            node: the worker's node name.
            concurrency: tasks that a worker of the lane runs at once.
            lease: seconds after which others may take what was not renewed.
            max_deliveries: after so many without an acknowledgement, a message is poison.
            dead_cap: dead letters that the lane keeps.
            dead_size: bytes of them that it keeps.
            dead_age: seconds that it keeps those whose task ran.
            latency_slo: seconds that a task may wait until it starts.
            running: how many tasks run.
        """
        self.store, self.clock, self.lease = store, clock, lease
        self.owner = identity.new_owner(node)
        self.concurrency = concurrency
        self.max_deliveries = max_deliveries
        self.dead_cap, self.dead_size, self.dead_age = dead_cap, dead_size, dead_age
        self.held: dict[str, None] = {}  # ids, in the order in which they were taken
        self.last = 0  # the highest number of a lease that was held
        self._done: list[str] = []  # ids to acknowledge with the next exchange
        # What the broker could not be told, by id: the ways to tell it.
        self._pending: dict[str, Callable[[list[str]], None]] = {}
        self._letters: dict[str, dict[str, Any]] = {}  # reports of dead letters, by id, likewise
        self._said: dict[str, float] = {}  # errors that were logged, and when, monotonic seconds
        self._away = False  # the last command failed: the thread finds out when it is back
        self._lock = threading.Lock()
        self.tally, self._running = Tally(latency_slo), running
        self._counters = Counters(store)
        self._batch = 0  # the number of the last that Redis was told, or may have been
        self._additions: list[Addition] = []  # of that, until it surely was
        self._load: Load | None = None  # when Redis was last told
        self._told_at = -_IDLE  # monotonic seconds
        self._telling = threading.Lock()
        self._stopping = False
        self._ended = False
        self._noting = threading.Lock()  # while the thread notes that this worker is there
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # may be put to in a handler
        self.clock.learn(self.store.renew([], lease)[0])
        self._renew([])
        self._reclaim_from_predecessors()
        threading.Thread(target=self._keep, name="leases", daemon=True).start()

    def _reclaim_from_predecessors(self) -> None:
        """Take back at once what workers of this name held that have ended for sure."""
        node, now = identity.node_of(self.owner), self.clock.now()
        for owner, (_, note) in self.store.workers().items():
            if owner == self.owner or identity.node_of(owner) != node:
                continue
            if identity.is_gone(note, now):
                self._settle_poison(
                    self.store.rescue_from(
                        owner, lease=self.lease, at_once=self.concurrency, most=self.max_deliveries
                    )
                )
            elif identity.is_alive_here(note, now):
                logger.warning(
                    "another worker is called %s: give each a name of its own, "
                    "with --instance or -n",
                    node,
                )
        self.store.forget_old_workers(now)

    def hold(self, ids: Sequence[str]) -> None:
        """Renew these from now on; `ids` in the order in which they were taken."""
        self.held.update(dict.fromkeys(ids))
        self.last = max([self.last, *map(number_of, ids)])

    def still_ours(self, ids: Sequence[str]) -> set[str]:
        """Renew these now; those of them that nobody has taken back."""
        return set(self._renew(ids))

    def acknowledge(self, id_: str, *, at_once: bool, revoked: bool = False) -> None:
        """Forget a message that is done with.

        Args:
            at_once: tell Redis now; else the next round does.
            revoked: its task was revoked, so that even a lock for a time goes.
        """
        self.held.pop(id_, None)
        with self._lock:
            self._done.append(f"{REVOKED}{id_}" if revoked else id_)
        if at_once:
            self.send_acks()

    def take_acks(self) -> list[str]:
        """Ids that the caller will acknowledge; if that fails, it gives them to `keep_acks`."""
        with self._lock:
            done, self._done = self._done, []
        return done

    def keep_acks(self, ids: Sequence[str]) -> None:
        """These may not have been acknowledged: the thread does it."""
        self._pending.update(dict.fromkeys(ids, self.store.acknowledge))

    def send_acks(self) -> None:
        """Acknowledge what has gathered."""
        self._tell(self.take_acks(), self.store.acknowledge)

    def hand_back(self, ids: Sequence[str]) -> None:
        """Return messages to their queue; a stop, or a full worker, is no delivery."""
        self._tell(ids, self.store.hand_back)

    def requeue(self, ids: Sequence[str]) -> None:
        """Return messages to their queue whose tasks may have killed a process: that counts."""
        self._tell(ids, self._count_and_requeue)

    def postpone(self, due: dict[str, float]) -> None:
        """Have messages wait in Redis, each until its seconds since 1970 by the server's clock."""
        self._tell(list(due), lambda ids: self.store.postpone({id_: due[id_] for id_ in ids}))

    def await_release(self, id_: str, most: float) -> float | None:
        """Have a message wait for workers that know its task, as `Store.await_release`.

        When the broker is away, it goes back to the queue as soon as that is back.
        """
        if not self._away:
            try:
                wait = self.store.await_release(id_, most=most)
            except (RedisError, OSError):
                pass
            else:
                if wait is not None:
                    self.held.pop(id_, None)
                return wait
        self.hand_back([id_])
        return 0.0

    def give_back(self, id_: str, wait: float) -> bool:
        """Have a message that could not be handled come again after `wait` seconds, or a multiple.

        Returns:
            False: it was delivered too often, and is to be set aside.
        """
        if not self._away:
            try:
                back = self.store.give_back(id_, wait=wait, most=self.max_deliveries)
            except (RedisError, OSError):
                self._away = True
            else:
                if back:
                    self.held.pop(id_, None)
                return back
        self.hand_back([id_])  # as soon as the broker is there again; not counted
        return True

    def set_aside(self, id_: str, report: dict[str, Any]) -> None:
        """Make a message a dead letter; when the broker is away, as soon as it is back.

        One that never ran, and for which the lane has no room, waits among the delayed ones.
        """
        report = {
            key: excerpt(value, _LONGEST.get(key, _NAME)) if isinstance(value, str) else value
            for key, value in report.items()
        }
        if self._away:
            self._letters[id_] = report
            return
        try:
            dropped = self._keep_letter(id_, report)
        except (RedisError, OSError) as error:
            self._letters[id_] = report
            if isinstance(error, ResponseError):
                self._say("the broker refuses a dead letter, which stays leased: %s", error)
            return
        self._letters.pop(id_, None)
        if dropped == FULL:
            self._await_room(id_)
            return
        self.held.pop(id_, None)
        if dropped >= 0:
            shown = self._shown(report)
            # What no worker knows may be called anything, as often as it likes.
            name = OTHER if report["reason"] in ("unknown", "malformed") else shown["name"]
            self.tally.ended(str(name or OTHER), report["reason"])
            logger.error(
                "set aside as dead letter %s/%s: %s, %s",
                self.store.keys.lane,
                number_of(id_),
                report["reason"],
                report.get("error"),
                extra={"data": shown},
            )
        if dropped > 0:
            logger.error(
                "dropped the %d oldest dead letters of tasks that ran, for want of room or "
                "their age (dead_cap, dead_size, dead_age)",
                dropped,
            )

    @staticmethod
    def _shown(report: dict[str, Any]) -> dict[str, Any]:
        """For what reads records of the log, in Celery's form: docs/sentry.md goes by it."""
        about = logs.subject()
        return {
            "name": report.get("task") or about.get("task"),
            "id": report.get("task_id") or about.get("id"),
            "reason": report["reason"],
            "raised": report.get("traceback") is not None,
        }

    def await_room(self, id_: str) -> bool:
        """Whether there is no room for the dead letter of a task that never ran: it waits then.

        Asked before its failure is told, so that this is done once, when the letter is written.
        """
        try:
            full = not self._away and self.store.is_full(cap=self.dead_cap, size=self.dead_size)
        except (RedisError, OSError):
            return False
        if full:
            self._await_room(id_)
        return full

    def _await_room(self, id_: str) -> None:
        self._say(_FULL, self.dead_cap, self.dead_size)
        self.postpone({id_: self.clock.now() + _UNTIL_ROOM})

    def _keep_letter(self, id_: str, report: dict[str, Any]) -> int:
        """As `Store.set_aside`; what the server refuses is kept with the least that can be said."""
        bounds: Any = {"cap": self.dead_cap, "size": self.dead_size, "age": self.dead_age}
        try:
            return self.store.set_aside(id_, report, **bounds)
        except ResponseError as error:
            refused = f"the broker refused the report: {error}"
            short = {"reason": report["reason"], "error": excerpt(refused, _NAME)}
            return self.store.set_aside(id_, short, **bounds)

    def _say(self, what: str, *args: object) -> None:
        """Log an error that each message of many may meet, but once a minute."""
        now = time.monotonic()
        if now - self._said.get(what, -_AGAIN) >= _AGAIN:
            self._said[what] = now
            logger.error(what, *args)

    def stop(self) -> None:
        """Note at once that the process was told to stop; safe in a signal's handler."""
        self._stopping = True
        self._wake.put(None)

    def tell_counts(self) -> None:
        """Tell Redis what was counted; what it does not take is told with the next.

        Raises:
            RedisError: when the broker is away.
        """
        now = time.monotonic()
        load = Load(
            node=identity.node_of(self.owner),
            slots=self.concurrency,
            running=self._running(),
            clock=round(self.clock.behind, 1),
        )
        with self._telling:
            if self._ended:
                return
            if not self._additions:
                self._additions = self.tally.take()
                self._batch += bool(self._additions)
            if not self._additions:
                if load == self._load and now - self._told_at < _IDLE:
                    return
                self._batch += 1
            told = self.clock.now()
            try:
                self._counters.add(
                    self._additions, now=told, owner=self.owner, batch=self._batch, load=load
                )
            except ResponseError as error:
                self._say("the broker refuses what was counted, which is kept: %s", error)
                return
            self._additions, self._load, self._told_at = [], load, now

    def end(self) -> None:
        """The process ends in order, and holds nothing any more."""
        with contextlib.suppress(RedisError, OSError):
            self.tell_counts()  # what could not be told before, if anything
            self.tell_counts()  # what came since
        if self.held or self._pending or self._away:
            return
        if self._noting.acquire(timeout=_AWAY):  # else the thread waits for a broker that is silent
            self._ended = True
            self._noting.release()
            with contextlib.suppress(RedisError, OSError):
                self.store.forget_worker(self.owner)

    def _tell(self, ids: Sequence[str], how: Callable[[list[str]], None]) -> None:
        """Tell the broker of these, or have the thread do it when it is away.

        Once it is known to be away, nobody waits for it: a stop, and the event loop, go on.
        """
        for id_ in ids:
            self.held.pop(id_, None)
        if ids and not self._away:
            try:
                how(list(ids))
            except (RedisError, OSError):
                self._away = True
                self._wake.put(None)
            else:
                return
        self._pending.update(dict.fromkeys(ids, how))

    def _count_and_requeue(self, ids: list[str]) -> None:
        self._settle_poison(self.store.requeue(ids, lease=self.lease, most=self.max_deliveries))

    def _settle_poison(self, rescued: Rescued) -> None:
        """Store the failure of what was delivered too often, then set it aside.

        In this order: should this process be killed in between, another does both again, and
        nobody waits for a result for ever.
        """
        for id_, deliveries, message in rescued.poison:
            error = f"delivered {deliveries} times, and never acknowledged"
            with logs.about_waiting(message):
                store_lost(message, error)
                self.set_aside(id_, {"reason": "poison", "error": error, "deliveries": deliveries})

    def _renew(self, ids: Sequence[str]) -> list[str]:
        """Renew, and learn what time it is; those that were not taken back meanwhile."""
        renewed: list[str] = []
        for start in range(0, max(1, len(ids)), BATCH):
            note = identity.note(self.clock.now(), stopping=self._stopping)
            with self._noting:
                owner = "" if self._ended else self.owner
                now, part = self.store.renew(
                    ids[start : start + BATCH], self.lease, owner=owner, note=note
                )
            self.clock.learn(now)
            renewed += part
        return renewed

    def _keep(self) -> None:
        """Thread: look after the leases for as long as the process lives."""
        away, wait = False, min(self.lease / 3, LOOK)
        while True:
            try:
                self._sleep(wait)
                wait = min(self.lease / 3, LOOK)
                soon = self._tend()
                away = self._away = False
                if soon is not None:
                    wait = min(wait, soon + 0.01)
            except (RedisError, OSError) as error:
                self._away = True
                wait = min(wait, _AWAY)
                if not away:
                    logger.warning("leases cannot be renewed, the broker is away: %s", error)
                away = True
            except Exception:
                # Without this thread every running task would be run again elsewhere.
                logger.exception("leases could not be looked after this time")

    def _sleep(self, seconds: float) -> None:
        """Wait, or until this thread is woken; meanwhile Redis is told what was counted."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            with contextlib.suppress(queue.Empty):
                return self._wake.get(timeout=min(_TELL, left))
            if not self._away and time.monotonic() - self._told_at >= _TELL:
                self.tell_counts()
        return None

    def _tend(self) -> float | None:
        """Renew what is held, tell what could not be told, take back what others let run out.

        Returns:
            Seconds until the next look makes sense, when that is known.
        """
        self._renew(list(self.held))
        self._away = False
        self.send_acks()
        self._tell_pending()
        for id_, report in list(self._letters.items()):
            self.set_aside(id_, report)
        self.store.promote(keyed=True)
        rescued = self.store.rescue_expired(
            lease=self.lease, at_once=self.concurrency, most=self.max_deliveries
        )
        self._settle_poison(rescued)
        # Of more there is no end in sight, and what is held here runs out, too: renew first.
        return 0.0 if rescued.more else rescued.wait

    def _tell_pending(self) -> None:
        """Tell the broker, now that it is back, in the order in which messages were taken."""
        ways: dict[Callable[[list[str]], None], list[str]] = {}
        for id_ in in_order(list(self._pending)):
            ways.setdefault(self._pending[id_], []).append(id_)
        for how, ids in ways.items():
            how(ids)
            for id_ in ids:
                self._pending.pop(id_, None)
