"""The tasks of a group are sent together, and not one by one."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from celery import canvas
from kombu.exceptions import BatchPublishError, OperationalError  # type: ignore[attr-defined]  # of kombu 5.7
from kombu.utils.functional import retry_over_time
from redis import exceptions

from .direct import batch_of, nobody_listens
from .routing import giving_up_in_time

#: Messages that are sent together: so many are sent again when a reply is lost.
_MOST = 100
_FAILURES = (exceptions.ConnectionError, exceptions.TimeoutError, OSError)
_PAUSES = ("max_retries", "interval_start", "interval_step", "interval_max")


def send_together() -> None:
    """Have Celery's groups of an app with lanes do so; others send as before.

    Each task is made as Celery makes it; all go in batches of kombu's. Each is sent by itself where
    somebody listens to each send, since what was told would not be so yet; and where a generator
    makes the tasks, which may take its time.
    """
    group: Any = canvas.group
    own = group._apply_tasks  # noqa: SLF001
    if own.__module__ == __name__:
        return

    def apply_tasks(
        self: Any, tasks: Any, producer: Any = None, app: Any = None, *more: Any, **options: Any
    ) -> Iterator[Any]:
        app = app or self.app
        if not (hasattr(app, "lanes") and nobody_listens(app) and _are_there(self.tasks)):
            yield from own(self, tasks, producer, app, *more, **options)
            return
        with app.producer_or_acquire(producer) as one:
            if getattr(one._channel, "closed", False):  # noqa: SLF001
                one.revive(one.connection)  # kept over an outage
            whole = one.batch(_MOST)
            try:
                with whole:
                    batch = batch_of(one)
                    if batch is not None and whole.is_outermost:
                        batch.attempt = _trying_again(app, options)
                    yield from own(self, tasks, one, app, *more, **options)
            except BatchPublishError as error:
                if not whole.is_outermost:
                    raise
                raise OperationalError(app.server.explain(error)) from None

    group._apply_tasks = apply_tasks  # noqa: SLF001


def _are_there(tasks: Any) -> bool:
    """Whether tasks, and those within them, are in lists; a generator's are in a `_regen`."""
    return type(tasks) in {list, tuple} and all(
        _are_there(getattr(each, "tasks", ())) for each in tasks
    )


def _trying_again(app: Any, options: Mapping[str, Any]) -> Callable[[Callable[[], None]], None]:
    """As often as a send by itself, and no longer than that lasts."""
    retry = options.get("retry")
    if not (app.conf.task_publish_retry if retry is None else retry):
        return lambda send: send()
    policy = app.conf.task_publish_retry_policy | (options.get("retry_policy") or {})
    pauses = {name: policy[name] for name in _PAUSES if name in policy}

    def attempt(send: Callable[[], None]) -> None:
        may_try_again = giving_up_in_time()

        def wait(error: Exception, intervals: Iterator[float], _retries: int) -> float:
            interval = next(intervals)
            may_try_again(error, interval)
            return interval

        errback: Any = wait  # of which celery-types know another kind
        retry_over_time(send, _FAILURES, errback=errback, **pauses)

    return attempt
