"""The server's clock: the one clock by which this project says what is due and what has expired.

Two hosts' clocks differ, by seconds where nobody keeps them and by hours where somebody set one
wrong. Nobody compares them: each process learns how far its own is from the server's.
"""

import logging
import threading
import time
from collections.abc import Callable

from redis.exceptions import RedisError

_TRUST = 60.0  # seconds that what was learned holds; clocks drift by milliseconds in that time
_AGAIN = 10.0  # seconds until a server that did not answer is asked again
_NOTABLE = 1.0  # seconds of difference from this host's clock that are worth a line in the log

logger = logging.getLogger(__name__)


class Clock:
    """What time it is at the server, as this process knows it."""

    def __init__(self, ask: Callable[[], float]) -> None:
        """`ask` returns the server's time, in seconds since 1970."""
        self._ask = ask
        self._ahead: float | None = None  # of this process's monotonic clock, which nobody sets
        self._next = float("-inf")  # monotonic seconds from which it is asked again
        self.behind = 0.0  # seconds that this host's clock is behind the server's
        self._told = 0.0  # what of that the log has already
        self._lock = threading.Lock()

    def now(self) -> float:
        """Seconds since 1970 by the server's clock; by this host's when it was never reached."""
        if time.monotonic() >= self._next and self._lock.acquire(blocking=False):
            try:
                self._refresh()
            finally:
                self._lock.release()
        return time.time() if self._ahead is None else time.monotonic() + self._ahead

    def at(self, monotonic: float) -> float:
        """Likewise, what it was or will be at a time of this process's monotonic clock."""
        return self.now() + monotonic - time.monotonic()

    def learn(self, server_time: float) -> None:
        """Take what a reply has just said: seconds since 1970."""
        self._ahead = server_time - time.monotonic()
        self._next = time.monotonic() + _TRUST
        self.behind = server_time - time.time()
        if abs(self.behind - self._told) > _NOTABLE:
            self._told = self.behind
            if abs(self.behind) > _NOTABLE:
                logger.warning(
                    "this host's clock is %.1f s %s the broker's; the broker's is used",
                    abs(self.behind),
                    "behind" if self.behind > 0 else "ahead of",
                )

    def _refresh(self) -> None:
        asked = time.monotonic()
        try:
            answer = self._ask()
        except (RedisError, OSError):
            self._next = time.monotonic() + _AGAIN
            return
        # On average the server looked at its clock when half of the round trip was over.
        self.learn(answer + (time.monotonic() - asked) / 2)
