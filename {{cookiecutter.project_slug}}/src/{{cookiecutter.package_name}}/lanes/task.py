"""The Task base: `lane=` and `key=` on a task, and the limits its lane gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, overload

import celery
from celery.canvas import Signature

from . import keyed, many
from .errors import RoutingError
from .redis.store import KEY, ONCE
from .routing import home_lane

if TYPE_CHECKING:
    from typing import Unpack
    from uuid import UUID

    from celery.result import EagerResult

    from .typed import (
        A,
        B,
        C,
        D,
        FiveOrMore,
        ManyOptions,
        P,
        R_co,
        Rest,
        Takes0,
        Takes1,
        Takes2,
        Takes3,
        Takes4,
        TakesAnyNumber,
        TakesFive,
        TypedTask,
    )
else:  # nothing stands between
    TypedTask, P, R_co = celery.Task, ..., Any


class Task(TypedTask[P, R_co]):
    """Base of every task of the app.

    Time limits are the worker's (a task has the limits of the lane it runs in, wherever it was
    declared); retries and results are the task's, from its own lane, unless it sets them itself.
    """

    Request = f"{__package__}.consumer:Request"
    __header__: Any  # Celery's check of the arguments, unknown to celery-types
    lane: str | None = None  # its own lane; None: the one its name routes to
    #: Whose its messages are: the name of an argument, or a function that is called with the
    #: arguments, and never with `self`; None: nobody's.
    key: str | Callable[..., object] | None = None
    find_key: keyed.Find | None = None  # what `key` finds in arguments

    @classmethod
    def bind(cls, app: Any) -> Any:
        """Called by Celery once for each task, when it is defined.

        Raises:
            RoutingError: when the task names a lane or a queue that is not declared, or a key that
                is none of its arguments.
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
        key = cls.key
        if callable(key):
            cls.key = staticmethod(key)  # or it would be called with the task before its arguments
        find = keyed.finder(cls.name, key, keyed.run_of(cls))
        cls.find_key = staticmethod(find) if find else None
        return super().bind(app)

    def apply(
        self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any
    ) -> EagerResult[R_co]:
        """As Celery's, here and now, for a lane that there is: eager mode goes this way.

        Raises:
            RoutingError: when a real send would.
        """
        app: Any = self.app
        app.amqp.router.route(options, self.name, args, kwargs, self)
        return super().apply(args, kwargs, *more, **options)

    def signature_from_request(
        self,
        request: Any = None,
        args: Any = None,
        kwargs: Any = None,
        queue: Any = None,
        **own: Any,
    ) -> Signature[R_co]:
        """As Celery's, for a retry: `lane=` takes the place of the queue that the task ran from.

        The key, and what is sent once, are those of the run before.
        """
        again = super().signature_from_request(request, args, kwargs, queue, **own)
        if own.get("lane") is not None and queue is None:
            again.options.pop("queue", None)
        before = (request or self.request).headers or {}
        again.options.update({each: before[each] for each in (KEY, ONCE) if before.get(each)})
        return again

    @overload
    def send_many(
        self: Takes0, arguments: Iterable[tuple[()]], **options: Unpack[ManyOptions]
    ) -> int: ...
    @overload
    def send_many(
        self: Takes1[A], arguments: Iterable[tuple[A]], **options: Unpack[ManyOptions]
    ) -> int: ...
    @overload
    def send_many(
        self: Takes2[A, B], arguments: Iterable[tuple[A, B]], **options: Unpack[ManyOptions]
    ) -> int: ...
    @overload
    def send_many(
        self: Takes3[A, B, C], arguments: Iterable[tuple[A, B, C]], **options: Unpack[ManyOptions]
    ) -> int: ...
    @overload
    def send_many(
        self: Takes4[A, B, C, D],
        arguments: Iterable[tuple[A, B, C, D]],
        **options: Unpack[ManyOptions],
    ) -> int: ...
    @overload
    def send_many(
        self: TakesAnyNumber[A], arguments: Iterable[tuple[A, ...]], **options: Unpack[ManyOptions]
    ) -> int: ...
    @overload
    def send_many(
        self: TakesFive[Rest, R_co], arguments: Iterable[FiveOrMore], **options: Unpack[ManyOptions]
    ) -> int: ...
    @overload
    def send_many(
        self, arguments: Iterable[Signature[R_co]], **options: Unpack[ManyOptions]
    ) -> int: ...
    def send_many(
        self,
        arguments: Iterable[Any],
        *,
        lane: str | None = None,
        countdown: float | None = None,
        expires: float | None = None,
        key: str | int | UUID | None = None,
    ) -> int:
        """Send one task for each of `arguments`, in batches; returns how many.

        Many times as fast as a `delay` for each, since all but the arguments is made once for a
        batch. An iterator of a million is read as it is sent, so that memory stays bounded. No
        results are kept: there would be a million to ask for. In eager mode each runs here and now.

        Args:
            arguments: for each task, its positional arguments; or the call that it makes, with
                keywords and options of its own: `self.si(1, second=2).set(countdown=5)`. Of these
                there are lane, queue, countdown, eta, expires, headers, ignore_result, key and
                task_id; they go before those for all.
            lane: another lane than the task's own, for all.
            countdown: seconds before which none starts.
            expires: seconds after which those that have not started are set aside.
            key: whose all are; None: whose the task's own `key` says that each is.

        Raises:
            RoutingError: when there is no such lane, or a key cannot be one.
            TypeError: when arguments are not the function's, or a call is another task's or has
                other options. What stands 1000 or more before it was sent, or all up to it.
            EncodeError: when arguments cannot be sent as JSON; likewise.
            SendError: when the broker fails; its `sent` certainly were sent, and up to 1000 more
                may have been.
        """
        options = {"lane": lane, "countdown": countdown, "expires": expires, "key": key}
        return many.send(self, arguments, options)
