"""kombu's Redis transport, with leases; see the package's docstring for the life of a message.

A subclass, so that remote control, events, reconnecting, TLS and Sentinel stay kombu's own. Each
override says why it had to be. Tested with kombu 5.7.
"""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from queue import Empty
from time import monotonic
from typing import Any
from urllib.parse import quote

from celery.worker import state
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.json import dumps, loads
from redis import Redis
from redis.exceptions import NoScriptError, ResponseError

from ..errors import UsageError
from .leases import Leases
from .store import EXCHANGE, EXCHANGE_KEYS, Keys, Store

_WAIT = 0.5  # seconds to wait for a message; also how late a delayed one may be noticed
_EXCHANGE_SHA = hashlib.sha1(EXCHANGE.encode(), usedforsecurity=False).hexdigest()
_MOST = 100  # messages in one fetch, when the consumer sets no limit

_leases: dict[str, Leases] = {}  # by lane: those of this process


def hand_back_all() -> None:
    """Return all that this process holds, running or not, to its queue."""
    for leases in _leases.values():
        leases.tell_done()
        leases.hand_back(list(leases.held))


class Message(virtual.Message):
    """A message that can always be built, so that a malformed one gets as far as the firewall."""

    def __init__(self, payload: Any, channel: Any = None, **kwargs: Any) -> None:
        """Keep in `malformed` why it could not be read, or None."""
        self.malformed: str | None = payload.get("malformed")
        try:
            super().__init__(payload, channel=channel, **kwargs)
        except Exception as error:  # noqa: BLE001 - anything may have been sent
            self.malformed = f"{type(error).__name__}: {error}"
            id_ = payload["properties"]["delivery_tag"]
            super().__init__(
                {"properties": {"delivery_tag": id_}, "headers": {}}, channel=channel, **kwargs
            )


class QoS(kombu_redis.QoS):
    """Deliveries not yet acknowledged: the script that fetched them has recorded them already."""

    channel: Any
    _delivered: Any  # a dictionary of messages by tag
    _flush: Any  # removes from it what was acknowledged

    def append(self, message: Any, delivery_tag: str) -> None:
        """Without kombu's second write, between which and the first a kill loses the message."""
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """By way of the leases, which know what to do when the broker or the channel is gone."""
        # The event loop's next round tells Redis of all that were done in this one; without the
        # loop, or once the worker stops and it turns no more, nobody would. A closed channel, left
        # by a connection that was lost, has no connection.
        transport = self.channel.connection
        loop_turns = transport is not None and transport.looped and not _stopping()
        self.channel.leases.acknowledge(delivery_tag, at_once=not loop_turns)
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Likewise; a requeue counts as a delivery, so that it does not go on for ever."""
        if requeue:
            self.channel.leases.hand_back([delivery_tag], counted=True)
        else:
            self.channel.leases.acknowledge(delivery_tag, at_once=True)
        virtual.QoS.ack(self, delivery_tag)

    def settle(self, delivery_tag: str) -> None:
        """Free the slot of a message that was set aside."""
        virtual.QoS.ack(self, delivery_tag)

    def restore_unacked(self, client: Any = None) -> Any:  # noqa: ARG002 - kombu's signature
        """Hand back what the channel holds when it closes, but for the tasks that still run.

        A channel closes when its connection is lost, too, and kombu would then send running tasks
        to be run again.
        """
        running: set[str] = set()
        if state.should_terminate is None:
            # Threads cannot be told to forget what waits for one: it runs, too.
            in_threads = self.channel.in_threads and state.should_stop is None
            requests = state.reserved_requests if in_threads else state.active_requests
            running = {request.message.delivery_tag for request in requests}
        self._flush()
        self.channel.leases.tell_done()
        self.channel.leases.hand_back([tag for tag in self._delivered if tag not in running])
        self._delivered.clear()

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the leases have their own thread, with a shorter period than kombu's."""


class LeasedChannel(kombu_redis.Channel):
    """A channel that fetches by lease when its connection is a worker's, and sends for all."""

    Message = Message
    from_transport_options = (
        *kombu_redis.Channel.from_transport_options,
        "lane_by_queue",
        "lane",
        "owner",
        "in_threads",
        "concurrency",
        "lease",
        "max_deliveries",
        "dead_cap",
        "dead_age",
    )
    lane_by_queue: dict[str, str] = {}  # noqa: RUF012 - a transport option, never changed
    lane: str | None = None  # a worker's, else None
    owner: str  # these and the above are transport options; see `Leases`
    in_threads: bool = False  # its pool is one of threads
    concurrency: int = 1000  # the most that a lane may have
    lease: float
    max_deliveries: int
    dead_cap: int
    dead_age: float
    # kombu's own, unknown to celery-types:
    client: Any
    connection: Any
    connection_errors: tuple[type[Exception], ...]
    global_keyprefix: str
    _create_client: Any
    _get_pool: Any
    _in_flight: list[str] = []  # noqa: RUF012 - names of the commands that have no reply yet
    _full = False  # the last fetch got all it asked for: there may be more
    _paused = False
    _unwaited = False  # the server refused to wait: it has no memory, and a move may need some
    _skimming = False  # none of what was fetched was due: by slots, the rest would take for ever
    _telling: list[str] = []  # noqa: RUF012 - acknowledged by the exchange in flight
    _kept_client: Any = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As kombu's, which prefixes what is sent, and would not what is fetched."""
        super().__init__(*args, **kwargs)
        if self.global_keyprefix:
            raise UsageError("global_keyprefix: use a Redis database of the project's own instead")
        self.QoS = QoS if self.lane else kombu_redis.QoS

    @cached_property
    def _lane_queue(self) -> str:
        (queue,) = (queue for queue, name in self.lane_by_queue.items() if name == self.lane)
        return queue

    @property
    def leases(self) -> Leases:
        """This process's leases in the lane, made at the first use."""
        lane = str(self.lane)
        if lane not in _leases:
            # A pool of their own: they outlive this channel. By the name of its connections another
            # worker of this node name knows that this one is at work.
            pool = self._get_pool()
            pool.connection_kwargs["client_name"] = quote(f"lanes:{lane}:{self.owner}")
            _leases[lane] = Leases(
                Store(Redis(connection_pool=pool), Keys(lane, self._lane_queue)),
                owner=self.owner,
                concurrency=self.concurrency,
                lease=self.lease,
                max_deliveries=self.max_deliveries,
                dead_cap=self.dead_cap,
                dead_age=self.dead_age,
            )
        return _leases[lane]

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """With one client for all: kombu builds one for each call, a third of a send's time."""
        if client is None:
            if self._kept_client is None or self._kept_client.connection_pool is not self.pool:
                self._kept_client = self._create_client()
            client = self._kept_client
        yield client

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        """A message with a time in the future waits in Redis and not in a worker's memory."""
        due = _due(message)
        if due is None or due <= time.time() or queue not in self.lane_by_queue:
            super()._put(queue, message, **kwargs)
            return
        delayed = Keys(self.lane_by_queue[queue], queue)("delayed")
        batch = kwargs.get("_publish_batch")
        if batch is not None:
            batch.add("zadd", delayed, {dumps(message): due})
        else:
            with self.conn_or_acquire() as client:
                client.zadd(delayed, {dumps(message): due})

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Instead of BRPOP, which takes a message before anything has recorded it."""
        self._not_told()
        if not self.lane or self._lane_queue not in self.active_queues:
            super()._brpop_start(timeout)  # type: ignore[misc]
            return
        leases = self.leases  # before the first fetch: it takes back what an earlier worker held
        free = None if self._skimming else self.qos.can_consume_max_estimate()
        self._asked = min(free or _MOST, _MOST)
        commands: list[tuple[Any, ...]] = []
        self._telling = []
        if self._full:
            self._telling = leases.take_done()
        elif self._paused or self._unwaited:
            # For a list that is never there: a paused lane's may be full. It moves nothing.
            commands.append(("BRPOP", leases.store.keys("never"), _WAIT))
        else:
            # From the end of the list to the same end: it wakes us and changes nothing.
            queue = leases.store.keys.queue
            commands.append(("BLMOVE", queue, queue, "RIGHT", "RIGHT", _WAIT))
        # Sent with the wait, and run by the server when that ends: what wakes us comes with it.
        names, args = self._exchange_keys, (self._asked, leases.lease, leases.owner, leases.last)
        commands.append(("EVALSHA", _EXCHANGE_SHA, len(names), *names, *args, *self._telling))
        connection = self.client.connection
        self._in_poll, self._brpop_sent_at = connection, monotonic()
        self._in_flight = [command[0] for command in commands]
        try:
            connection.send_packed_command(connection.pack_commands(commands))
        except self.connection_errors:
            self._not_told()
            raise

    @cached_property
    def _exchange_keys(self) -> list[str]:
        return [self.leases.store.keys(key) for key in EXCHANGE_KEYS]

    def _brpop_read(self, **options: Any) -> bool:
        """Read the replies, and deliver the messages."""
        if not self._in_flight:
            return bool(super()._brpop_read(**options))  # type: ignore[misc]
        queue = self.leases.store.keys.queue
        messages = {id_: _payload(id_, raw, queue) for id_, raw in self._read_replies()}
        if not messages:
            raise Empty
        try:
            self._deliver(messages, queue)
        except BaseException:
            self.leases.hand_back(list(messages))
            raise
        return True

    def _deliver(self, messages: dict[str, Any], queue: str) -> None:
        """Give messages, by lease id, to the consumer; those that it has got are taken out."""
        if queue not in self.connection._callbacks:  # noqa: SLF001 - cancelled since
            self.leases.hand_back(list(messages))
            return
        now = time.time()
        later = {id_: due for id_, each in messages.items() if (due := _due(each) or 0.0) > now}
        self._skimming = len(later) == len(messages)
        if later:
            self.leases.postpone(later)  # sent by a Celery without this transport
        ready = [id_ for id_ in messages if id_ not in later]
        free = self.qos.can_consume_max_estimate()
        if free is not None and len(ready) > free:
            self.leases.hand_back(ready[free:])
        for id_ in ready[:free]:
            self.connection._deliver(messages[id_], queue)  # noqa: SLF001
            del messages[id_]

    def _read_replies(self) -> list[tuple[str, bytes]]:
        """Wait for the reply to each command in flight; returns the messages fetched."""
        connection, self._in_poll = self.client.connection, None
        refused: ResponseError | None = None
        reply: Any = None
        self._unwaited = False
        try:
            for command in self._in_flight:
                try:
                    reply = self.client.parse_response(connection, command)
                except ResponseError as error:  # the reply to the next command comes all the same
                    if command == "BLMOVE":
                        self._unwaited = True
                    else:
                        refused, reply = refused or error, []
        except Exception:
            self._not_told()
            connection.disconnect()  # a reply that was not read may still come
            raise
        if isinstance(refused, NoScriptError):
            self._not_told()
            # The server was restarted.
            with self.conn_or_acquire() as client:
                client.script_load(EXCHANGE)
            self._full = True
            return []
        self._paused = reply == [b"paused"]
        if self._paused:
            reply = []
        fetched = [(id_.decode(), raw) for id_, raw in zip(reply[::2], reply[1::2], strict=True)]
        if refused:
            self._not_told()
            self.leases.hand_back([id_ for id_, _ in fetched])
            raise refused
        self._in_flight = []
        self._full = len(fetched) >= self._asked
        if fetched and monotonic() - self._brpop_sent_at > self.leases.lease / 3:
            # The server fetched while this process was busy: some may be another's by now.
            ours = self.leases.store.renew([id_ for id_, _ in fetched], self.leases.lease)
            fetched = [(id_, raw) for id_, raw in fetched if id_ in ours]
        self.leases.hold([id_ for id_, _ in fetched])
        return fetched

    def _not_told(self) -> None:
        """What is in flight, if anything, will have no reply."""
        if self._in_flight:
            self.leases.not_told(self._telling)
            self._in_flight = []

    def maybe_refresh_binding_expiry(self) -> None:
        """A server that refuses is asked again; kombu's poller logs a traceback each second."""
        with suppress(ResponseError):
            super().maybe_refresh_binding_expiry()  # type: ignore[misc]

    def close(self) -> None:
        """Without kombu's last read, which would deliver what nobody is there to run."""
        if self._in_poll and self._in_flight:
            # Half a second at most. When the connection is lost, so are the replies; what they
            # leased will be overdue.
            with suppress(*self.connection_errors):
                self.leases.hand_back([id_ for id_, _ in self._read_replies()])
            self._in_poll = None
        self._not_told()
        super().close()


def _stopping() -> bool:
    return state.should_stop is not None or state.should_terminate is not None


def _payload(id_: str, raw: bytes, queue: str) -> Any:
    """What the bytes say, or that they say nothing."""
    try:
        payload = loads(raw.decode())
        payload["properties"]["delivery_tag"] = id_
        # A retry goes where its message says that it was sent: an exchange of another Celery's, or
        # a queue that it was moved from, would be refused, and the retry with it.
        info = payload["properties"].get("delivery_info")
        if isinstance(info, dict):
            info.update(exchange="", routing_key=queue)
    except Exception as error:  # noqa: BLE001 - anything may have been sent
        why = f"{type(error).__name__}: {error}"
        return {"properties": {"delivery_tag": id_}, "headers": {}, "malformed": why}
    return payload


def _due(message: Any) -> float | None:
    """When the message is due, in seconds since 1970, if it says so in a way that can be read."""
    try:
        eta = message["headers"]["eta"]
        if eta is None:
            return None
        due = datetime.fromisoformat(eta)
    except (KeyError, TypeError, ValueError):
        return None
    return (due if due.tzinfo else due.replace(tzinfo=UTC)).timestamp()


class Poller(kombu_redis.MultiChannelPoller):
    """kombu's poller, at whose each round what has been done is told."""

    def on_poll_start(self) -> None:
        """Send acknowledgements with the next exchange, or by themselves when none is due."""
        super().on_poll_start()
        for leases in _leases.values():
            leases.tell_done()


class Transport(kombu_redis.Transport):
    """For redis://, rediss:// and redis+socket://."""

    Channel = LeasedChannel
    looped = False  # whether an event loop turns the poller

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As kombu's, with our poller."""
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """The poller's rounds are the loop's from here on."""
        super().register_with_event_loop(connection, loop)
        self.looped = True


class SentinelChannel(LeasedChannel, kombu_redis.SentinelChannel):
    """A leased channel to the server that Sentinel names."""

    from_transport_options = (
        *LeasedChannel.from_transport_options,
        *kombu_redis.SentinelChannel.from_transport_options,
    )


class SentinelTransport(Transport):
    """For sentinel://."""

    default_port = kombu_redis.SentinelTransport.default_port
    Channel = SentinelChannel
