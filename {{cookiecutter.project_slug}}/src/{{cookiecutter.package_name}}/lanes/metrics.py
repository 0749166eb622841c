"""What Prometheus is told of the lanes, by a process that keeps nothing itself.

All of it is in Redis, where workers count: so any number of such processes say the same, and what
was counted outlives them and the workers. docs/metrics.md says what each name means.
https://prometheus.github.io/client_python/collector/custom/
"""

import errno
import logging
import math
import signal
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from kombu.exceptions import OperationalError
from prometheus_client.core import (
    CollectorRegistry,
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import start_http_server
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from . import logs
from .config import Lane
from .counting import EDGES, Counted, Histogram
from .errors import BrokerError, UsageError
from .planned import next_of, schedule_of
from .redis.counters import Counters
from .redis.schedule import State
from .schedule import entries
from .status import Seen, ask, look, store_of, wanted_workers
from .timetable import Entry

PORT = 9464  # what OpenTelemetry's Prometheus exporters use
HOST = "127.0.0.1"
_ENDS = 100  # messages that are looked at from each end of a queue, 1 ms of Redis' time, so often

#: A lane, as it is, how many workers it wants, and what was ever counted in it, by task.
Found = tuple[Lane, Seen, int | None, Mapping[str, Counted]]
Planned = Sequence[tuple[Entry, State]]
Gauge = Callable[[Lane, Seen], float | None]  # None: there is none now
#: By name: what it is of a lane.
GAUGES: Mapping[str, tuple[str, Gauge]] = {
    "lanes_oldest_wait_seconds": (
        "How long the oldest that may be fetched has waited; 0 where nothing waits",
        lambda _, seen: seen.oldest if seen.counts.waiting else 0.0,
    ),
    "lanes_waiting": ("Messages that may be fetched", lambda _, seen: seen.counts.waiting),
    "lanes_keys_waiting": ("Keys that have messages waiting", lambda _, seen: seen.counts.keys),
    "lanes_keys_held": (
        "Those of them that are passed over now, for a limit of theirs",
        lambda _, seen: seen.counts.keys_held,
    ),
    "lanes_running": ("Tasks that run", lambda _, seen: sum(each.running for each in seen.loads)),
    "lanes_delayed": ("Messages whose time has not come", lambda _, seen: seen.counts.delayed),
    "lanes_dead": ("Dead letters", lambda _, seen: seen.counts.dead),
    "lanes_paused": ("1 while the lane is paused", lambda _, seen: float(seen.counts.paused)),
    "lanes_workers": ("Workers that are there", lambda _, seen: len(seen.loads)),
    "lanes_slots": (
        "Tasks that its workers run at once",
        lambda _, seen: sum(each.slots for each in seen.loads),
    ),
    "lanes_clock_difference_seconds": (
        "How far the clock of a worker's host is from the broker's, at the most",
        lambda _, seen: max((abs(each.clock) for each in seen.loads), default=None),
    ),
    "lanes_latency_slo_seconds": (
        "How long a task may wait before it starts, as lanes.toml says",
        lambda lane, _: lane.latency_slo,
    ),
    "lanes_slo_target": (
        "The share of tasks that should start in time, as lanes.toml says",
        lambda lane, _: lane.slo_target,
    ),
}
#: Names that dashboards of celery-exporter go by, by queue.
CELERY_GAUGES: Mapping[str, tuple[str, Gauge]] = {
    "celery_queue_length": GAUGES["lanes_waiting"],
    "celery_active_worker_count": GAUGES["lanes_workers"],
    "celery_active_process_count": GAUGES["lanes_slots"],
}
COUNTERS: Mapping[str, tuple[str, Callable[[Counted], int]]] = {
    "lanes_slo_good": ("Tasks that started in time", lambda counted: counted.good),
    "lanes_slo": ("Tasks that started, or expired before", lambda counted: counted.total),
    "lanes_redeliveries": ("Starts of what may have run before", lambda each: each.redelivered),
}
HISTOGRAMS: Mapping[str, tuple[str, Callable[[Counted], Histogram]]] = {
    "lanes_queue_wait_seconds": ("From sent, or due, to the first start", lambda each: each.wait),
    "lanes_run_seconds": ("From a start to its end", lambda each: each.run),
}
#: What becomes of tasks. Those that did not come up yet are told, too, as 0: of a series that
#: begins at 1, Prometheus sees no increase.
OUTCOMES = ("succeeded", "retried", "failed", "expired", "poison")


class LanesCollector(Collector):
    """Asks Redis whenever it is asked itself."""

    def __init__(self, app: Any) -> None:
        """`app` is the Celery app, whose lanes and schedule are told of.

        Raises:
            ConfigError: when an entry of Celery's schedule cannot be kept.
        """
        self._server = app.server
        self._entries = entries(app)
        self._schedule = schedule_of(app.server.client, self._entries)
        self._stores = {lane: store_of(app.server.client, lane) for lane in app.lanes}
        self._away = False  # as the log has it

    def collect(self) -> Iterator[Metric]:
        """Every series; `lanes_broker_up` alone while the broker is away."""
        try:
            found, planned = self.look()
        except BrokerError as error:
            if not self._away:
                logs.say(str(error), level=logging.WARNING, file=sys.stderr)
            self._away = True
            yield _up(0)
            return
        if self._away:
            logs.say("the broker answers again", file=sys.stderr)
        self._away = False
        yield from _families(found, planned, self._server.clock.now())

    def look(self) -> tuple[list[Found], Planned]:
        """What it tells of each lane and of the schedule, as they are now.

        Raises:
            BrokerError: when the broker does not answer, or refuses.
        """
        lanes, stores = list(self._stores), list(self._stores.values())
        try:
            seen = look(stores, most=_ENDS)
            wanted = wanted_workers(lanes, stores, seen)
            totals = ask(stores, lambda store, pipe: Counters(store).ask_total(pipe))
            known = self._schedule.states() if self._entries else {}
        except (RedisError, OSError, OperationalError) as error:
            raise BrokerError(self._server.explain(error)) from None
        counted = map(Counters.read_total, totals)
        planned = [(entry, known[entry.name]) for entry in self._entries]
        return list(zip(lanes, seen, wanted, counted, strict=True)), planned


def _up(value: float) -> Metric:
    return GaugeMetricFamily("lanes_broker_up", "1 while the broker answers", value)


def _families(found: Sequence[Found], planned: Planned, now: float) -> Iterator[Metric]:
    yield _up(1)
    yield from _of_lanes([(lane, seen) for lane, seen, _, _ in found])
    yield _wanted({lane.name: workers for lane, _, workers, _ in found})
    yield from _of_workers(seen for _, seen, _, _ in found)
    yield from _of_tasks([(lane, tasks) for lane, _, _, tasks in found])
    yield from _of_schedule(planned, now)


def _of_lanes(found: Sequence[tuple[Lane, Seen]]) -> Iterator[Metric]:
    for gauges, label in ((GAUGES, "lane"), (CELERY_GAUGES, "queue_name")):
        for name, (what, read) in gauges.items():
            family = GaugeMetricFamily(name, what, labels=[label])
            for lane, seen in found:
                value = read(lane, seen)
                if value is not None:
                    family.add_metric([lane.name if label == "lane" else lane.queue], value)
            yield family


def _wanted(by_lane: Mapping[str, int | None]) -> Metric:
    what = "Workers with which the lane meets its objective; missing while too little is known"
    family = GaugeMetricFamily("lanes_wanted_workers", what, labels=["lane"])
    for lane, workers in by_lane.items():
        if workers is not None:
            family.add_metric([lane], workers)
    return family


def _of_workers(found: Iterable[Seen]) -> Iterator[Metric]:
    up = GaugeMetricFamily("celery_worker_up", "1 for each worker", labels=["hostname"])
    for node in sorted({load.node for seen in found for load in seen.loads}):
        up.add_metric([node], 1)
    yield up


def _of_schedule(planned: Planned, now: float) -> Iterator[Metric]:
    def told(family: Any, values: Iterable[float | None]) -> Metric:
        for (entry, _), value in zip(planned, values, strict=True):
            if value is not None:
                family.add_metric([entry.name], value)
        return family  # type: ignore[no-any-return]

    runs = [state.run for _, state in planned]
    what = "When the last run that was sent was due, in seconds since 1970"
    last = GaugeMetricFamily("lanes_schedule_last_run_timestamp_seconds", what, labels=["entry"])
    yield told(last, [run.due if run else None for run in runs])
    what = "When the next run is due, in seconds since 1970; it is past while nobody sends it"
    next_ = GaugeMetricFamily("lanes_schedule_next_run_timestamp_seconds", what, labels=["entry"])
    yield told(next_, [next_of(entry, state, now) for entry, state in planned])
    what = "Runs that were sent late by more than a second"
    late = CounterMetricFamily("lanes_schedule_late_runs", what, labels=["entry"])
    yield told(late, [run.late if run else 0 for run in runs])
    what = "Instants that were not sent"
    missed = CounterMetricFamily("lanes_schedule_missed", what, labels=["entry"])
    yield told(missed, [run.missed if run else 0 for run in runs])


def _of_tasks(found: Sequence[tuple[Lane, Mapping[str, Counted]]]) -> Iterator[Metric]:
    slo_of = {lane.name: lane.latency_slo for lane, _ in found}
    counted = [
        ([lane.name, task], each) for lane, tasks in found for task, each in sorted(tasks.items())
    ]
    outcomes = CounterMetricFamily(
        "lanes_tasks", "Tasks that are done with", labels=["lane", "task", "outcome"]
    )
    for labels, each in counted:
        for outcome, count in sorted((dict.fromkeys(OUTCOMES, 0) | each.outcomes).items()):
            outcomes.add_metric([*labels, outcome], count)
    yield outcomes
    for name, (what, read) in COUNTERS.items():
        counter = CounterMetricFamily(name, what, labels=["lane", "task"])
        for labels, each in counted:
            counter.add_metric(labels, read(each))
        yield counter
    for name, (what, histogram_of) in HISTOGRAMS.items():
        family = HistogramMetricFamily(name, what, labels=["lane", "task"])
        for labels, each in counted:
            histogram, edges = histogram_of(each), list(EDGES)
            if name == "lanes_queue_wait_seconds":
                edges.append(slo_of[labels[0]])
            family.add_metric(labels, _buckets(histogram, edges), histogram.sum)
        yield family


def _buckets(histogram: Histogram, edges: Iterable[float]) -> list[tuple[str, float]]:
    """Cumulative, by edge; also of edges where nothing lies, or a rate would miss the first."""
    there = dict.fromkeys((*edges, math.inf), 0) | dict(histogram.buckets)
    return [
        ("+Inf" if math.isinf(edge) else str(edge), count)
        for edge, count in Histogram(there).cumulative()
    ]


def once(app: Any) -> str:
    """What a scrape would get now, as OpenMetrics.

    Raises:
        BrokerError: when the broker does not answer, or refuses.
    """
    found, planned = LanesCollector(app).look()
    told = SimpleNamespace(collect=lambda: _families(found, planned, app.server.clock.now()))
    text: bytes = generate_latest(told)  # type: ignore[no-untyped-call]
    return text.decode()


def serve(app: Any, *, host: str, port: int) -> None:
    """Answer scrapes at http://host:port/metrics until SIGTERM or SIGINT.

    Raises:
        UsageError: when that address cannot be had.
    """
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # in the server's threads, too: for sigwait
    registry = CollectorRegistry()
    registry.register(LanesCollector(app))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise UsageError(_refusal(error, host, port)) from None
    where = f"[{host}]" if ":" in host else host
    logs.say(f"metrics of {len(app.lanes.by_name)} lanes at http://{where}:{port}/metrics")
    signal.sigwait(ends)
    server.shutdown()
    server.server_close()
    thread.join()


def _refusal(error: OSError, host: str, port: int) -> str:
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return (
            f"--host: {host}: {error.strerror} (expected an address of this host, such as {HOST}, "
            "or 0.0.0.0 for all of them)"
        )
    return (
        f"--port: {port} of {host}: {error.strerror} (expected a free port; --port or METRICS_PORT "
        "says another)"
    )
