"""What is set aside without a run, or for good: whoever waits for it, or watches it, is told."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery import Celery, chord, group
from celery.exceptions import TimeoutError as CeleryTimeoutError
from conftest import MakeFleet
from harness import PATIENCE, wait_until
from support import Fleet

from acme_tasks.lanes.consumer import AGAIN

pytestmark = pytest.mark.ours_only("stock keeps no dead letters")


def ways(app: Celery) -> dict[str, Any]:
    """A signature for each way of being set aside."""
    past = datetime.now(UTC) - timedelta(hours=1)
    return {
        "unknown": app.signature("of.another.release"),
        "malformed": app.signature("tick", ("m",)).set(headers={"retries": "none"}),
        "expired": app.signature("tick", ("e",)).set(expires=past),
        "rejected": app.signature("reject", ("r",)),
        "failed": app.signature("fail", ("f",)),
        "poison": app.signature("kill_child", ("p",)),
        "worker": app.signature("unhandled"),
    }


def notes(fleet: Fleet, what: str) -> list[str]:
    """What the worker's own code has noted so, in order."""
    lines = fleet.ledger.path.read_text(encoding="utf-8").splitlines()
    return [line.split()[1] for line in lines if line.startswith(f"{what} ")]


def failure(result: Any) -> str:
    """How it fails; empty when it does not."""
    try:
        result.get(PATIENCE)
    except CeleryTimeoutError:
        return ""
    except Exception as error:  # noqa: BLE001 - which it is differs
        return type(error).__name__
    return ""


def test_whoever_waits_for_what_is_set_aside_is_told(make_fleet: MakeFleet) -> None:
    """Itself, in a group, a chord, a chain, and by errbacks of both kinds, in every way.

    Seen before: the end of a chain and a chord waited for ever for what was unknown or malformed,
    and so did `get` for what was malformed; the errbacks of those and of what had expired were not
    called, nor for poison those that take the id alone.
    """
    fleet = make_fleet(concurrency=4, max_deliveries=2, unknown_wait=False)
    fleet.start()
    waits: dict[str, Any] = {}
    ids: dict[str, str] = {}
    with fleet.app() as app:
        errbacks = [app.signature("tell"), app.signature("tell_all")]
        for way, bad in ways(app).items():
            good = app.signature("tick", (f"good-{way}",), immutable=True)
            waits[f"{way} alone"] = bad.clone().apply_async(link_error=errbacks)
            ids[way] = waits[f"{way} alone"].id
            waits[f"{way} in a group"] = group([bad.clone(), good], app=app).apply_async()
            waits[f"{way} in a chain"] = (bad.clone() | good).apply_async()
            waits[f"{way} in a chord"] = chord([bad.clone(), good], app=app)(
                app.signature("gather")
            )
        # Of a chain and a chord the end, which Celery would pass over for its parent.
        ends = {
            name: result if "group" in name else app.AsyncResult(result.id)
            for name, result in waits.items()
        }
        told = {name: failure(result) for name, result in ends.items()}
    assert [name for name, error in told.items() if not error] == []
    assert told["unknown alone"] == "NotRegistered"
    assert told["malformed alone"] == "InvalidTaskError"
    assert told["expired alone"] == "TaskRevokedError"
    assert told["worker alone"] == told["poison alone"] == "WorkerLostError"
    for kind in ("told", "told_all"):
        wait_until(lambda kind=kind: set(ids.values()) <= set(notes(fleet, kind)), kind)
    assert {error for name, error in told.items() if "chord" in name} == {"ChordError"}


@contextmanager
def failed_events(app: Celery) -> Iterator[dict[str, str]]:
    """The `task-failed` events that come within the block: id and exception."""
    seen: dict[str, str] = {}
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(
            connection,
            handlers={
                "task-failed": lambda event: seen.update({event["uuid"]: event["exception"]})
            },
        )
        thread = threading.Thread(target=receiver.capture, kwargs={"wakeup": False})
        thread.start()
        try:
            yield seen
        finally:
            receiver.should_stop = True
            thread.join(PATIENCE)


def test_monitors_are_told_by_celerys_events_and_signals(make_fleet: MakeFleet) -> None:
    """As of stock's. Seen before: none, of what the firewall sets aside."""
    fleet = make_fleet(concurrency=2, max_deliveries=1, unknown_wait=False)
    fleet.start()
    with fleet.app() as app, failed_events(app) as events:
        wait_until(lambda: app.control.enable_events(reply=True), "events")
        sent = {way: ways(app)[way].apply_async().id for way in ("unknown", "malformed", "worker")}
        wait_until(lambda: set(sent.values()) <= events.keys(), "events of all")
        assert {way: events[id_] for way, id_ in sent.items()} == {
            "unknown": "NotRegistered('of.another.release')",
            "malformed": ("InvalidTaskError(\"headers.retries: 'none' (not what Celery sends)\")"),
            "worker": "WorkerLostError(\"KeyError: 'no such part'\")",
        }
    assert notes(fleet, "task_unknown") == [sent["unknown"]]
    assert set(notes(fleet, "task_rejected")) == {sent["malformed"], sent["worker"]}


def test_a_fault_of_the_worker_has_its_own_reason_and_its_message_comes_again(
    make_fleet: MakeFleet,
) -> None:
    """Later each time, so that a fault of all messages uses none up in a moment.

    Seen before: it was called malformed, at once; and a KeyError, which kombu takes for the loss of
    a connection, had the worker connect anew for ever.
    """
    fleet = make_fleet(concurrency=1, max_deliveries=3)
    process = fleet.start()
    with fleet.app() as app:
        began = time.monotonic()
        sent = app.send_task("unhandled")
        assert failure(sent) == "WorkerLostError"
    assert time.monotonic() - began >= 3 * AGAIN  # once, and then twice that
    (letter,) = fleet.await_dead(1)
    assert (letter.reason, letter.error) == ("worker", "KeyError: 'no such part'")
    assert (letter.task, letter.task_id, letter.deliveries) == ("unhandled", sent.id, 3)
    assert fleet.ledger.started[sent.id] == 3
    assert process.log.count("this worker could not handle a message") == 3
    assert fleet.run("dead", "list", "--reason", "worker").returncode == 0
    fleet.run_good("the fault")
    assert not fleet.redis.exists(fleet.keys("deliveries"))
