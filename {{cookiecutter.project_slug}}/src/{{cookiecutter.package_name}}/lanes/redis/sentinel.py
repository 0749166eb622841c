"""Who the master is, as the Sentinels say, and when that changes: at once, and not when it hurts.

An old master goes on taking writes until its Sentinels tell it otherwise, which can be 11 s after
another took over; all that it takes then is lost. So each process listens to every Sentinel: when
one begins to make another server the master, commands are held, and go to the new one after it.
https://redis.io/docs/latest/develop/reference/sentinel-clients/
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from redis import Redis, exceptions
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, RedisError, ResponseError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from ..timeouts import FAIL_OVER, HEALTH, KEEPALIVE, SENTINEL

#: A fail-over begins: a write to the old master may be lost from shortly after these on. Each comes
#: a tenth of a second before the next step; one that is missed is made good by the next. Only the
#: Sentinel that leads the fail-over publishes them, and so each Sentinel is listened to.
_BEGINS = ("+elected-leader", "+failover-state-select-slave", "+selected-slave")
_MOVED = "+switch-master"
_PROMOTED = "+promoted-slave"
_GIVEN_UP = "-failover-abort-"
_AGAIN = 1.0  # seconds until a Sentinel that could not be reached is tried again

logger = logging.getLogger(__name__)


class Sentinels:
    """The Sentinels of one server name, listened to by a thread for each."""

    def __init__(
        self, hosts: tuple[tuple[str, int], ...], master: str, login: Mapping[str, Any]
    ) -> None:
        """`login` are redis-py's keywords for a connection to a Sentinel: user, password, TLS."""
        self.hosts, self.master = hosts, master
        self._login = dict(login)
        #: Grows when the master changes: a connection to an earlier one is of no use.
        self.generation = 0
        self._address: tuple[str, int] | None = None
        self._epoch = -1  # of the configuration that named `_address`; a higher one is newer
        self._begin()
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        """Without threads; a fork leaves them behind, and the locks as they were."""
        self._listening: set[tuple[str, int]] = set()
        self._settled = threading.Event()  # not set while another server is made the master
        self._settled.set()
        self._lock = threading.Lock()
        self._started = False

    def address(self) -> tuple[str, int]:
        """Where the master is now.

        Raises:
            MasterNotFoundError: when no Sentinel can say; from the error that tells most.
        """
        self._listen()
        if self._listening and self._address:
            return self._address
        errors: list[Exception] = []
        for host in self.hosts:
            try:
                self._ask(host)
            except (RedisError, OSError) as error:
                errors.append(error)
            else:
                with self._lock:  # the next one to ask first
                    self.hosts = (host, *(each for each in self.hosts if each != host))
                break
        if len(errors) < len(self.hosts) and self._address:
            return self._address
        errors.sort(key=_tells, reverse=True)
        if isinstance(errors[0], MasterNotFoundError):
            raise errors[0]
        raise MasterNotFoundError("no Sentinel can say where the master is") from errors[0]

    def wait(self) -> None:
        """Return when no fail-over is under way.

        Raises:
            ConnectionError: when one takes longer than `FAIL_OVER`.
        """
        if not self._settled.is_set() and not self._settled.wait(FAIL_OVER):
            self._settled.set()
            raise exceptions.ConnectionError(
                f"the Sentinels took over {FAIL_OVER:g} s for a fail-over"
            )

    def quorum(self) -> Iterator[tuple[str, str | None]]:
        """Each Sentinel's address, and why it could make no replica the master; None: it could."""
        for host in self.hosts:
            failure: str | None = None
            try:
                with self._client(host) as client:
                    client.sentinel_ckquorum(self.master)
            except ResponseError as error:
                failure = " ".join(str(error).split())
            except (RedisError, OSError):
                failure = "it does not answer"
            yield f"{host[0]}:{host[1]}", failure

    def _client(self, host: tuple[str, int], reply: float = SENTINEL) -> "Redis":
        return Redis(
            host=host[0],
            port=host[1],
            decode_responses=True,
            socket_connect_timeout=SENTINEL,
            socket_timeout=reply,
            socket_keepalive=True,
            socket_keepalive_options=KEEPALIVE,
            retry=Retry(NoBackoff(), 0),  # redis-py's own goes on for 24 s
            **self._login,
        )

    def _ask(self, host: tuple[str, int]) -> None:
        """Ask one Sentinel where the master is."""
        with self._client(host) as client:
            address: Any = client.sentinel_get_master_addr_by_name(self.master)
            if not address:
                raise MasterNotFoundError(f"no master is called {self.master}")
            state: Any = client.sentinel_master(self.master)
        self._learn((address[0], int(address[1])), int(state["config-epoch"]))

    def _learn(self, address: tuple[str, int], epoch: int) -> None:
        with self._lock:
            # A Sentinel that has not heard of the last fail-over names the old master.
            if epoch < self._epoch:
                return
            self._epoch = epoch
            if address != self._address:
                if self._address is not None:
                    self.generation += 1
                    logger.warning("the master is now %s:%s", *address)
                self._address = address

    def _listen(self) -> None:
        """Have a thread for each Sentinel in this process."""
        with self._lock:
            if self._started:
                return
            self._started = True
        for host in self.hosts:
            threading.Thread(
                target=self._follow, args=(host,), name=f"sentinel-{host[0]}", daemon=True
            ).start()

    def _follow(self, host: tuple[str, int]) -> None:
        while True:
            try:
                with self._client(host, HEALTH) as client, client.pubsub() as events:
                    events.psubscribe(_MOVED, _PROMOTED, f"{_GIVEN_UP}*", *_BEGINS)
                    events.get_message(timeout=SENTINEL)
                    # Asked after it: what changes from here on is heard.
                    self._ask(host)
                    self._listening.add(host)
                    self._hear(host, events)
            except (RedisError, OSError):
                self._listening.discard(host)
            time.sleep(_AGAIN)

    def _hear(self, host: tuple[str, int], events: Any) -> None:
        """Act on each event, until the connection is lost."""
        asked = time.monotonic()
        while True:
            message = events.get_message(timeout=1.0)
            if time.monotonic() - asked > HEALTH:
                # A host that vanished is silent, too; and what was missed is made good.
                self._ask(host)
                asked = time.monotonic()
            if message is None or message["type"] != "pmessage":
                continue
            event, words = message["channel"], message["data"].split()
            if event == _MOVED and words[0] == self.master:
                self._moved(host, (words[3], int(words[4])))
            elif self.master not in words[:2] and self.master not in words[-4:-2]:
                continue
            elif event == _PROMOTED:  # "slave NAME IP PORT @ MASTER IP PORT"
                self._moved(host, (words[2], int(words[3])))
            elif event.startswith(_GIVEN_UP):
                self._settled.set()
            else:
                self._settled.clear()
                logger.warning("a fail-over begins: commands wait for the new master")

    def _moved(self, host: tuple[str, int], address: tuple[str, int]) -> None:
        with self._lock:
            known = self._epoch
        epoch = known
        try:
            with self._client(host) as client:
                state: Any = client.sentinel_master(self.master)
                epoch = int(state["config-epoch"])
        except (RedisError, OSError, KeyError, ValueError):
            pass  # what it said a moment ago is newer than what it said before
        self._learn(address, max(known, epoch))
        self._settled.set()


def _tells(error: Exception) -> int:
    """How much an answer says of why there is no master: more than that nobody answered."""
    kinds = (OSError, ResponseError, AuthenticationError, MasterNotFoundError)
    return max((place for place, kind in enumerate(kinds) if isinstance(error, kind)), default=-1)
