"""A producer that is kept over an outage of the broker sends again when that is back."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import kombu
import pytest
from celery import Celery
from conftest import MakeFleet
from harness import SCHEDULER, Process, own_scheduler, wait_until
from kombu.exceptions import OperationalError
from support import QUEUE, Server

from acme_tasks.lanes import worker

pytestmark = pytest.mark.ours_only("of stock's kept producers some recover, and some do not")

SCHEDULE = own_scheduler({"often": {"task": "tick", "schedule": 0.2, "args": ("a",)}})
SCHEDULE += "\n\napp.conf.task_send_sent_event = True\n"


def test_beat_goes_on_sending_after_an_outage(make_fleet: MakeFleet) -> None:
    """And its events. Seen before: the tasks came again, and none of their events ever did."""
    fleet = make_fleet()
    app = fleet.folder / worker.PACKAGE / "celery.py"
    app.write_text(app.read_text(encoding="utf-8") + SCHEDULE, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        worker.PACKAGE,
        "beat",
        *SCHEDULER,
        "-l",
        "INFO",
    ]
    beat = Process("beat", command, fleet.folder, fleet.environment)
    fleet.processes.append(beat)
    wait_until(lambda: fleet.redis.llen(QUEUE), "beat to send")
    fleet.server.stop()
    beat.await_log("Couldn't apply scheduled task often")
    fleet.server.start()
    before = fleet.redis.llen(QUEUE)
    with fleet.redis.pubsub() as events:
        events.psubscribe("*celeryev*")
        wait_until(lambda: fleet.redis.llen(QUEUE) > before + 2, "beat to send again")
        wait_until(lambda: _is_event(events), "its events")
    assert beat.end() == 0


@contextmanager
def outage(server: Server) -> Iterator[None]:
    """The broker is away for as long as the block."""
    server.stop()
    try:
        yield
    finally:
        server.start()


def _is_event(events: Any) -> bool:
    received = events.get_message(timeout=0.1)
    return received is not None and received["type"] == "pmessage"


PRODUCERS: dict[str, Callable[[Celery], Any]] = {
    "app.amqp, of a connection": lambda app: app.amqp.Producer(app.connection_for_write()),
    "of a connection": lambda app: kombu.Producer(app.connection_for_write()),
    "of a channel": lambda app: kombu.Producer(app.connection_for_write().channel()),
    "of the default channel": lambda app: kombu.Producer(
        app.connection_for_write().default_channel
    ),
}
LANES_QUEUE = kombu.Queue(QUEUE, kombu.Exchange(QUEUE), QUEUE)
ONCE = {"retry": True, "retry_policy": {"max_retries": 1, "interval_start": 0}}
SENDS: dict[str, Callable[[Celery, Any], Any]] = {
    "send_task": lambda app, producer: app.send_task("tick", ("a",), producer=producer),
    "apply_async": lambda app, producer: app.tasks["kept"].apply_async(producer=producer),
    "without a retry": lambda app, producer: app.send_task("tick", producer=producer, retry=False),
    "to an exchange": lambda _, producer: producer.publish(
        {}, exchange=QUEUE, routing_key=QUEUE, **ONCE
    ),
    "declared": lambda _, producer: producer.publish(
        {},
        routing_key=QUEUE,
        exchange=QUEUE,
        declare=[LANES_QUEUE],
        **ONCE,
    ),
    "to the default exchange": lambda _, producer: producer.publish({}, routing_key=QUEUE, **ONCE),
}


@pytest.mark.parametrize("send", SENDS)
def test_a_kept_producer_sends_again(make_fleet: MakeFleet, send: str) -> None:
    """Seen before: AttributeError for ever, 'NoneType' object has no attribute ..., with all
    producers of a channel, and with all that send to an exchange."""
    fleet = make_fleet()
    app = fleet.app()

    @app.task(name="kept", shared=False)
    def kept_task() -> None:
        pass

    with app.connection_for_write() as connection:  # as a worker does it
        LANES_QUEUE(connection).declare()
    kept = {name: make(app) for name, make in PRODUCERS.items()}
    with outage(fleet.server):
        for producer in kept.values():
            with pytest.raises((OperationalError, OSError)):
                app.send_task("tick", producer=producer, retry_policy=ONCE["retry_policy"])
    for number, producer in enumerate(kept.values()):
        for more in (1, 2):
            SENDS[send](app, producer)
            assert fleet.redis.llen(QUEUE) == 2 * number + more
    app.close()


def test_events_of_a_kept_producer_are_sent_again(make_fleet: MakeFleet) -> None:
    """Seen before: none, for ever; each was kept in memory instead."""
    fleet = make_fleet()
    app = fleet.app()
    app.conf.task_send_sent_event = True
    producer = app.amqp.Producer(app.connection_for_write(), auto_declare=False)
    app.send_task("tick", producer=producer)
    with outage(fleet.server), pytest.raises(OperationalError):
        app.send_task("tick", producer=producer)
    with fleet.redis.pubsub() as events:
        events.psubscribe("*celeryev*")
        assert events.get_message(timeout=5)["type"] == "psubscribe"
        app.send_task("tick", producer=producer)
        wait_until(lambda: _is_event(events), "an event")
    assert not app.amqp._event_dispatcher._outbound_buffer
    app.close()


def test_pools_and_connections_of_several_threads_send_again(make_fleet: MakeFleet) -> None:
    fleet = make_fleet()
    app = fleet.app()
    connection = app.connection_for_write()
    back = threading.Event()
    sent: list[str] = []

    def send_twice() -> None:
        with app.producer_pool.acquire(block=True) as producer:
            with suppress(OperationalError):
                app.send_task("tick", producer=producer)
            back.wait()
            sent.append(app.send_task("tick", producer=producer).id)

    with outage(fleet.server):
        threads = [threading.Thread(target=send_twice) for _ in range(4)]
        for thread in threads:
            thread.start()
        with pytest.raises(OperationalError):
            app.send_task("tick", connection=connection)
    back.set()
    for thread in threads:
        thread.join()
    app.send_task("tick", connection=connection)
    app.send_task("tick")
    assert len(sent) == 4
    # Those that were sent late, in their own retries, count too.
    assert fleet.redis.llen(QUEUE) >= 6
    app.close()
