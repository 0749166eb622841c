"""Decide a message's queue, and stamp it, when it is sent.

The one gate that every way of sending passes: `delay`, `apply_async`, `send_task`, retries,
chains, chords. Celery hands it over through `Celery.amqp_cls`.
"""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import celery.app.amqp
import celery.app.routes
import kombu
from kombu.utils.objects import cached_property

from .config import Lane, Lanes
from .errors import RoutingError

#: Header with the time of sending, in seconds since 1970: Celery's protocol 2 carries none, and
#: without it nobody can say how long the oldest waiting message has waited.
SENT_AT = "lane_sent_at"
#: Header with the expiry that the lane gave. A retry carries the headers of the run before, and
#: would expire by a time that was counted from the first.
LANE_EXPIRES = "lane_expires"
#: Celery's own tasks behind `map`, `starmap` and `chunks`.
_MAPS = ("celery.map", "celery.starmap")


class Router(celery.app.routes.Router):
    """Sends a task to the lane named in the call, else its own, else the one its name routes to."""

    app: Any  # set by Celery; `bind` gave it its `lanes`

    def route(
        self,
        options: dict[str, Any],
        name: str,
        args: object = (),  # noqa: ARG002 - Celery's signature
        kwargs: object = None,
        task_type: Any = None,
    ) -> dict[str, Any]:
        """`options` with `lane` turned into the `queue` it stands for.

        Raises:
            RoutingError: when no lane consumes what was asked for; the message names the lanes.
        """
        options = dict(options)
        if getattr(task_type, "name", None) in _MAPS and isinstance(kwargs, dict):
            name = kwargs["task"]["task"]  # the task that it runs; Celery's groups forget to say
            task_type = self.app.tasks.get(name)
        lane = self._lane(options, name, task_type)
        options["queue"] = lane.queue
        return dict(self.expand_destination(options))

    def _lane(self, options: dict[str, Any], name: str, task_type: Any) -> Lane:
        lanes: Lanes = self.app.lanes
        for bypass in ("exchange", "routing_key"):
            # Either would publish past the queues, to where no lane consumes.
            if options.get(bypass) is not None:
                raise RoutingError(
                    f"{name}: {bypass}={options[bypass]!r} cannot be used: "
                    f"a lane has one queue, so say lane= or queue="
                )
        lane_name = options.pop("lane", None)
        queue = options.pop("queue", None)
        queue = getattr(queue, "name", queue)  # a kombu.Queue or its name
        if lane_name is not None:
            lane = lanes.get(lane_name)
            if queue not in (None, lane.queue, getattr(task_type, "queue", None)):
                raise RoutingError(
                    f"{name}: lane={lane_name!r} and queue={queue!r} disagree; name one of them"
                )
            return lane
        if queue is not None:
            return lanes.for_queue(queue)
        return home_lane(lanes, name, task_type)


def home_lane(lanes: Lanes, name: str, task_type: Any = None) -> Lane:
    """The lane of a task when a call names none: its own `lane=`, else by `[routes]`."""
    own = getattr(task_type, "lane", None)
    return lanes.get(own) if own else lanes.for_task(name)


class Connection(kombu.Connection):
    """kombu's, which goes by the scheme alone when it turns to the next of several URLs."""

    _initial_params: dict[str, Any]  # kombu's, unknown to its types

    def switch(self, conn_str: str) -> None:
        """Use another URL, with the same transport: kombu's own has no leases."""
        super().switch(conn_str)
        self.transport_cls = self._initial_params["transport"]


class AMQP(celery.app.amqp.AMQP):
    """Celery's message factory, with our `Router` and a stamp on each message."""

    app: Any
    Connection = Connection
    _create_task_sender: Any  # Celery's, unknown to celery-types

    def Router(self, queues: Any = None, create_missing: Any = None) -> Router:  # noqa: ARG002, N802 - Celery's names
        """The router that `send_task` asks for each message."""
        return Router(queues=queues or self.queues, create_missing=False, app=self.app)

    def as_task_v2(
        self,
        task_id: str,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        """Celery's message, with arguments shown by `repr`: Celery's own is a tenth of a send.

        It guards against what cannot be in a message of JSON, such as a list that holds itself.
        """
        options.setdefault("argsrepr", shown(args or ()))
        options.setdefault("kwargsrepr", shown(kwargs or {}))
        return super().as_task_v2(task_id, name, args, kwargs, *more, **options)

    @cached_property
    def send_task_message(self) -> Any:
        """Celery's sender, after the lane's stamp."""
        send = self._create_task_sender()
        lanes: Lanes = self.app.lanes

        def stamp_and_send(
            producer: Any, name: str, message: Any, *, queue: Any, **options: Any
        ) -> Any:
            stamp(message.headers, lanes.for_queue(queue.name))
            # Its workers declare a lane's queue; to do so for each message is an eighth of a send.
            options["declare"] = ()
            return send(producer, name, message, queue=queue, **options)

        return stamp_and_send


def shown(arguments: Any) -> str:
    """Arguments as monitors and logs show them, cut to Celery's 1,024 characters."""
    return f"{arguments!r:.1024}"


def stamp(headers: dict[str, Any], lane: Lane) -> None:
    """Write the time of sending, and the lane's expiry unless the message has its own.

    Expiry counts from when the task is due: one with a countdown longer than `expires` would
    otherwise be expired before it may run.
    """
    headers[SENT_AT] = time.time()
    if lane.expires is None:
        return
    if headers.get("expires") in (None, headers.get(LANE_EXPIRES)):
        due = datetime.fromisoformat(headers["eta"]) if headers.get("eta") else datetime.now(UTC)
        expires = (due + timedelta(seconds=lane.expires)).isoformat()
        headers["expires"] = headers[LANE_EXPIRES] = expires
