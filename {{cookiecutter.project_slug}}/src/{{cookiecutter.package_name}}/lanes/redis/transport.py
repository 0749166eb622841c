"""kombu's Redis transport with leases; see the package's docstring for the life of a message.

A subclass, so that remote control, events and reconnecting stay kombu's own. How to connect is
`connect`'s, what is fetched is `fetch`'s, what is held is `leases`': here is what joins them to
kombu. Each override says why it had to be; `contract` lists what is borrowed.
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cached_property
from queue import Empty
from typing import Any

from celery.worker import state
from kombu.asynchronous import get_event_loop
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.json import dumps, loads
from redis import exceptions

from ..errors import AlreadySent, UsageError
from ..protocol import upgraded
from ..timeouts import FETCH
from .batch import Batch
from .connect import Server
from .fetch import MOST, Fetch, Fetched, Leased
from .leases import Leases
from .revocations import Revocations
from .store import EXCHANGE, KEY, NO_LIMITS, ONCE, STAND_IN, Keys, Limits, Outgoing, Store, instant

logger = logging.getLogger(__name__)

_TOGETHER = 0.02  # seconds, at most, that what is done waits for more, to be acknowledged with it

_leases: dict[str, Leases] = {}  # by lane: those of this process


def hand_back_all() -> None:
    """Return all that this process holds, running or not, to its queue."""
    for leases in _leases.values():
        leases.send_acks()
        leases.hand_back(list(leases.held))


def stop_all() -> None:
    """The process was told to stop; safe in a signal's handler."""
    for leases in _leases.values():
        leases.stop()


def end_all() -> None:
    """The process ends in order: it is no worker any more."""
    for leases in _leases.values():
        leases.send_acks()
        leases.end()


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

    def can_consume(self) -> bool:
        """Not for one message at a time, where they end in no time and many wait."""
        return super().can_consume() and not self.channel.has_enough

    def append(self, message: Any, delivery_tag: str) -> None:
        """Without kombu's second write, between which and the first a kill loses the message."""
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str, *, revoked: bool = False) -> None:
        """By way of the leases, which know what to do when the broker or the channel is gone.

        Args:
            revoked: its task was revoked.
        """
        # The event loop's next round tells Redis of all that were done in this one; without the
        # loop, or once the worker stops and it turns no more, nobody would. A closed channel, left
        # by a connection that was lost, has no connection.
        transport = self.channel.connection
        loop_turns = transport is not None and transport.looped and not _is_stopping()
        self.channel.leases.acknowledge(delivery_tag, at_once=not loop_turns, revoked=revoked)
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Likewise; a requeue counts as a delivery, so that it does not go on for ever.

        Not in a stop, which ends children whatever they run.
        """
        if requeue and _is_stopping():
            self.channel.leases.hand_back([delivery_tag])
        elif requeue:
            self.channel.leases.requeue([delivery_tag])
        else:
            self.channel.leases.acknowledge(delivery_tag, at_once=True)
        virtual.QoS.ack(self, delivery_tag)

    def free_slot(self, delivery_tag: str) -> None:
        """Of a message that was set aside."""
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
        self.channel.leases.send_acks()
        self.channel.leases.hand_back([tag for tag in self._delivered if tag not in running])
        self._delivered.clear()

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the leases have their own thread, with a shorter period than kombu's."""


class LeasedChannel(kombu_redis.Channel):
    """A channel that fetches by lease when its connection is a worker's, and sends for all."""

    Message = Message
    from_transport_options = (
        *kombu_redis.Channel.from_transport_options,
        *("server", "lane_by_queue", "limits_by_lane", "lane", "node", "in_threads"),
        *("concurrency", "lease"),
        *("max_deliveries", "dead_cap", "dead_size", "dead_age", "latency_slo"),
    )
    # Transport options:
    server: Server
    lane_by_queue: dict[str, str] = {}  # noqa: RUF012 - never changed
    limits_by_lane: dict[str, Limits] = {}  # noqa: RUF012 - likewise
    lane: str | None = None  # a worker's, else None; those below are for a worker alone
    node: str
    in_threads: bool = False  # its pool is one of threads
    concurrency: int = 1000  # the most that a lane may have
    lease: float
    max_deliveries: int
    dead_cap: int
    dead_size: int
    dead_age: float
    latency_slo: float
    # kombu's own, unknown to celery-types:
    client: Any
    connection: Any
    connection_errors: tuple[type[Exception], ...]
    global_keyprefix: str
    keyprefix_binding_permanent: str
    _create_client: Any
    _registered: bool
    _on_connection_disconnect: Any
    _kept_client: Any = None
    # None of what was fetched was due: fetch full batches, whatever is free, to get past those.
    _only_not_due = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As kombu's, which prefixes what is sent, and would not what is fetched."""
        super().__init__(*args, **kwargs)
        if self.global_keyprefix:
            raise UsageError("global_keyprefix: use a Redis database of the project's own instead")
        self.QoS = QoS if self.lane else kombu_redis.QoS

    # Connecting

    def _get_pool(self, asynchronous: bool = False) -> Any:
        """From the endpoint that was decided at the start, and not from kombu's URL.

        Those that the event loop polls tell it when they close.
        """
        self.keyprefix_fanout = self.keyprefix_fanout.format(db=self.server.endpoint.database)
        return self.server.pool(on_disconnect=self._closed if asynchronous else None)

    def _closed(self, connection: Any) -> None:
        if self._registered:
            self._on_connection_disconnect(connection)

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """With one client for all: kombu builds one for each call, a third of a send's time."""
        if client is None:
            if self._kept_client is None or self._kept_client.connection_pool is not self.pool:
                self._kept_client = self._create_client()
            client = self._kept_client
        yield client

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str | None, queue: str) -> None:
        """Beside a worker's own binding, remove those of one lane's queue to another's exchange.

        An older release bound all to the default lane's: what was sent to it ran in each lane.
        """
        super()._queue_bind(exchange, routing_key, pattern, queue)  # type: ignore[misc]
        queues = self.lane_by_queue
        if not self.lane or queue != self._lane_queue or len(queues) == 1:
            return
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            for each in queues:
                old = [self.sep.join((each, "", other)) for other in queues if other != each]
                pipe.srem(self.keyprefix_queue % each, *old)
                pipe.srem(self.keyprefix_binding_permanent % each, *old)
            pipe.execute()

    # Sending

    def typeof(self, exchange: str, *args: Any, **kwargs: Any) -> Any:
        """Asked for all that is sent to an exchange; a closed channel has forgotten them."""
        if self.closed:
            # What kombu connects anew for, where it was told to try again.
            raise exceptions.ConnectionError("the channel was closed")
        return super().typeof(exchange, *args, **kwargs)

    def _put(self, queue: str, message: dict[str, Any], **kwargs: Any) -> None:
        """A message with a time waits in Redis until its server says that it has come.

        Raises:
            AlreadySent: when it is to be sent once, and was: another holds its lock.
        """
        due = _due(message)
        lane = self.lane_by_queue.get(queue)
        headers = message.get("headers") or {}
        is_keyed = headers.get(KEY) is not None or headers.get(ONCE) is not None
        batch = kwargs.get("_publish_batch")
        if lane is not None and isinstance(batch, Batch):
            batch.keep(self.store(queue), [Outgoing(dumps(message), unread=is_keyed)], due)
            return
        if lane is None or (due is None and not is_keyed):
            super()._put(queue, message, **kwargs)
            return
        store = self.store(queue)
        if due is not None and not is_keyed:
            store.delay({dumps(message): due}, batch=batch)
            return
        for holder in store.send([dumps(message)], due=due, batch=batch):
            if holder:
                raise AlreadySent(holder)

    def _purge(self, queue: str) -> int:
        """What `celery purge` deletes of a lane: what waits and what is delayed."""
        lane = self.lane_by_queue.get(queue)
        if lane is None:
            return int(super()._purge(queue))
        store = self.store(queue)
        counts = store.counts()
        delayed = sum(store.purge("delayed", counts.delayed))
        waiting = sum(store.purge("waiting", counts.waiting + counts.delayed - delayed))
        if delayed or waiting:
            text = "%s: deleted %d waiting and %d delayed; %d dead letters stay, see `purge --dead`"
            logger.warning(text, lane, waiting, delayed, counts.dead)
        return waiting + delayed

    def create_publish_batch(self, max_size: int) -> Batch:
        """Messages of a lane go in one command, and not each in its own."""
        return Batch(self, max_size)

    def store(self, queue: str) -> Store:
        """That of a lane's queue."""
        lane = self.lane_by_queue[queue]
        if lane not in self._stores:
            self._stores[lane] = Store(self.server.client, self._keys(lane, queue))
        return self._stores[lane]

    def _keys(self, lane: str, queue: str) -> Keys:
        return Keys(lane, queue, self.limits_by_lane.get(lane, NO_LIMITS))

    @cached_property
    def _stores(self) -> dict[str, Store]:
        return {}

    # Fetching

    @cached_property
    def _lane_queue(self) -> str:
        (queue,) = (queue for queue, name in self.lane_by_queue.items() if name == self.lane)
        return queue

    @property
    def leases(self) -> Leases:
        """This process's leases in the lane, made at the first use; they outlive the channel."""
        lane = str(self.lane)
        if lane not in _leases:
            _leases[lane] = Leases(
                Store(self.server.client, self._keys(lane, self._lane_queue)),
                self.server.clock,
                node=self.node,
                concurrency=self.concurrency,
                lease=self.lease,
                max_deliveries=self.max_deliveries,
                dead_cap=self.dead_cap,
                dead_size=self.dead_size,
                dead_age=self.dead_age,
                latency_slo=self.latency_slo,
                running=lambda: len(state.active_requests),
            )
        return _leases[lane]

    @cached_property
    def fetch(self) -> Fetch:
        """The conversation with the lane, on the connection that the event loop polls."""
        leases = self.leases
        return Fetch(leases.store.keys, owner=leases.owner, lease=leases.lease)

    def basic_consume(self, queue: str, no_ack: bool, *args: Any, **kwargs: Any) -> Any:
        """Without a lease a message could be lost, and its acknowledgement would make no sense.

        What needs none, such as a reply to remote control, is consumed as in kombu.
        """
        if not self.lane or no_ack or queue == self._lane_queue:
            return super().basic_consume(queue, no_ack, *args, **kwargs)
        logger.error(
            "the queue %s is not consumed: this worker serves the lane %s", queue, self.lane
        )
        return None

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> Any:
        """Only what needs no acknowledgement: a lease is taken by a round, and this has none."""
        if self.lane and not no_ack:
            raise UsageError(
                f"basic_get: a worker's connection gets nothing from {queue} by itself, since it "
                "would be lost with the worker: consume it, or use another connection of the app"
            )
        return super().basic_get(queue, no_ack=no_ack, **kwargs)

    def _brpop_start(self, timeout: float | None = None) -> None:
        """Instead of BRPOP, which takes a message before anything has recorded it."""
        if not self.lane or self._lane_queue not in self.active_queues:
            timeout = self._promote_due(timeout)
            super()._brpop_start(timeout)  # type: ignore[misc]
            return
        self.forget_round()
        fetch, leases = self.fetch, self.leases
        free = None if self._only_not_due else self.qos.can_consume_max_estimate()
        # With a round that waits, they would be told late.
        acks = () if fetch.waits else leases.take_acks()
        commands = fetch.begin(free or MOST, acks, last=leases.last)
        connection = self.client.connection
        self._in_poll = connection
        try:
            connection.send_packed_command(connection.pack_commands(commands))
        except BaseException:
            self.forget_round()
            self._in_poll = None
            raise

    def _promote_due(self, timeout: float | None) -> float | None:
        """What a lane's worker does as it fetches, for Celery's worker for tests: it has no lane.

        Returns:
            Seconds to wait for a message; no longer than what becomes due meanwhile may be late.
        """
        lanes = {queue: self.lane_by_queue.get(queue) for queue in self.active_queues}
        for queue, lane in lanes.items():
            if lane is not None:
                self.store(queue).promote()
        return FETCH if any(lanes.values()) else timeout

    def _brpop_read(self, **options: Any) -> bool:
        """Read the replies, and deliver the messages."""
        if not self.lane or self.fetch.round is None:
            return bool(super()._brpop_read(**options))  # type: ignore[misc]
        fetched = self._end_round()
        queue = self._lane_queue
        messages = {each.id: _payload(each, queue) for each in fetched.messages}
        if not messages:
            raise Empty
        try:
            self._mark_revoked(messages, fetched.revocations)
            self._deliver(messages, queue, float(fetched.now or 0.0))
        except BaseException:
            self.leases.hand_back(list(messages))
            raise
        return True

    def _end_round(self) -> Fetched:
        """Wait for the reply to each command in flight; what it brought is held from here on."""
        connection, self._in_poll = self.client.connection, None
        asked = self.fetch.round
        replies: list[Any] = []
        try:
            for command in asked.commands if asked else ():
                try:
                    replies.append(self.client.parse_response(connection, command[0]))
                except (
                    exceptions.ResponseError
                ) as error:  # the reply to the next one comes all the same
                    replies.append(error)
        except BaseException:
            self.forget_round()
            connection.disconnect()  # a reply that was not read may still come
            raise
        fetched = self.fetch.end(replies)
        self.leases.keep_acks(fetched.untold)
        if fetched.unknown_script:  # the server was restarted
            with self.conn_or_acquire() as client:
                client.script_load(EXCHANGE)
        ids = [each.id for each in fetched.messages]
        if fetched.refused:
            self.leases.hand_back(ids)
            raise fetched.refused
        if ids and fetched.took > self.leases.lease / 3:
            # The server fetched while this process was busy: some may be another's by now.
            ours = self.leases.still_ours(ids)
            kept = tuple(each for each in fetched.messages if each.id in ours)
            fetched = replace(fetched, messages=kept)
        self.leases.hold([each.id for each in fetched.messages])
        if not self.fetch.waits and (hub := get_event_loop()) is not None:
            hub.call_later(_TOGETHER, _turn)  # or it might turn late: see `has_enough`
        return fetched

    def _mark_revoked(self, messages: dict[str, Any], number: bytes) -> None:
        """Tell Celery which of these were revoked; it looks at that before it runs a task."""
        known = self._revocations
        if number != known.number:
            ids, stamps = known.learn(number)
            state.revoked.update(ids)
            by_header: dict[str, Any] = state.revoked_stamps
            for header, values in stamps.items():
                by_header[header] = [*(by_header.get(header) or ()), *values]
        if known.ids or known.stamps:
            for each in messages.values():
                if known.cover(each.get("headers")):
                    # Celery keeps fewer than we do, and not for as long.
                    state.revoked.add(each["headers"]["id"])

    @cached_property
    def _revocations(self) -> Revocations:
        return Revocations(self.server.client)

    def _deliver(self, messages: dict[str, Any], queue: str, now: float) -> None:
        """Give messages, by lease id, to the consumer; those that it has got are taken out.

        Args:
            now: seconds since 1970, when the server fetched them.
        """
        later = {id_: due for id_, each in messages.items() if (due := _due(each) or 0.0) > now}
        self._only_not_due = len(later) == len(messages)
        if later:
            self.leases.postpone(later)  # sent by a Celery without this transport
        for id_ in later:
            del messages[id_]
        free = self.qos.can_consume_max_estimate()
        for id_, message in list(messages.items())[:free]:
            # A signal's handler may cancel the consumer between any two.
            if queue not in self.connection._callbacks:  # noqa: SLF001
                break
            self.connection.deliver_leased(message, queue)
            del messages[id_]
        self.leases.hand_back(list(messages))

    @property
    def has_enough(self) -> bool:
        """Whether the next round can be for more messages: each slot has its next one here.

        Only for a moment, so that what a long task leaves free is filled, and what has ended is
        acknowledged, as soon as it ends.
        """
        if not self.lane or self._in_poll or self.fetch.waits or not self.connection.looped:
            return False
        held = self.qos.prefetch_count - (self.qos.can_consume_max_estimate() or 0)
        enough = held - len(state.active_requests) > self.concurrency
        return enough and time.monotonic() - self.fetch.ended_at < _TOGETHER

    @property
    def acknowledges_soon(self) -> bool:
        """Whether there will be a round in a moment that acknowledges what is done."""
        asked = self.fetch.round if self.lane and self._in_poll else None
        return self.has_enough if asked is None else not asked.waits

    def check_round(self) -> None:
        """Give up a round whose reply does not come: no time-out of a socket sees that.

        Raises:
            TimeoutError: when it is late, so that the worker connects anew.
        """
        asked = self.fetch.round if self.lane and self._in_poll else None
        if asked is not None and asked.is_late():
            self.client.connection.disconnect()
            self.forget_round()
            error = exceptions.TimeoutError("the broker has not answered in time")
            self.server.failed(error)
            raise error

    def forget_round(self) -> None:
        """What is in flight, if anything, will have no reply."""
        if "fetch" in self.__dict__:
            self.leases.keep_acks(self.fetch.lost())

    def maybe_refresh_binding_expiry(self) -> None:
        """A server that refuses is asked again; kombu's poller logs a traceback each second."""
        with suppress(exceptions.ResponseError):
            super().maybe_refresh_binding_expiry()  # type: ignore[misc]

    def close(self) -> None:
        """Without kombu's last read, which would deliver what nobody is there to run."""
        if self.lane and self._in_poll and self.fetch.round is not None:
            # Half a second, when the server is there. When the connection is lost, so are the
            # replies; what they leased runs out.
            with suppress(exceptions.RedisError, OSError):
                self.leases.hand_back([each.id for each in self._end_round().messages])
            self._in_poll = None
        self.forget_round()
        client = self.connection.client if self.connection else None
        super().close()
        if client and not self.lane:
            self.connection = _Closed(client)


class _Closed:
    """What a sender's closed channel has for a connection: none, but the way to a new one.

    A producer that was kept over an outage asks its channel for it, when it is sent with.
    """

    def __init__(self, client: Any) -> None:
        self.client = client

    def __bool__(self) -> bool:
        return False


def _turn() -> None:
    """Nothing: it is the event loop's turn that counts, since each begins with `on_poll_start`."""


def _is_stopping() -> bool:
    return state.should_stop is not None or state.should_terminate is not None


def _payload(leased: Leased, queue: str) -> Any:
    """What the bytes say, or that they say nothing."""
    try:
        text = leased.message.decode()
        # kombu's way has its hook called for each object, for what is seldom there.
        payload = upgraded(loads(text) if "__type__" in text else json.loads(text))
        payload["properties"]["delivery_tag"] = leased.id
        # A retry goes where its message says that it was sent: an exchange of another Celery's, or
        # a queue that it was moved from, would be refused, and the retry with it.
        info = payload["properties"].get("delivery_info")
        if isinstance(info, dict):
            info.update(exchange="", routing_key=queue, redelivered=leased.again)
    except Exception as error:  # noqa: BLE001 - anything may have been sent
        why = f"{type(error).__name__}: {error}"
        return {"properties": {"delivery_tag": leased.id}, "headers": {}, "malformed": why}
    return payload


def _due(message: Any) -> float | None:
    """When the message is due, in seconds since 1970, if it says so in a way that can be read."""
    try:
        return instant(message["headers"]["eta"])
    except (KeyError, TypeError):
        return None


class Poller(kombu_redis.MultiChannelPoller):
    """kombu's poller; each round sends acknowledgements, and gives up replies that are late."""

    _channels: Any

    def on_poll_start(self) -> None:
        """Called before each wait for something to read."""
        for channel in self._channels:
            channel.check_round()
        super().on_poll_start()
        if any(channel.acknowledges_soon for channel in self._channels):
            return
        for leases in _leases.values():
            leases.send_acks()


class Transport(kombu_redis.Transport):
    """The one transport, for every scheme: how to connect is the server's to know."""

    Channel = LeasedChannel
    client: Any
    looped = False  # whether an event loop turns the poller

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As kombu's, with our poller."""
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def _deliver(self, message: Any, queue: str | None) -> None:
        """Also to Celery's worker for tests, which reads its messages as kombu does."""
        lane = self.client.transport_options.get("lane_by_queue", {}).get(queue)
        if lane is not None:
            headers = message.get("headers") if isinstance(message, dict) else None
            is_locked = isinstance(headers, dict) and headers.get(ONCE) is not None
            if message == STAND_IN or is_locked:
                server = self.client.transport_options["server"]
                store = Store(server.client, Keys(lane, str(queue)))
                taken = store.take(dumps(message) if is_locked else "")
                if taken is None:
                    return
                message = loads(taken.decode())
            message = upgraded(message)
        super()._deliver(message, queue)

    def deliver_leased(self, message: Any, queue: str) -> None:
        """What is held by a lease goes to its consumer as it is: its lock ends with the lease."""
        super()._deliver(message, queue)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """The poller's rounds are the loop's from here on."""
        super().register_with_event_loop(connection, loop)
        self.looped = True
