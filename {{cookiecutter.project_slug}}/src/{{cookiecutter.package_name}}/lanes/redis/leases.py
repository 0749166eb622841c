"""What a worker process holds: renewed while it lives, given up in order when it stops."""

import logging
import threading
import time
from collections import Counter
from typing import Any

from redis.exceptions import RedisError, ResponseError

from ..results import store_lost
from .store import Store

_LOOK = 4.0  # seconds, at most, between two looks at the lane's leases

logger = logging.getLogger(__name__)


class Leases:
    """The leases of this process, with a thread that renews them.

    They outlive channels and connections: a task may run through an outage of the broker and be
    acknowledged after it (on stock kombu the acknowledgement dies with the channel, and the worker
    with it). Nothing here raises when the broker is away; what it could not be told, it is
    told later.
    """

    def __init__(  # noqa: PLR0913 - the lane's own keys, by name
        self,
        store: Store,
        *,
        owner: str,
        concurrency: int,
        lease: float,
        max_deliveries: int,
        dead_cap: int,
        dead_age: float,
    ) -> None:
        """Take back what an earlier worker of this name held, and start renewing.

        Args:
            owner: the worker's node name.
            concurrency: tasks that a worker of the lane runs at once.
            lease: seconds after which others may take what was not renewed.
            max_deliveries: after so many without an acknowledgement, a message is poison.
            dead_cap: dead letters that the lane keeps.
            dead_age: seconds that it keeps them.
        """
        self.store, self.owner, self.lease = store, owner, lease
        self.concurrency = concurrency
        self.max_deliveries, self.dead_cap, self.dead_age = max_deliveries, dead_cap, dead_age
        self.held: dict[str, None] = {}  # ids, in the order in which they were taken
        self.last = 0  # the highest number of a lease that was held
        self._done: list[str] = []  # ids to acknowledge with the next exchange
        self._untold: dict[str, str] = {}  # ids to "acknowledge" or to "hand_back"
        self._letters: dict[str, dict[str, Any]] = {}  # reports of dead letters, by id, untold
        self._lock = threading.Lock()
        self._succeed()
        threading.Thread(target=self._keep, name="leases", daemon=True).start()

    def _succeed(self) -> None:
        """Take back at once what an earlier worker of this name held, unless that one lives."""
        mine = self.store.owned(self.owner)
        try:
            twin = self.store.has_twin()
        except ResponseError:  # this user may not ask
            twin = False
        if twin:
            logger.warning(
                "another worker is called %s: give each a name of its own, with --instance or -n",
                self.owner,
            )
        else:
            self._take_back(mine)

    def hold(self, ids: list[str]) -> None:
        """Renew these from now on; `ids` in the order in which they were taken."""
        self.held.update(dict.fromkeys(ids))
        self.last = max([self.last, *map(_number, ids)])

    def acknowledge(self, id_: str, *, at_once: bool) -> None:
        """Forget a message that is done with; unless `at_once`, somebody tells Redis shortly."""
        self.held.pop(id_, None)
        with self._lock:
            self._done.append(id_)
        if at_once:
            self.tell_done()

    def take_done(self) -> list[str]:
        """Ids that the caller will acknowledge; if that fails, it gives them to `not_told`."""
        with self._lock:
            done, self._done = self._done, []
        return done

    def not_told(self, ids: list[str]) -> None:
        """These could not be acknowledged: the broker is away."""
        self._untold.update(dict.fromkeys(ids, "acknowledge"))

    def tell_done(self) -> None:
        """Acknowledge what has gathered."""
        done = self.take_done()
        try:
            self.store.acknowledge(done)
        except (RedisError, OSError):
            self.not_told(done)

    def hand_back(self, ids: list[str], *, counted: bool = False) -> None:
        """Return messages to their queue; `counted` when running them may have killed a process."""
        for id_ in ids:
            self.held.pop(id_, None)
        try:
            if counted:
                self._take_back(ids)
            else:
                self.store.hand_back(ids)
        except (RedisError, OSError):
            self._untold.update(dict.fromkeys(ids, "hand_back"))

    def postpone(self, due: dict[str, float]) -> None:
        """Have messages wait in Redis, each until its time in seconds since 1970."""
        for id_ in due:
            self.held.pop(id_, None)
        self.store.postpone(due)

    def set_aside(self, id_: str, report: dict[str, Any]) -> None:
        """Make a message a dead letter; when the broker is away, as soon as it is back."""
        try:
            dropped = self.store.set_aside(id_, report, cap=self.dead_cap, age=self.dead_age)
        except (RedisError, OSError):
            self._letters[id_] = report
            return
        self._letters.pop(id_, None)
        self.held.pop(id_, None)
        if dropped >= 0:
            number = id_.partition("@")[0]
            logger.error(
                "set aside as dead letter %s: %s, %s", number, report["reason"], report.get("error")
            )
        if dropped > 0:
            logger.error("dropped the %d oldest dead letters for the cap", dropped)

    def _take_back(self, ids: list[str], *, only_expired: bool = False) -> None:
        """Return what dead workers held, and count it as delivered where a task may have run.

        Tasks start in the order in which they were fetched, so of what a worker holds, the oldest
        `concurrency` are those that ran. The others only waited beside one that may have killed
        the worker, and are not to blame.
        """
        seen: Counter[str] = Counter()
        ran: list[str] = []
        waited: list[str] = []
        for id_ in sorted(ids, key=_number):
            owner = id_.partition("@")[2]
            seen[owner] += 1
            (ran if seen[owner] <= self.concurrency else waited).append(id_)
        self.store.hand_back(waited, only_expired=only_expired)  # behind those that ran
        poison = self.store.hand_back(ran, most=self.max_deliveries, only_expired=only_expired)
        for id_, deliveries, message in poison:
            error = f"delivered {deliveries} times, and never acknowledged"
            self.set_aside(id_, {"reason": "poison", "error": error, "deliveries": deliveries})
            store_lost(message, error)

    def _keep(self) -> None:
        away = False
        while True:
            time.sleep(min(self.lease / 3, _LOOK))
            try:
                self._tend()
                away = False
            except (RedisError, OSError) as error:
                if not away:
                    logger.warning("leases cannot be renewed, the broker is away: %s", error)
                away = True
            except Exception:
                # Without this thread every running task would be run again elsewhere.
                logger.exception("leases could not be looked after this time")

    def _tend(self) -> None:
        """Renew what is held, tell what could not be told, take back what others let run out."""
        held = list(self.held)
        for start in range(0, len(held), 1000):  # Lua's unpack has a limit, and Redis waits
            self.store.renew(held[start : start + 1000], self.lease)
        self.tell_done()
        untold = sorted(self._untold.items(), key=lambda item: _number(item[0]))
        self.store.acknowledge([id_ for id_, call in untold if call == "acknowledge"])
        self.store.hand_back([id_ for id_, call in untold if call == "hand_back"])
        for id_, _ in untold:
            del self._untold[id_]
        for id_, report in list(self._letters.items()):
            self.set_aside(id_, report)
        overdue = self.store.overdue(self.lease)
        self._take_back([id_ for id_ in overdue if id_ not in self.held], only_expired=True)


def _number(id_: str) -> int:
    """A lease's number: they are in the order of the fetches."""
    return int(id_.partition("@")[0])
