"""Many calls of one task, sent in few steps: what `send_many` does."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import Context, copy_context
from secrets import token_hex
from typing import Any, NamedTuple

from celery.canvas import Signature
from celery.signals import after_task_publish, before_task_publish
from celery.utils import uuid
from kombu.exceptions import KombuError, SerializationError
from kombu.serialization import dumps
from redis.exceptions import RedisError

from .config import Lane
from .direct import nobody_listens
from .envelope import Envelope, encoded, whole
from .errors import SendError
from .keyed import key_of
from .protocol import shown
from .redis.store import KEY, Outgoing, instant
from .routing import mark, stamp
from .timeouts import POOL

#: Messages that are sent together.
BATCH = 1000
#: Options that one of many may have of its own. Those of one lane, with the same times, are alike.
_OWN = frozenset(
    (
        *("lane", "queue", "countdown", "eta", "expires", "ignore_result"),
        *("headers", "key", "task_id"),
    )
)
#: What differs between messages that are alike, besides the body; KEY, where they have one.
_DIFFERS = frozenset(
    ("id", "root_id", "correlation_id", "delivery_tag", "argsrepr", "kwargsrepr", KEY)
)


class _Call(NamedTuple):
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    options: Mapping[str, Any]  # those of all, and its own in their place


class _Kind(NamedTuple):
    """Messages that are alike."""

    message: Any  # Celery's, of protocol 2, marked and stamped
    lane: Lane
    due: float | None  # seconds since 1970, by the server's clock
    envelope: Envelope


def send(task: Any, calls: Iterable[Any], options: Mapping[str, Any]) -> int:
    """Send a task many times, as its `send_many` says.

    Args:
        task: the task.
        calls: of each, its positional arguments, or its signature.
        options: those of all; None is not said.

    Returns:
        How many.
    """
    app, sent = task.app, 0
    options = {name: value for name, value in options.items() if value is not None}
    _lane(task, options)
    if app.conf.task_always_eager:
        for each in calls:
            call = _call(task, each, options)
            task.apply_async(call.args, call.kwargs, **call.options)
            sent += 1
        return sent
    try:
        with app.producer_pool.acquire(block=True, timeout=POOL) as producer:
            for batch in _batches(calls):
                _Batch(task, options, producer).send(batch)
                sent += len(batch)
    except SerializationError:
        raise
    except (KombuError, OSError, RedisError) as error:
        raise SendError(
            f"{task.name}: {sent} tasks certainly were sent, and up to {BATCH} more may have "
            f"been, when the broker failed: {app.server.explain(error)}",
            sent,
        ) from error
    return sent


def _lane(task: Any, options: Mapping[str, Any]) -> Lane:
    app = task.app
    wanted = {"queue": getattr(task, "queue", None)}
    wanted |= {name: options[name] for name in ("lane", "queue") if name in options}
    lane: Lane = app.lanes.for_queue(app.amqp.router.placed(wanted, task.name, task)["queue"].name)
    return lane


def _call(task: Any, each: Any, options: Mapping[str, Any]) -> _Call:
    """One of many.

    Raises:
        TypeError: when it is another task's, or has options that one of many cannot have.
    """
    if not isinstance(each, Signature):
        return _Call(tuple(each), {}, options)
    if each.task != task.name:
        raise TypeError(
            f"{task.name}: send_many sends this task alone, and {each!r} is a call of {each.task}: "
            "use that one's send_many, or a group"
        )
    own = {name: value for name, value in each.options.items() if value is not None}
    if not own:
        return _Call(each.args, each.kwargs, options)
    for name in own.keys() - _OWN:
        raise TypeError(
            f"{task.name}: {name}={own[name]!r} cannot be used in send_many, where a call's own "
            f"options are {', '.join(sorted(_OWN))}: send {each!r} by its apply_async"
        )
    # What is said in another way is not said twice.
    replaced = {"lane", "queue"} if own.keys() & {"lane", "queue"} else set()
    replaced |= {"countdown", "eta"} if own.keys() & {"countdown", "eta"} else set()
    rest = {name: value for name, value in options.items() if name not in replaced}
    return _Call(each.args, each.kwargs, rest | own)


class _Batch:
    """Calls that are sent together."""

    def __init__(self, task: Any, options: Mapping[str, Any], producer: Any) -> None:
        self.task, self.options, self.producer = task, options, producer
        self.app = task.app
        # Then Celery's signals are sent for each, and its events.
        self.one_by_one = not nobody_listens(self.app)
        self.kinds: dict[tuple[Any, ...], _Kind] = {}
        self.usual: dict[bool, _Kind] = {}  # of calls without options, by whether they have a key
        self.key = self._key(_Call((), {}, options)) if "key" in options else None

    def send(self, batch: Sequence[Any]) -> None:
        """Send each as it is, with its own id, arguments, key and options, in one step."""
        task, sent = self.task, []
        check = task.__header__ if task.typing else None
        pipeline = self.producer.channel.create_publish_batch(max_size=BATCH)
        outgoing: dict[tuple[str, float | None], list[Outgoing]] = {}
        try:
            for each in batch:
                call = _call(task, each, self.options)
                if check:
                    check(*call.args, **call.kwargs)  # raises TypeError, as `delay` does
                is_usual = call.options is self.options
                key = self.key
                if not is_usual or (key is None and task.find_key):
                    key = self._key(call)
                kind = self.usual.get(key is not None) if is_usual else None
                if kind is None:
                    kind = self._kind(call.options, is_keyed=key is not None)
                    if is_usual:
                        self.usual[key is not None] = kind
                if self.one_by_one:
                    sent.append(self._publish(pipeline, kind, call, key))
                else:
                    place = kind.lane.queue, kind.due
                    outgoing.setdefault(place, []).append(self._outgoing(kind, call, key))
            for (queue, due), messages in outgoing.items():
                pipeline.keep(self.producer.channel.store(queue), messages, due)
            pipeline.flush()
        finally:
            pipeline.close()
        for each in sent:
            self._tell(*each)

    def _key(self, call: _Call) -> str | None:
        return key_of(self.task.name, call.options, call.args, call.kwargs, self.task)

    def _kind(self, options: Mapping[str, Any], *, is_keyed: bool) -> _Kind:
        if "headers" in options:
            return self._new_kind(options, is_keyed=is_keyed)
        times = map(options.get, ("countdown", "eta", "expires"))
        ignores_result = options.get("ignore_result", True)
        alike = (_lane(self.task, options).name, ignores_result, is_keyed, *times)
        if alike not in self.kinds:
            self.kinds[alike] = self._new_kind(options, is_keyed=is_keyed)
        return self.kinds[alike]

    def _new_kind(self, options: Mapping[str, Any], *, is_keyed: bool) -> _Kind:
        lane = _lane(self.task, options)
        message = self.app.amqp.create_task_message(
            "",
            self.task.name,
            countdown=options.get("countdown"),
            eta=options.get("eta"),
            expires=options.get("expires", self.task.expires),
            ignore_result=options.get("ignore_result", True),
            create_sent_event=self.app.conf.task_send_sent_event,
        )
        message.headers.update(options.get("headers") or {})
        mark(message.headers, "" if is_keyed else None)
        stamp(message.headers, lane, self.app.server.clock.now())
        due = instant(message.headers["eta"])
        return _Kind(message, lane, due, Envelope.of(lane, whole(lane, message), _DIFFERS))

    def _outgoing(self, kind: _Kind, call: _Call, key: str | None) -> Outgoing:
        id_ = call.options.get("task_id") or uuid()
        values = {"id": id_, "root_id": id_, "correlation_id": id_, KEY: key}
        values |= {"argsrepr": shown(call.args), "kwargsrepr": shown(call.kwargs)}
        _, values["body"] = encoded((call.args, call.kwargs, kind.envelope.embedded))
        values["delivery_tag"] = token_hex(16)
        return Outgoing(kind.envelope.filled(values), key)

    def _publish(
        self, pipeline: Any, kind: _Kind, call: _Call, key: str | None
    ) -> tuple[Context, _Kind, dict[str, Any]]:
        """Have one sent by way of kombu's channel, as receivers of Celery's signals want it."""
        id_ = call.options.get("task_id") or uuid()
        own = {"id": id_, "root_id": id_}
        own |= {"argsrepr": shown(call.args), "kwargsrepr": shown(call.kwargs)}
        if key is not None:
            own[KEY] = key
        headers = kind.message.headers | own
        properties = kind.message.properties | {"correlation_id": id_, "delivery_mode": 2}
        whole = (call.args, call.kwargs, kind.message.body[2])
        place = {"exchange": "", "routing_key": kind.lane.queue}
        context = copy_context()  # a tracer keeps a span open from before to after
        if before_task_publish.receivers:
            listeners = {"body": whole, "headers": headers, "properties": properties}
            unused: dict[str, Any] = {"declare": (), "retry_policy": {}}
            context.run(before_task_publish.send, self.task.name, **listeners, **place, **unused)
        content_type, encoding, body = dumps(whole, "json")
        prepared = self.producer.channel.prepare_message(
            body,
            content_type=content_type,
            content_encoding=encoding,
            headers=headers,
            properties=properties,
        )
        pipeline.publish(prepared, **place)
        return context, kind, {"body": whole, "headers": headers}

    def _tell(self, context: Context, kind: _Kind, sent: dict[str, Any]) -> None:
        """Signal that a message was sent, and send the event of it, where that is on."""
        queue, headers = kind.lane.queue, sent["headers"]
        place = {"exchange": "", "routing_key": queue}
        if after_task_publish.receivers:
            context.run(after_task_publish.send, self.task.name, **sent, **place)
        if kind.message.sent_event:
            event = {name: headers.get(name) for name in ("root_id", "retries", "eta")}
            event |= {name: headers[f"{name}repr"] for name in ("args", "kwargs")}
            event |= {"uuid": headers["id"], "queue": queue, **place}
            event = kind.message.sent_event | event
            dispatcher = self.app.amqp._event_dispatcher  # noqa: SLF001
            dispatcher.publish("task-sent", event, self.producer, retry=False)


def _batches(items: Iterable[Any]) -> Iterator[list[Any]]:
    source = iter(items)
    while batch := list(itertools.islice(source, BATCH)):
        yield batch
