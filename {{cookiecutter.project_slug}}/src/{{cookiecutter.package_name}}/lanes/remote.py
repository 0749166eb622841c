"""Remote control and workers' events: Celery tries to send them without an end, here there is one.

A worker sends both from its event loop. While it waits there, it fetches nothing, renews nothing of
its connection, and does not see that it was told to stop.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import celery.app.control
import celery.app.events
import celery.events.dispatcher
import kombu.pidbox


class Dispatcher(celery.events.dispatcher.EventDispatcher):
    """Celery's, which tries an event once: a heartbeat that is late is of no use."""

    def _publish(self, event: Any, producer: Any, routing_key: str, **_options: Any) -> Any:
        """Called for each event that is sent; `_options` would have it tried again."""
        return super()._publish(event, producer, routing_key)  # type: ignore[misc]


class Events(celery.app.events.Events):
    """Celery's, with our `Dispatcher`."""

    dispatcher_cls = f"{__name__}:Dispatcher"


class _OnceOnly:
    """A producer that publishes, or raises."""

    def __init__(self, producer: Any) -> None:
        self._producer = producer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def publish(self, *args: Any, **options: Any) -> Any:
        return self._producer.publish(*args, **(options | {"retry": False}))


class Mailbox(kombu.pidbox.Mailbox):
    """kombu's, whose questions and answers are sent once: whoever asked has given up by then."""

    @contextmanager
    def producer_or_acquire(self, producer: Any = None, channel: Any = None) -> Iterator[Any]:
        """What both are sent with."""
        with super().producer_or_acquire(producer, channel) as acquired:
            yield _OnceOnly(acquired)


class Control(celery.app.control.Control):
    """Celery's, with our `Mailbox`."""

    Mailbox = Mailbox
