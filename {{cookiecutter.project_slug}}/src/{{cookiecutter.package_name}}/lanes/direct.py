"""The short way to send one task: the envelope is made once, and only what differs is filled in.

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import celery
from celery.backends.base import DisabledBackend
from celery.signals import after_task_publish, before_task_publish, task_sent
from celery.utils import uuid
from celery.utils.nodenames import anon_nodename
from kombu.exceptions import OperationalError
from kombu.utils.json import dumps
from redis import exceptions

from .config import Lane
from .protocol import shown
from .results import Backend
from .routing import LANE_EXPIRES, SENT_AT, stamp

_SIGNALS = (before_task_publish, after_task_publish, task_sent)
#: What differs from message to message, and where it stands in one.
_PLACES = {"body": None} | dict.fromkeys(
    (
        *("id", "root_id", "parent_id", "argsrepr", "kwargsrepr", "origin"),
        *(SENT_AT, "expires", LANE_EXPIRES),
    ),
    "headers",
)
_PLACES |= dict.fromkeys(("correlation_id", "reply_to", "delivery_tag"), "properties")
_MARK = "\x00{}\x00"  # JSON writes the zero as \u0000, which no other text here has


@dataclass(frozen=True, slots=True)
class Envelope:
    """The message of one task in one lane, without what differs."""

    lane: Lane
    pieces: tuple[str, ...]  # of text, and between two of them
    parts: tuple[str, ...]  # what is to be put there, by name
    embedded: Mapping[str, Any]  # the third part of a body
    ignores_result: bool


def send(task: Any, args: Sequence[Any] | None, kwargs: Mapping[str, Any] | None, id_: str) -> Any:
    """Send a task as a call without any option does.

    Args:
        task: the task, whose call it is.
        args: its positional arguments.
        kwargs: its keyword arguments.
        id_: the task's, in Celery's way, too, should that have to be gone: it may have been sent.

    Returns:
        The result to ask for; None when that way is to be gone.

    Raises:
        OperationalError: when the broker is silent: nobody waits for it twice.
        TypeError: when the arguments are not the function's.
    """
    app, args, kwargs = task.app, args or (), kwargs or {}
    envelope = _envelope_now(app, task)
    if envelope is None or not (isinstance(args, list | tuple) and isinstance(kwargs, Mapping)):
        return None
    if task.typing:
        task.__header__(*args, **kwargs)
    parent = app.current_worker_task
    values = _values(app, envelope, id_, parent and parent.request)
    try:
        body = dumps((args, kwargs, envelope.embedded)).encode()
    except Exception:  # noqa: BLE001 - Celery's way says what is wrong with them
        return None
    values["body"] = f'"{b64encode(body).decode()}"'
    values["argsrepr"], values["kwargsrepr"] = map(json.dumps, (shown(args), shown(kwargs)))
    text = [envelope.pieces[0]]
    for part, piece in zip(envelope.parts, envelope.pieces[1:], strict=True):
        text += (values[part], piece)
    if not _push(app.server, envelope.lane.queue, "".join(text)):
        return None
    result = task.AsyncResult(id_)
    result.ignored = envelope.ignores_result
    if parent:
        parent.add_trail(result)
    return result


def _envelope_now(app: Any, task: Any) -> Envelope | None:
    """Of a task's messages, unless Celery, or anybody who listens to it, has more to do."""
    if any(signal.receivers for signal in _SIGNALS) or app.send_task is not app.own_send_task:
        return None
    if app.conf.task_always_eager or app.conf.task_send_sent_event:
        return None
    if task.envelope is False:
        task.envelope = _envelope(app, task)
    envelope: Envelope | None = task.envelope
    is_right = envelope is not None and envelope.ignores_result is task.ignore_result
    return envelope if is_right else None


def _values(app: Any, envelope: Envelope, id_: str, request: Any) -> dict[str, str]:
    """What differs, as JSON; without the arguments."""
    headers: dict[str, Any] = {}
    stamp(headers, envelope.lane, app.server.clock.now())
    own = {
        "id": id_,
        "correlation_id": id_,
        "root_id": (request and (request.root_id or request.id)) or id_,
        "parent_id": request.id if request else None,
        "origin": _origin(),
        "reply_to": app.thread_oid,
        "delivery_tag": uuid(),
    }
    return {name: json.dumps(value) for name, value in (headers | own).items()}


_origins: dict[int, str] = {}


def _origin() -> str:
    """This process, as Celery calls a sender."""
    process = os.getpid()
    if process not in _origins:
        _origins[process] = anon_nodename()
    return _origins[process]


def _push(server: Any, queue: str, message: str) -> bool:
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
    message = {
        "body": None,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": made.headers,
        "properties": made.properties
        | {
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": None,
        },
    }
    for part, place in _PLACES.items():
        within = message if place is None else message[place]
        if part in within:
            within[part] = _MARK.format(part)
    pieces = re.split(r'"\\u0000(\w+)\\u0000"', dumps(message))
    return Envelope(lane, tuple(pieces[::2]), tuple(pieces[1::2]), made.body[2], task.ignore_result)
