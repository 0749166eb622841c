"""A batch of messages: those of one lane go in one command, and not each in its own."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from kombu.exceptions import BatchPublishError  # type: ignore[attr-defined]  # of kombu 5.7
from kombu.transport import redis as kombu_redis

from .store import Outgoing, Store


def _once(send: Callable[[], None]) -> None:
    send()


class Batch(kombu_redis.PublishBatch):  # type: ignore[misc, name-defined]  # likewise
    """kombu's, through which a lane's messages do not go one by one."""

    channel: Any
    max_size: int
    #: How what is kept is sent; another may try it again.
    attempt: Callable[[Callable[[], None]], None] = staticmethod(_once)
    _count = 0  # messages that are kept

    @cached_property
    def _kept(self) -> dict[tuple[str, float | None], tuple[Store, list[Outgoing]]]:
        return {}

    def keep(self, store: Store, messages: Sequence[Outgoing], due: float | None = None) -> None:
        """Have messages of a lane sent with the others, in their order.

        Args:
            store: the lane's.
            messages: no more than the batch may hold.
            due: seconds since 1970 by the server's clock, until which they wait.

        Raises:
            BatchPublishError: when there were enough to be sent, and that failed.
        """
        self._check_usable()
        self._kept.setdefault((store.keys.queue, due), (store, []))[1].extend(messages)
        self._count += len(messages)
        if self._count >= self.max_size:
            self.flush()

    def flush(self) -> None:
        """Send what is kept, and what is not a lane's.

        Raises:
            BatchPublishError: when that failed; some, or all, may have been sent.
        """
        self._check_usable()
        if self._count:
            try:
                self.attempt(self._send)
            except BaseException as error:
                self._failed = error
                if isinstance(error, Exception):
                    raise BatchPublishError(f"a batch failed: {error}") from error
                raise
            self._kept.clear()
            self._count = 0
        super().flush()

    def _send(self) -> None:
        with self.channel.server.client.pipeline(transaction=False) as pipe:
            for (_, due), (store, messages) in self._kept.items():
                store.send_all(messages, due, pipe)
            pipe.execute()
