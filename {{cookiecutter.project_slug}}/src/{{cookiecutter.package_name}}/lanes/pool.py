"""Celery's prefork pool, with fewer wake-ups and system calls for each task.

The worker's main process is what a lane's speed hangs on: children wait for it. With Celery's own
pool it tells the kernel again, for each task, what it watches already; it gives a task to a child a
turn of the event loop later; and it wakes that child twice, first for four bytes. Which child gets
what stays Celery's to say.
"""

import heapq
import itertools
import select
import time
from collections.abc import Callable, Iterator
from typing import Any

from celery.concurrency import asynpool, prefork

TIMERS = 1000  # of time limits, half a KiB each, of which some are of tasks that have ended
_HEARING = 2.0  # seconds, at most, to hear from children that were just given a task

#: Starts the timers of a task, by its job, its soft and its hard limit in seconds.
Begin = Callable[[Any, float | None, float | None], None]


def install() -> None:
    """Have a worker of this process, whose pool is prefork, use this one."""
    prefork.TaskPool.Pool = Pool


def hard_limit_alone(begin: Begin) -> Begin:
    """Start a task's timers by `begin`, without a soft limit that is no shorter than the hard one.

    Celery starts the hard limit's timer when the soft one has run out (celery #9125), and every
    task has the lane's soft one.
    """

    def begin_timers(job: Any, soft: float | None, hard: float | None) -> None:
        begin(job, None if soft and hard and soft >= hard else soft, hard)

    return begin_timers


def dropping_ended(begin: Begin, timer: Any) -> Begin:
    """Likewise, so that the timers of tasks that have ended take no memory.

    Celery cancels the timer of a task's limit as the task ends, and kombu forgets it when the limit
    would have been: with an hour, those of 500 tasks a second would take a gigabyte.

    Args:
        timer: the event loop's, on which `begin` starts them.
    """
    queue, most = timer._queue, TIMERS  # noqa: SLF001 - see contract.py

    def begin_timers(job: Any, soft: float | None, hard: float | None) -> None:
        nonlocal most
        begin(job, soft, hard)
        if len(queue) > most:
            queue[:] = [each for each in queue if not each.entry.cancelled]
            heapq.heapify(queue)
            most = TIMERS + 2 * len(queue)  # so that a task's part in it stays small

    return begin_timers


class _Hub:
    """An event loop that is not told again what it knows."""

    def __init__(self, hub: Any) -> None:
        self._hub, self.remove_reader = hub, hub.remove_reader

    def add_reader(self, descriptor: int, callback: Callable[..., Any], *args: Any) -> None:
        """As the loop's; nothing, where that is called for it already: it has just been."""
        if self._hub.readers.get(descriptor) != (callback, args):
            self._hub.add_reader(descriptor, callback, *args)


class ResultHandler(asynpool.ResultHandler):
    """Reads what children have begun and ended."""

    def _make_process_result(self, hub: Any) -> Any:
        """Celery registers a pipe anew for each message that it has read from it."""
        return super()._make_process_result(_Hub(hub))  # type: ignore[misc]


class Pool(asynpool.AsynPool):
    """The children of a worker."""

    ResultHandler = ResultHandler
    # Celery's own, unknown to celery-types:
    _cache: dict[int, Any]
    _fileno_to_outq: dict[int, Any]
    _all_inqueues: set[int]
    _active_writes: set[int]
    _busy_workers: set[int]
    sched_strategy: int
    outbound_buffer: Any
    handle_result_event: Any
    on_timeout_set: Any
    on_poll_start: Any
    _quick_put: Any
    _hub: Any = None

    def register_with_event_loop(self, hub: Any) -> None:
        """Called when the loop begins, and again after an outage."""
        super().register_with_event_loop(hub)
        self._hub = hub

    def _create_timelimit_handlers(self, hub: Any) -> None:
        """See `hard_limit_alone` and `dropping_ended`."""
        super()._create_timelimit_handlers(hub)  # type: ignore[misc]
        begin = hard_limit_alone(self.on_timeout_set)
        self.on_timeout_set = dropping_ended(begin, hub.timer)

    def _create_write_handlers(self, hub: Any, **options: Any) -> None:
        """Give idle children what waits at once, and each in one write."""
        super()._create_write_handlers(hub, **options)  # type: ignore[misc]
        write, put = hub.consolidate_callback, self._quick_put
        turns = itertools.count()
        is_fair = self.sched_strategy == asynpool.SCHED_STRATEGY_FAIR  # type: ignore[attr-defined]
        busy = self._busy_workers if is_fair else frozenset()

        def write_to_idle() -> None:
            """Celery asks the kernel first which pipes have room, and looks in its next turn."""
            waiting = len(self.outbound_buffer)
            if waiting and (idle := [*(self._all_inqueues - self._active_writes - busy)]):
                first = next(turns) % len(idle)  # each child in turn, as Celery does
                write((idle[first:] + idle[:first])[:waiting])

        def put_whole(task: Any) -> None:
            put(task)
            job = self._cache[task[1][0]]
            header, body, size = job._payload  # noqa: SLF001 - Celery writes one after the other
            if len(header) + size <= select.PIPE_BUF:  # which a pipe takes whole, or not at all
                job._payload = memoryview(b"".join((header, body))), memoryview(b""), 0  # noqa: SLF001
            write_to_idle()

        self._quick_put, self.on_poll_start = put_whole, write_to_idle

    def hear(self) -> None:
        """Read what children have begun and ended, but is still in their pipes.

        A worker that stops, or lost its connection, forgets the tasks that no child was heard to
        begin and hands them back. Those that a child has begun all the same would run twice, and
        that child would take 30 s to end, since it waits for its result to be read.
        """
        if self._hub is None:
            return
        until = time.monotonic() + _HEARING
        while time.monotonic() < until and any(
            job._write_to and not job._accepted  # noqa: SLF001 - neither says it otherwise
            for job in list(self._cache.values())
        ):
            for pipe in select.select(list(self._fileno_to_outq), [], [], 0.05)[0]:
                unknown = (self.handle_result_event, (pipe,))
                read, arguments = self._hub.readers.get(pipe, unknown)
                if isinstance(read, Iterator):  # a message of which a part was read
                    next(read, None)
                else:
                    read(*arguments)
