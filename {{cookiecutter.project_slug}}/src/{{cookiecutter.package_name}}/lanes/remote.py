"""Remote control and workers' events: Celery tries to send them without an end, here there is one.

A worker sends both from its event loop. While it waits there, it fetches nothing, renews nothing of
its connection, and does not see that it was told to stop. And a lane's worker serves that lane, as
lanes.toml declares it: commands that would have it do something else are refused, in words.
"""

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import celery.app.control
import celery.app.events
import celery.events.dispatcher
import kombu.pidbox

from .config import Lane
from .errors import UsageError
from .keyed import text_of
from .redis.revocations import MOST, revoke
from .redis.store import BATCH, Keys, Store

logger = logging.getLogger(__name__)


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
    """Celery's, with our `Mailbox`, and revocations that are kept."""

    app: Any
    Mailbox = Mailbox

    def broadcast(  # type: ignore[override]  # all others by name
        self, command: str, arguments: dict[str, Any] | None = None, *args: Any, **options: Any
    ) -> Any:
        """As Celery's; what is revoked is noted in Redis for workers that are not there to hear."""
        if command in _REVOKING:
            arguments = arguments or {}
            _keep_revocation(self.app, command, arguments)
            arguments = arguments | {_IS_KEPT: True}
        return super().broadcast(command, arguments, *args, **options)

    def revoke_by_key(
        self, key: str | int | UUID, lane: str | None = None, *, terminate: bool = False
    ) -> int:
        """Revoke the tasks of a key that wait, are delayed or are held by workers now.

        What is sent with the key later is not revoked.

        Args:
            key: as a sender says it.
            lane: the name of one lane; None: in all of them.
            terminate: end those that run, too.

        Returns:
            How many tasks these were.

        Raises:
            RoutingError: when it cannot be a key, or no lane is called so.
            UsageError: when there are more than are remembered; then none is revoked.
        """
        text = text_of(key, "key")
        lanes = self.app.lanes if lane is None else [self.app.lanes.get(lane)]
        stores = [Store(self.app.server.client, Keys.of(each)) for each in lanes]
        ids = list(dict.fromkeys(id_ for store in stores for id_ in store.ids_of(text)))
        if len(ids) > MOST:
            raise UsageError(
                f"the key {text!r:.60} has {len(ids):,} tasks, and no more than {MOST:,} "
                "revocations are remembered: delete what waits with the command `purge LANE "
                "--key KEY`, and revoke the rest"
            )
        for start in range(0, len(ids), BATCH):
            self.revoke(ids[start : start + BATCH], terminate=terminate)
        return len(ids)


#: Commands that revoke, and the argument by which a worker knows that the sender has noted it.
_REVOKING = ("revoke", "terminate", "revoke_by_stamped_headers")
_IS_KEPT = "is_kept"


def _keep_revocation(app: Any, command: str, arguments: dict[str, Any]) -> None:
    if command == "revoke_by_stamped_headers":
        stamps = arguments.get("headers") or {}
        if isinstance(stamps, list):  # as the command line has them
            stamps = dict(each.split("=")[:2] for each in stamps if "=" in each)
        revoke(app.server.client, stamps=stamps)
    else:
        ids = arguments.get("task_id") or []
        revoke(app.server.client, ids=[ids] if isinstance(ids, str) else ids)


#: What a worker answers by: its state and the command's arguments in, the reply out.
_Handler = Callable[..., Any]


def serve(lane: Lane) -> None:
    """Have this process, a worker of `lane`, answer to remote control as such a worker can.

    Those of Celery's handlers are replaced that would break the lane, or say what is not so.
    """
    from celery.worker.control import Panel  # of no use to a sender

    handlers: dict[str, _Handler] = Panel.data
    add_consumer, cancel_consumer = handlers["add_consumer"], handlers["cancel_consumer"]
    time_limit = handlers["time_limit"]

    def add_own(state: Any, queue: str, *_: Any, **__: Any) -> Any:
        if queue == lane.queue:
            return add_consumer(state, queue)
        return _refusal(
            f"a worker serves one lane, and this one serves {lane.name} with its queue "
            f"{lane.queue}: {queue!r:.100} is for the worker of a lane that declares it in "
            "lanes.toml"
        )

    def cancel_other(state: Any, queue: str, **_: Any) -> Any:
        if queue != lane.queue:
            return cancel_consumer(state, queue)
        return _refusal(
            f"a worker serves one lane, and this one serves {lane.name} with its queue {queue}: "
            f'to have the lane wait, use the command "pause {lane.name}", and later '
            f'"resume {lane.name}"'
        )

    def set_time_limit(state: Any, *args: Any, **options: Any) -> Any:
        """As Celery's, which says that it is set, and goes by those that it read at its start."""
        reply = time_limit(state, *args, **options)
        state.consumer.update_strategies()
        return reply

    def shut_down(_state: Any, msg: str = "Got shutdown from remote", **_: Any) -> Any:
        """By the signal that everybody else stops it with: Celery's way does not drain."""
        logger.warning(msg)
        os.kill(os.getpid(), signal.SIGTERM)
        return {"ok": f"the lane's drain is {lane.drain!r}"}

    def keeping(command: str, revoke_here: _Handler) -> _Handler:
        def keep(state: Any, **arguments: Any) -> Any:
            """As Celery's; a sender that knows Celery alone has not noted what it revokes."""
            is_kept = arguments.pop(_IS_KEPT, False)
            reply = revoke_here(state, **arguments)
            if not is_kept:
                _keep_revocation(state.app, command, arguments)
            return reply

        return keep

    at_once = (
        f"how many tasks a worker of the lane {lane.name} runs at once is set when it starts: "
        "change concurrency or workers in lanes.toml, and restart it"
    )
    handlers |= {command: keeping(command, handlers[command]) for command in _REVOKING}
    handlers |= {
        "add_consumer": add_own,
        "cancel_consumer": cancel_other,
        "time_limit": set_time_limit,
        "shutdown": shut_down,
        # Of a worker that died, so many tasks count as delivered as ran at once.
        "pool_grow": _refusing(at_once),
        "pool_shrink": _refusing(at_once),
        "autoscale": _refusing(at_once),
        "pool_restart": _refusing(
            f"a worker of the lane {lane.name} keeps its pool for as long as it runs: restart the "
            "worker, which finishes its tasks or hands them back"
        ),
        "election": _refusing(
            f"a worker of the lane {lane.name} elects nobody: it starts without gossip"
        ),
    }


def _refusing(why: str) -> _Handler:
    return lambda _state, **_arguments: _refusal(why)


def _refusal(why: str) -> dict[str, str]:
    """Celery's form of a reply that says no; without anyone who waits for it, the log has it."""
    logger.warning("remote control: %s", why)
    return {"error": why}
