"""The short way to send tasks: the envelope is made once, and only what differs is filled in.

Celery's way of a send, by its `send_task`, kombu's producer and redis-py's `execute_command`, takes
four times as long, most of it to decide anew what is the same for each message of a task. Whatever
is not plain, an option, a receiver of a signal, a batch, goes that way; so does a send that fails
here, since that way tries again. The two make the same message, but for its ids and times: a test
compares them over options that hypothesis makes.
"""

import json
import os
import re
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import celery
from celery.backends.base import DisabledBackend
from celery.signals import after_task_publish, before_task_publish, task_sent
from celery.utils import uuid
from celery.utils.nodenames import anon_nodename
from kombu import serialization
from kombu.exceptions import OperationalError
from kombu.utils.json import JSONEncoder, dumps
from redis import exceptions

from .config import Lane
from .protocol import shown
from .redis.batch import Batch
from .redis.store import KEY, Outgoing
from .results import Backend
from .routing import LANE_EXPIRES, MAPS, SENT_AT, stamp

_SIGNALS = (before_task_publish, after_task_publish, task_sent)
#: What differs from message to message, and where it stands in one.
_PLACES = {"body": None} | dict.fromkeys(
    (
        *("id", "root_id", "parent_id", "group", "group_index", "argsrepr", "kwargsrepr"),
        *("origin", SENT_AT, "expires", LANE_EXPIRES, KEY),
    ),
    "headers",
)
_PLACES |= dict.fromkeys(("correlation_id", "reply_to", "delivery_tag"), "properties")
#: Options of a call that Celery's `group` makes, and that change nothing else in a message.
OF_A_GROUP = frozenset(
    (
        *("task_id", "root_id", "parent_id", "reply_to", "group_id", "group_index"),
        *("producer", "add_to_parent"),
    )
)
_MARK = "\x00{}\x00"  # JSON writes the zero as \u0000, which no other text here has


@dataclass(frozen=True, slots=True)
class Envelope:
    """Messages of one task in one lane, without what differs."""

    lane: Lane
    text: str  # with `%(name)s` where something differs
    embedded: str  # the third part of a body, as JSON
    ignores_result: bool

    @classmethod
    def of(cls, lane: Lane, message: Any, differs: Collection[str]) -> "Envelope":
        """That of messages like one.

        Args:
            message: Celery's, of protocol 2, that is marked and stamped.
            differs: names of what is to be filled in.
        """
        whole = {
            "body": None,
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": dict(message.headers),
            "properties": message.properties
            | {
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": lane.queue},
                "priority": 0,
                "body_encoding": "base64",
                "delivery_tag": None,
            },
        }
        for part, place in _PLACES.items():
            within: Any = whole if place is None else whole[place]
            if part in differs and part in within:
                within[part] = _MARK.format(part)
        text = dumps(whole).replace("%", "%%")
        text = re.sub(r'"\\u0000(\w+)\\u0000"', r"%(\1)s", text)
        return cls(lane, text, dumps(message.body[2]), message.headers["ignore_result"])

    def filled(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], differs: dict[str, str]
    ) -> bytes:
        """A message.

        Args:
            args: positional arguments of the task.
            kwargs: its keyword arguments.
            differs: what else is to be filled in, as JSON, by name; the arguments are added.

        Raises:
            Exception: of any kind, when JSON knows no such arguments.
        """
        body = f"[{_json(args)}, {_json(kwargs) if kwargs else '{}'}, {self.embedded}]"
        differs["body"] = f'"{b64encode(body.encode()).decode()}"'
        differs["argsrepr"] = _quoted(shown(args))
        differs["kwargsrepr"] = _quoted(shown(kwargs)) if kwargs else '"{}"'
        return (self.text % differs).encode()


_json = JSONEncoder().encode
_quoted = json.JSONEncoder().encode  # a text


def send(
    task: Any,
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    id_: str,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Any:
    """Send a task as a call does without any option, or with those of a group's tasks.

    Args:
        task: the task, whose call it is.
        args: its positional arguments.
        kwargs: its keyword arguments.
        id_: the task's, in Celery's way, too, should that have to be gone: it may have been sent.
        options: those in `OF_A_GROUP`, `producer` among them; none for a send by itself.

    Returns:
        The result to ask for; None when that way is to be gone.

    Raises:
        BatchPublishError: when there were enough in the producer's batch, and that failed.
        OperationalError: when the broker is silent: nobody waits for it twice.
        TypeError: when the arguments are not the function's.
    """
    app, args, kwargs = task.app, args or (), kwargs or {}
    batch = batch_of(options["producer"]) if options else None
    if options and batch is None:
        return None
    envelope = _envelope_now(app, task)
    if envelope is None or not (isinstance(args, list | tuple) and isinstance(kwargs, Mapping)):
        return None
    if task.typing:
        task.__header__(*args, **kwargs)
    parent = app.current_worker_task
    differs = _differs(app, envelope, id_, parent and parent.request, options)
    try:
        message = envelope.filled(args, kwargs, differs)
    except Exception:  # noqa: BLE001 - Celery's way says what is wrong with them
        return None
    queue = envelope.lane.queue
    if batch is not None:
        batch.keep(batch.channel.store(queue), [Outgoing(message)])
    elif not _push(app.server, queue, message):
        return None
    result = task.AsyncResult(id_)
    result.ignored = envelope.ignores_result
    if parent and options.get("add_to_parent", True):
        parent.add_trail(result)
    return result


def batch_of(producer: Any) -> Batch | None:
    """What keeps the messages that a producer of kombu's sends, within its `batch()`."""
    state = getattr(getattr(producer, "_batch_local", None), "current", None)
    session = None if state is None or state.aborted else state._get_session(producer.channel)  # noqa: SLF001
    return session if isinstance(session, Batch) else None


def is_heard(app: Any) -> bool:
    """Whether anybody listens to Celery's signals or events of a send."""
    return any(signal.receivers for signal in _SIGNALS) or app.conf.task_send_sent_event


def is_celerys_json() -> bool:
    """Whether messages are written as kombu does, and nobody has put another JSON there."""
    kombus: Any = serialization
    return kombus.registry._encoders["json"].encoder is dumps  # noqa: SLF001


def _envelope_now(app: Any, task: Any) -> Envelope | None:
    """Of a task's messages, unless Celery, or anybody who listens to it, has more to do."""
    if is_heard(app) or app.send_task is not app.own_send_task:
        return None
    if app.conf.task_always_eager or not is_celerys_json():
        return None
    if task.envelope is False:
        task.envelope = _envelope(app, task)
    envelope: Envelope | None = task.envelope
    is_right = envelope is not None and envelope.ignores_result is task.ignore_result
    return envelope if is_right else None


def _differs(
    app: Any, envelope: Envelope, id_: str, request: Any, options: Mapping[str, Any]
) -> dict[str, str]:
    """What differs, as JSON; without the arguments."""
    headers: dict[str, Any] = {}
    stamp(headers, envelope.lane, app.server.clock.now())
    own = {
        "id": id_,
        "correlation_id": id_,
        "root_id": options.get("root_id") or (request and (request.root_id or request.id)) or id_,
        "parent_id": options.get("parent_id") or (request.id if request else None),
        "group": options.get("group_id"),
        "group_index": options.get("group_index"),
        "origin": _origin(),
        "reply_to": options.get("reply_to") or app.thread_oid,
        "delivery_tag": uuid(),
    }
    return {
        name: "null" if value is None else _quoted(value) for name, value in (headers | own).items()
    }


_origins: dict[int, str] = {}


def _origin() -> str:
    """This process, as Celery calls a sender."""
    process = os.getpid()
    if process not in _origins:
        _origins[process] = anon_nodename()
    return _origins[process]


def _push(server: Any, queue: str, message: bytes) -> bool:
    """One command, without redis-py's ways to try it again; whether it was done."""
    pool = server.client.connection_pool
    try:
        connection = pool.get_connection()
        try:
            connection.send_command("LPUSH", queue, message)
            connection.read_response()
        except BaseException:
            connection.disconnect()  # a reply that was not read may still come
            raise
        finally:
            pool.release(connection)
    except exceptions.TimeoutError as error:
        raise OperationalError(server.explain(error)) from None
    except (exceptions.RedisError, OSError):
        return False
    return True


def _envelope(app: Any, task: Any) -> Envelope | None:
    """What messages of a task have in common; None: each is to be made by Celery."""
    conf = app.conf
    options = {name: value for name, value in task._get_exec_options().items() if value is not None}  # noqa: SLF001
    is_plain = (
        type(task).shadow_name is celery.Task.shadow_name
        and task._dump_pydantic_arguments is None  # noqa: SLF001
        and task.find_key is None
        and task.name not in MAPS  # whose lane is that of the task that each runs
        and options.keys() <= {"queue", "serializer"}
        and options.get("serializer", conf.task_serializer) == "json"
        and not conf.task_compression
        and not conf.task_inherit_parent_priority
        and isinstance(app.backend, Backend | DisabledBackend)
    )
    if not is_plain:
        return None
    queue = app.amqp.router.route(options, task.name, task_type=task)["queue"].name
    made = app.amqp.create_task_message("", task.name, ignore_result=task.ignore_result)
    lane = app.lanes.for_queue(queue)
    stamp(made.headers, lane, 0.0)
    return Envelope.of(lane, made, _PLACES)
