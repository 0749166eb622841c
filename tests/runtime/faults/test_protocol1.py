"""Messages of Celery's first protocol, as Celery 3 and `task_protocol = 1` send them."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from billiard.exceptions import WorkerLostError
from celery import Celery, chord
from celery.exceptions import InvalidTaskError
from conftest import MakeFleet
from harness import PATIENCE, wait_until
from support import QUEUE, Fleet, encoded

pytestmark = pytest.mark.ours_only("stock runs them")


@pytest.fixture
def fleet(make_fleet: MakeFleet) -> Fleet:
    return make_fleet(concurrency=2, max_deliveries=2, expires="10m")


@pytest.fixture
def plain(fleet: Fleet) -> Iterator[Celery]:
    """A plain Celery that sends to the lane."""
    app = Celery("plain", broker=fleet.server.url, backend=fleet.result_url, set_as_current=False)
    app.conf.update(task_protocol=1, task_default_queue=QUEUE)
    yield app
    app.close()


def test_they_run_and_answer(fleet: Fleet, plain: Celery) -> None:
    """Seen before: a dead letter without a name, and `get` had no end."""
    fleet.start()
    assert plain.send_task("tick", ("one",)).get(PATIENCE) == "one"
    assert plain.send_task("tick", (), {"name": "two"}).get(PATIENCE) == "two"
    linked = plain.signature("tick", ("three",), immutable=True, app=plain)
    plain.send_task("tick", ("link",), link=linked)
    ticks = [plain.signature("tick", (f"of-chord-{n}",), app=plain) for n in (1, 2)]
    after = chord(ticks, app=plain)(plain.signature("gather", app=plain))
    assert after.get(PATIENCE) == ["of-chord-1", "of-chord-2"]
    fleet.await_ended(["three"], "the link")


def test_one_that_is_delayed_does_not_run_early(fleet: Fleet, plain: Celery) -> None:
    """It waits in Redis, as any other."""
    fleet.start()
    sent = time.time()
    plain.send_task("tick", ("soon",), countdown=2)
    plain.send_task("tick", ("late",), countdown=3600)
    wait_until(lambda: fleet.redis.zcard(fleet.keys("delayed")) == 2, "both to wait")
    fleet.await_ended(["soon"], "the one that is due")
    assert fleet.ledger.when("soon")[0] - sent >= 2
    assert "late" not in fleet.ledger.started


def test_one_that_has_expired_is_set_aside_and_can_be_retried(fleet: Fleet, plain: Celery) -> None:
    fleet.start()
    past = datetime.now(UTC) - timedelta(hours=1)
    sent = plain.send_task("tick", ("expired",), expires=past)
    (letter,) = fleet.await_dead(1)
    assert (letter.reason, letter.task, letter.task_id) == ("expired", "tick", sent.id)
    assert fleet.run("dead", "retry", "--all").returncode == 0
    fleet.await_ended(["expired"], "it, with a fresh expiry")


def test_one_that_kills_its_worker_is_set_aside_by_name_and_its_sender_told(
    fleet: Fleet, plain: Celery
) -> None:
    fleet.start()
    sent = plain.send_task("kill_child", ("killer",))
    with pytest.raises(WorkerLostError):
        sent.get(PATIENCE)
    (letter,) = fleet.await_dead(1)
    assert (letter.reason, letter.task, letter.task_id) == ("poison", "kill_child", sent.id)


def test_a_malformed_one_is_set_aside_by_name_and_its_sender_told(
    fleet: Fleet, plain: Celery
) -> None:
    fleet.start()
    body: dict[str, Any] = {"task": "tick", "id": "some-id", "args": "text", "kwargs": {}}
    envelope = {
        "body": encoded(json.dumps(body).encode()),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {},
        "properties": {"body_encoding": "base64", "delivery_info": {}, "delivery_tag": "1"},
    }
    fleet.send(envelope)
    (letter,) = fleet.await_dead(1)
    assert (letter.reason, letter.task, letter.task_id) == ("malformed", "tick", "some-id")
    assert letter.error == "body: expected a list of arguments and an object of keyword arguments"
    with pytest.raises(InvalidTaskError, match="body: expected a list of arguments"):
        plain.AsyncResult("some-id").get(PATIENCE)


def test_a_bound_app_that_asks_for_it_sends_the_second(fleet: Fleet) -> None:
    """A lane's stamps are headers, and the first protocol has none. Seen before: `get` waited."""
    fleet.start()
    with fleet.app() as app:
        app.conf.task_protocol = 1
        assert app.send_task("tick", ("ours",)).get(PATIENCE) == "ours"
        app.send_task("tick", ("later",), countdown=3600)
    (waits,) = fleet.redis.zrange(fleet.keys("delayed"), 0, -1)
    assert json.loads(waits)["headers"]["task"] == "tick"
