"""What a worker process holds: renewed while it lives, given up in order when it stops."""

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import RedisError

from ..results import store_lost
from . import identity
from .clock import Clock
from .store import LOOK, Rescued, Store, in_order, number_of

_AWAY = 1.0  # seconds between two tries while the broker is away: who renews first keeps its leases
_BATCH = 1000  # leases in one command, while which Redis serves nobody else

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
        dead_age: float,
    ) -> None:
        """Take back what an earlier worker of this name held, and start renewing.

        Args:
            clock: the server's; each look at the leases sets it.
            node: the worker's node name.
            concurrency: tasks that a worker of the lane runs at once.
            lease: seconds after which others may take what was not renewed.
            max_deliveries: after so many without an acknowledgement, a message is poison.
            dead_cap: dead letters that the lane keeps.
            dead_age: seconds that it keeps them.
        """
        self.store, self.clock, self.lease = store, clock, lease
        self.owner = identity.new_owner(node)
        self.concurrency = concurrency
        self.max_deliveries, self.dead_cap, self.dead_age = max_deliveries, dead_cap, dead_age
        self.held: dict[str, None] = {}  # ids, in the order in which they were taken
        self.last = 0  # the highest number of a lease that was held
        self._done: list[str] = []  # ids to acknowledge with the next exchange
        # What the broker could not be told, by id: the ways to tell it.
        self._pending: dict[str, Callable[[list[str]], None]] = {}
        self._letters: dict[str, dict[str, Any]] = {}  # reports of dead letters, by id, likewise
        self._away = False  # the last command failed: the thread finds out when it is back
        self._lock = threading.Lock()
        self._stopping = False
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

    def acknowledge(self, id_: str, *, at_once: bool) -> None:
        """Forget a message that is done with; unless `at_once`, the next round tells Redis."""
        self.held.pop(id_, None)
        with self._lock:
            self._done.append(id_)
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

    def set_aside(self, id_: str, report: dict[str, Any]) -> None:
        """Make a message a dead letter; when the broker is away, as soon as it is back."""
        if self._away:
            self._letters[id_] = report
            return
        try:
            dropped = self.store.set_aside(id_, report, cap=self.dead_cap, age=self.dead_age)
        except (RedisError, OSError):
            self._letters[id_] = report
            return
        self._letters.pop(id_, None)
        self.held.pop(id_, None)
        if dropped >= 0:
            logger.error(
                "set aside as dead letter %s: %s, %s",
                number_of(id_),
                report["reason"],
                report.get("error"),
            )
        if dropped > 0:
            logger.error("dropped the %d oldest dead letters for the cap", dropped)

    def stop(self) -> None:
        """Note at once that the process was told to stop; safe in a signal's handler."""
        self._stopping = True
        self._wake.put(None)

    def end(self) -> None:
        """The process ends in order, and holds nothing any more."""
        if not self.held and not self._pending and not self._away:
            with contextlib.suppress(RedisError, OSError):
                self.store.forget_worker(self.owner)

    def _tell(self, ids: Sequence[str], how: Callable[[list[str]], None]) -> None:
        """Tell the broker of these, or have the thread do it when it is away.

        Once it is known to be away, nobody waits for it: a stop, and the event loop, go on.
        """
        for id_ in ids:
            self.held.pop(id_, None)
        rest = list(ids)
        while rest and not self._away:
            part = rest[:_BATCH] if how == self.store.acknowledge else rest
            try:
                how(part)
            except (RedisError, OSError):
                self._away = True
                self._wake.put(None)
            else:
                rest = rest[len(part) :]
        self._pending.update(dict.fromkeys(rest, how))

    def _count_and_requeue(self, ids: list[str]) -> None:
        self._settle_poison(self.store.requeue(ids, lease=self.lease, most=self.max_deliveries))

    def _settle_poison(self, rescued: Rescued) -> None:
        """Store the failure of what was delivered too often, then set it aside.

        In this order: should this process be killed in between, another does both again, and
        nobody waits for a result for ever.
        """
        for id_, deliveries, message in rescued.poison:
            error = f"delivered {deliveries} times, and never acknowledged"
            store_lost(message, error)
            self.set_aside(id_, {"reason": "poison", "error": error, "deliveries": deliveries})

    def _renew(self, ids: Sequence[str]) -> list[str]:
        """Renew, and learn what time it is; those that were not taken back meanwhile."""
        renewed: list[str] = []
        for start in range(0, max(1, len(ids)), _BATCH):
            note = identity.note(self.clock.now(), stopping=self._stopping)
            now, part = self.store.renew(
                ids[start : start + _BATCH], self.lease, owner=self.owner, note=note
            )
            self.clock.learn(now)
            renewed += part
        return renewed

    def _keep(self) -> None:
        """Thread: look after the leases for as long as the process lives."""
        away, wait = False, min(self.lease / 3, LOOK)
        while True:
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=wait)
            wait = min(self.lease / 3, LOOK)
            try:
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
        while True:
            rescued = self.store.rescue_expired(
                lease=self.lease, at_once=self.concurrency, most=self.max_deliveries
            )
            self._settle_poison(rescued)
            if not rescued.more:
                return rescued.wait

    def _tell_pending(self) -> None:
        """Tell the broker, now that it is back, in the order in which messages were taken."""
        ways: dict[Callable[[list[str]], None], list[str]] = {}
        for id_ in in_order(list(self._pending)):
            ways.setdefault(self._pending[id_], []).append(id_)
        for how, ids in ways.items():
            how(ids)
            for id_ in ids:
                self._pending.pop(id_, None)
