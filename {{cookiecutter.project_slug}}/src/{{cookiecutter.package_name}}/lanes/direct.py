"""The short way to send one message: its text is made here, and sent on a kept connection.

`app.send_task` goes it, and so `delay`, `apply_async`, the steps of a chain and a retry, with any
of the options in `envelope.OPTIONS`; a group's tasks, too, which wait in a batch until they are
sent together. Celery's own way, through kombu's producer and redis-py's client, takes three times
as long. It is still gone where somebody listens (a receiver of `before_task_publish`, a monitor, a
tracer), for other options, such as `unique`, `priority` or a `producer` that has no batch, and
after a failure here, since it tries again. The two send the same bytes, but for ids and times.
"""

import functools
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from celery import Celery
from celery.signals import after_task_publish, before_task_publish, task_sent
from celery.utils import uuid
from kombu.exceptions import OperationalError
from kombu.messaging import Producer
from redis import Redis
from redis.exceptions import RedisError

from .envelope import OPTIONS, Call, Writer
from .redis.batch import Batch
from .routing import giving_up_in_time


def _unless_replaced(owner: type, name: str) -> object:
    """A method as its class was written; nothing else is, where a tracer has wrapped it already."""
    found = vars(owner)[name]
    is_own = type(found) is FunctionType and found.__globals__["__name__"] == owner.__module__
    return found if is_own else object()


#: What the short way leaves out. Whoever has put something else there, such as a tracer, is to be
#: called: then it is not gone.
_SEND_TASK = _unless_replaced(Celery, "send_task")
_PUBLISH = _unless_replaced(Producer, "publish")
_EXECUTE = _unless_replaced(Redis, "execute_command")
#: Whose `on_task_call`, which Celery calls for a send, is empty.
_DO_NOTHING = ("celery.backends.base", f"{__package__}.results")


def shortened(app: Any, celerys: Callable[..., Any]) -> Callable[..., Any]:
    """`app.send_task` with a short way before `celerys`; alone that, where an app has its own."""
    if "send_task" in vars(app):
        return celerys
    writer = Writer(app)

    @functools.wraps(celerys)
    def send_task(
        name: str, args: Any = None, kwargs: Any = None, *more: Any, **options: Any
    ) -> Any:
        producer = options.get("producer")
        batch = None if producer is None else batch_of(producer)
        is_short = not more and (producer is None or batch is not None) and nobody_listens(app)
        given = _plain(app, name, options) if is_short else None
        parent = app.current_worker_task
        if given is None or (parent and app.conf.task_inherit_parent_priority):
            return celerys(name, args, kwargs, *more, **options)
        id_ = given.get("task_id") or uuid()
        try_again = giving_up_in_time()
        call = Call(name, args, kwargs, id_, given, parent and parent.request)
        store, message, due = writer.written(call)
        try:
            if batch is not None:
                batch.keep(store, [message], due)
            else:
                app.server.call(*store.sending(message, due))
        except (RedisError, OSError) as error:
            try:
                try_again(error, 0.0)
            except type(error):  # it has taken all the time that a send may take
                raise OperationalError(app.server.explain(error)) from None
            # By the same id, since it may have been sent; and with what is left of the time.
            rest = {"task_id": id_, "retry_policy": {"errback": try_again}}
            return celerys(name, args, kwargs, **options | rest)
        result = (given.get("result_cls") or app.AsyncResult)(id_)
        result.ignored = given.get("ignore_result")
        if parent and given.get("add_to_parent", True):
            parent.add_trail(result)
        return result

    return send_task


def batch_of(producer: Any) -> Batch | None:
    """What keeps the messages that a producer of kombu's sends, within its `batch()`."""
    state = getattr(getattr(producer, "_batch_local", None), "current", None)
    session = None if state is None or state.aborted else state._get_session(producer.channel)  # noqa: SLF001
    return session if isinstance(session, Batch) else None


def nobody_listens(app: Any) -> bool:
    """To what Celery's way of a send does, and the short one does not."""
    amqp = app.amqp
    return (
        not (before_task_publish.receivers or after_task_publish.receivers or task_sent.receivers)
        and app.__class__.send_task is _SEND_TASK  # of a group, it may be a proxy
        and Producer.publish is _PUBLISH
        and Redis.execute_command is _EXECUTE
        and amqp.send_task_message is getattr(amqp, "own_sender", None)
        and amqp.sends_plainly
        and not app.conf.task_send_sent_event
    )


def _plain(app: Any, name: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """The options that are given, with a task's own as Celery has them; None: more than we know."""
    if options.get("task_type") is None:
        if app.conf.task_always_eager:
            return None  # of which Celery warns
        task = app._tasks.get(name)  # noqa: SLF001
        if task is not None:
            own = task._get_exec_options().items()  # noqa: SLF001
            options = {each: value for each, value in own if value is not None} | options
            options["task_type"] = task
    given = {each: value for each, value in options.items() if value is not None}
    expires = given.get("expires", 0)
    if "queue" in given:
        given["queue"] = getattr(given["queue"], "name", given["queue"])  # a kombu.Queue, or so
    is_plain = (
        given.keys() <= OPTIONS
        and given.get("serializer", "json") == "json"
        and isinstance(given.get("headers", {}), Mapping)
        and isinstance(expires, int | float)
        and expires >= 0
        and type(app.backend).on_task_call.__module__ in _DO_NOTHING
    )
    return given if is_plain else None
