"""The Task base: `lane=` on a task, and the limits its lane gives it."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import celery
from celery.utils import uuid
from kombu.exceptions import KombuError
from kombu.serialization import dumps
from redis.exceptions import RedisError

from .errors import RoutingError, SendError
from .routing import home_lane, shown, stamp
from .timeouts import POOL

#: Messages in one pipeline of `send_many`.
BATCH = 1000


class Task(celery.Task[..., Any]):
    """Base of every task of the app.

    Time limits are the worker's (a task has the limits of the lane it runs in, wherever it was
    declared); retries and results are the task's, from its own lane, unless it sets them itself.
    """

    Request = f"{__package__}.consumer:Request"
    __header__: Any  # Celery's check of the arguments, unknown to celery-types
    lane: str | None = None  # its own lane; None: the one its name routes to

    @classmethod
    def bind(cls, app: Any) -> Any:
        """Called by Celery once for each task, when it is defined.

        Raises:
            RoutingError: when the task names a lane or a queue that is not declared.
        """
        own = {key for base in cls.__mro__[: cls.__mro__.index(Task)] for key in vars(base)}
        lane = home_lane(app.lanes, cls.name, cls)
        queue = getattr(cls, "queue", None)
        if queue is not None:
            by_queue = app.lanes.for_queue(queue)
            if cls.lane and by_queue is not lane:
                raise RoutingError(
                    f"{cls.name}: lane={cls.lane!r} and queue={queue!r} disagree; name one of them"
                )
            lane = by_queue
        if "max_retries" not in own:
            cls.max_retries = lane.max_retries
        if "ignore_result" not in own:
            cls.ignore_result = not lane.results
        return super().bind(app)

    def send_many(
        self,
        arguments: Iterable[Sequence[Any]],
        *,
        lane: str | None = None,
        countdown: float | None = None,
        expires: float | None = None,
    ) -> int:
        """Send one task for each of `arguments`, in batches; returns how many.

        Many times as fast as a `delay` for each, since all but the arguments is made once for a
        batch. An iterator of a million is read as it is sent, so that memory stays bounded. No
        results are kept: there would be a million to ask for.

        Args:
            arguments: for each task, its positional arguments.
            lane: another lane than the task's own, for all.
            countdown: seconds before which none starts.
            expires: seconds after which those that have not started are set aside.

        Raises:
            RoutingError: when there is no such lane.
            SendError: when the broker fails; its `sent` certainly were sent, and up to `BATCH` more
                may have been.
        """
        app: Any = self.app
        wanted = {"queue": getattr(self, "queue", None), "lane": lane}
        queue = app.amqp.router.route(wanted, self.name, task_type=self)["queue"]
        sent = 0
        try:
            with app.producer_pool.acquire(block=True, timeout=POOL) as producer:
                for batch in _batches(arguments):
                    message = app.amqp.create_task_message(
                        "", self.name, countdown=countdown, expires=expires, ignore_result=True
                    )
                    stamp(message.headers, app.lanes.for_queue(queue.name), app.server.clock.now())
                    self._send_batch(producer.channel, queue.name, message, batch)
                    sent += len(batch)
        except (KombuError, OSError, RedisError) as error:
            raise SendError(
                f"{self.name}: {sent} tasks certainly were sent, and up to {BATCH} more may have "
                f"been, when the broker failed: {app.server.explain(error)}",
                sent,
            ) from error
        return sent

    def _send_batch(
        self, channel: Any, queue: str, message: Any, batch: list[Sequence[Any]]
    ) -> None:
        """Send copies of `message`, each with its own arguments, in one pipeline."""
        _, kwargs, options = message.body
        pipeline = channel.create_publish_batch(max_size=BATCH)
        try:
            for arguments in batch:
                self.__header__(*arguments)  # raises TypeError, as `delay` does
                id_ = uuid()
                own = {"id": id_, "root_id": id_, "argsrepr": shown(arguments)}
                content_type, encoding, body = dumps((arguments, kwargs, options), "json")
                pipeline.publish(
                    channel.prepare_message(
                        body,
                        content_type=content_type,
                        content_encoding=encoding,
                        headers=message.headers | own,
                        properties={"correlation_id": id_, "reply_to": "", "delivery_mode": 2},
                    ),
                    exchange="",
                    routing_key=queue,
                )
            pipeline.flush()
        finally:
            pipeline.close()


def _batches(items: Iterable[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    source = iter(items)
    while batch := list(itertools.islice(source, BATCH)):
        yield batch
