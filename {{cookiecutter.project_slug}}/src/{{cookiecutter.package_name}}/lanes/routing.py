"""Decide a message's queue, and stamp it, when it is sent.

The one gate that every way of sending passes: `delay`, `apply_async`, `send_task`, retries,
chains, chords. Celery hands it over through `Celery.amqp_cls`.
"""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic
from typing import Any
from urllib.parse import quote

import celery.app.amqp
import celery.app.routes
import kombu
from kombu.exceptions import OperationalError
from kombu.utils.objects import cached_property

from . import keyed, once
from .config import Lane, Lanes
from .errors import AlreadySent, RoutingError
from .protocol import shown
from .redis.store import KEY, ONCE, instant
from .timeouts import CONNECT, REPLY, SEND

#: Header with the time of sending, in seconds since 1970: Celery's protocol 2 carries none, and
#: without it nobody can say how long the oldest waiting message has waited.
SENT_AT = "lane_sent_at"
#: Header with the expiry that the lane gave. A retry carries the headers of the run before, and
#: would expire by a time that was counted from the first.
LANE_EXPIRES = "lane_expires"
#: Header that a worker adds for its own children, when it logs JSON: when the message was due, in
#: the monotonic seconds of its host.
DUE = "lane_due"
#: Option with a list, to which the id of the task is added that has what is to be sent once.
FIRST = "lane_first"
#: Options that are taken out before Celery sends: a call's, and what the router makes of them under
#: the names of the headers.
_OWN = frozenset(("key", *once.OPTIONS, KEY, ONCE, FIRST))
#: Celery's own tasks behind `map`, `starmap` and `chunks`.
MAPS = ("celery.map", "celery.starmap")


class Router(celery.app.routes.Router):
    """Sends a task to the lane named in the call, else its own, else the one its name routes to."""

    app: Any  # set by Celery; `bind` gave it its `lanes`

    def route(
        self,
        options: dict[str, Any],
        name: str,
        args: Any = (),
        kwargs: Any = None,
        task_type: Any = None,
    ) -> dict[str, Any]:
        """`options` with `lane` turned into the `queue` it stands for, and `key` into its header.

        The key, and what is to be sent once, stand under the names of their headers.

        Raises:
            RoutingError: when no lane consumes what was asked for, in which case the message names
                the lanes; or when a key, or what is said of sending once, cannot be used.
        """
        keyed_by = task_type
        if getattr(task_type, "name", None) in MAPS and isinstance(kwargs, dict):
            name = kwargs["task"]["task"]  # the task that it runs; Celery's groups forget to say
            task_type = self.app.tasks.get(name)
            keyed_by = None  # its arguments are those of many
        options = self.placed(options, name, task_type)
        if getattr(keyed_by, "find_key", None) is None and _OWN.isdisjoint(options):
            return options  # most are, and need not be looked at any closer
        made = {
            KEY: keyed.key_of(name, options, args, kwargs, keyed_by),
            ONCE: once.once_of(name, options, args, kwargs, keyed_by),
        }
        options.pop(KEY, None)
        options.pop(ONCE, None)
        return options | {header: each for header, each in made.items() if each is not None}

    def placed(self, options: dict[str, Any], name: str, task_type: Any = None) -> dict[str, Any]:
        """`options` with `lane` turned into the `queue` it stands for, and no more.

        Raises:
            RoutingError: when no lane consumes what was asked for; the message names the lanes.
        """
        options = dict(options)
        options["queue"] = self._lane(options, name, task_type).queue
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


#: Variables that Celery reads by itself, after what an app says. They move nobody here: settings.py
#: decides, and every process gets that.
CELERY_VARIABLES = ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL")


class Connection(kombu.Connection):
    """A connection to the app's one broker, whatever URL Celery hands over."""

    transport_options: Any  # a dict, and never None
    hostname: Any  # a text, and never None

    def __init__(
        self, hostname: Any = None, *args: Any, transport_options: Any = None, **options: Any
    ) -> None:
        """As kombu's; a URL that neither we nor the environment gave is another broker's."""
        server = (transport_options or {}).get("server")
        if server is None:
            options["transport_options"] = transport_options
            super().__init__(hostname, *args, **options)
        elif "://" in str(hostname) and not self._is_own(str(hostname), server):
            plain = {key: each for key, each in transport_options.items() if key != "server"}
            options |= {"transport": None, "transport_options": plain}
            super().__init__(hostname, *args, **options)
        else:
            hosts: Any = server.endpoint.hosts or ((server.endpoint.path, None),)
            super().__init__(
                hosts[0][0],
                port=hosts[0][1],
                virtual_host=str(server.endpoint.database),
                transport="lanes",
                transport_options=transport_options,
                # How long kombu goes on trying; not given, more than twice as long.
                connect_timeout=options.get("connect_timeout", CONNECT),
            )

    @staticmethod
    def _is_own(url: str, server: Any) -> bool:
        return url == server.endpoint.shown or url in map(os.environ.get, CELERY_VARIABLES)

    def as_uri(self, include_password: bool = False, *args: Any, **options: Any) -> str:
        """As the environment said it; kombu's says redis:// of TLS."""
        server = self.transport_options.get("server")
        if server is None:
            return str(super().as_uri(include_password, *args, **options))
        shown, password = str(server.endpoint.shown), server.endpoint.password
        if include_password and password:
            return shown.replace(":***@", f":{quote(password, safe='')}@")
        return shown


class AMQP(celery.app.amqp.AMQP):
    """Celery's message factory, with our `Router` and a stamp on each message."""

    app: Any
    Connection = Connection
    own_sender: Any = None  # `send_task_message`, unless somebody has put another there
    sends_plainly = False  # whether its messages are of JSON, and tried again: see direct.py
    _create_task_sender: Any  # Celery's, unknown to celery-types

    @property
    def create_task_message(self) -> Any:
        """Protocol 2 alone, whatever `task_protocol` says: the first has no headers to stamp."""
        return self.as_task_v2

    def Router(self, queues: Any = None, create_missing: Any = None) -> Router:  # noqa: ARG002, N802 - Celery's names
        """The router that `send_task` asks for each message."""
        return Router(queues=queues or self.queues, create_missing=False, app=self.app)

    def as_task_v2(  # noqa: PLR0913, PLR0917 - Celery's signature, up to what we need
        self,
        task_id: str,
        name: str,
        args: Any = None,
        kwargs: Any = None,
        countdown: float | None = None,
        eta: Any = None,
        group_id: Any = None,
        group_index: Any = None,
        expires: Any = None,
        *more: Any,
        **options: Any,
    ) -> Any:
        """Celery's message, with arguments shown by `repr`: Celery's own is a tenth of a send.

        It guards against what cannot be in a message of JSON, such as a list that holds itself.
        A countdown, and an expiry in seconds, count from now by the broker's clock.

        Raises:
            RoutingError: when it, or what follows it, may not be sent at all, and more waits for
                that; see `once.check_alone`.
        """
        if countdown or expires:
            now = datetime.fromtimestamp(self.app.server.clock.now(), UTC)
            options.setdefault("now", now)
        options.setdefault("argsrepr", shown(args or ()))
        options.setdefault("kwargsrepr", shown(kwargs or {}))
        when = (countdown, eta, group_id, group_index, expires)
        message = super().as_task_v2(task_id, name, args, kwargs, *when, *more, **options)
        once.check_alone(name, message, options.get(ONCE))
        return message

    @cached_property
    def _celerys_sender(self) -> Any:
        """Made when it is used: it imports the transport, which most senders do without."""
        return self._create_task_sender()

    @cached_property
    def send_task_message(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Celery's sender, after the lane's stamp."""
        conf, lanes = self.app.conf, self.app.lanes
        # As they are at the first send, whatever becomes of them.
        self.sends_plainly = (
            conf.task_serializer == "json"
            and not conf.task_compression
            and conf.task_default_delivery_mode == 2  # persistent
            # Whoever wants no second try has none.
            and bool(conf.task_publish_retry)
            and conf.task_publish_retry_policy.get("max_retries") != 0
        )

        def stamp_and_send(
            producer: Any, name: str, message: Any, *, queue: Any, **options: Any
        ) -> Any:
            own = {each: options.pop(each) for each in _OWN.intersection(options)}
            # Celery's sender would lay them over the stamp: those of a retry, or which a task hands
            # on, hold that of the run before.
            message.headers.update(options.pop("headers", None) or {})
            mark(message.headers, own.get(KEY), own.get(ONCE))
            stamp(message.headers, lanes.for_queue(queue.name), self.app.server.clock.now())
            # Its workers declare a lane's queue; to do so for each message is an eighth of a send.
            options["declare"] = ()
            if getattr(producer._channel, "closed", False):  # noqa: SLF001
                # Kept over an outage, as beat keeps its own: a declaration would have noticed.
                producer.revive(producer.connection)
            if not options.get("retry_policy"):
                options["retry_policy"] = {"errback": giving_up_in_time()}
            try:
                return self._celerys_sender(producer, name, message, queue=queue, **options)
            except AlreadySent as error:
                if FIRST not in own:
                    raise
                # Not raised from here: Celery would throw away the connection, which is good.
                own[FIRST].append(error.id)
                return None
            except OperationalError as error:
                raise OperationalError(self.app.server.explain(error)) from None

        self.own_sender = stamp_and_send
        return stamp_and_send


def giving_up_in_time() -> Callable[[Exception, float], None]:
    """Kombu's `errback` of a send: no further try begins that could end after `SEND`."""
    until = monotonic() + SEND - CONNECT - REPLY

    def may_try_again(error: Exception, interval: float) -> None:
        if monotonic() + interval > until:
            raise error

    return may_try_again


def mark(headers: dict[str, Any], key: str | None, lock: once.Once | None = None) -> None:
    """Write whose a message is, and what is sent once; a task hands neither on to others.

    Args:
        headers: a message's, with its `id` and its `retries`.
        key: as its header says it.
        lock: None where the message is sent in any case.
    """
    for header in (KEY, ONCE):
        headers.pop(header, None)
    own = {KEY: key, ONCE: lock and lock.header(headers["id"], headers["retries"])}
    holds_others = any(isinstance(value, dict) and value for value in headers.values())
    if not holds_others:
        headers.update({header: value for header, value in own.items() if value is not None})
        return
    # Scripts go by the first of each name: a task may hand on another's headers in one of its own.
    rest = headers.copy()
    headers.clear()
    headers.update(own | rest)


def stamp(headers: dict[str, Any], lane: Lane, now: float) -> None:
    """Write the time of sending, and the lane's expiry unless the message has its own.

    An expiry that a lane gave is not its own: a retry is given that of the lane it goes to.

    Expiry counts from when the task is due: one with a countdown longer than `expires` would
    otherwise be expired before it may run.

    Args:
        now: seconds since 1970, by the broker's clock.
    """
    headers[SENT_AT] = now
    headers.pop(DUE, None)  # of the run before, on another host
    if headers.get("expires") not in (None, headers.pop(LANE_EXPIRES, None)):
        return
    headers["expires"] = None  # what the lane gave that a retry comes from
    if lane.expires is not None:
        due = instant(headers.get("eta")) or now
        expires = datetime.fromtimestamp(due + lane.expires, UTC).isoformat()
        headers["expires"] = headers[LANE_EXPIRES] = expires
