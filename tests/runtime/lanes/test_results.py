"""Where results go, and what becomes of a task when they cannot go there."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from celery.app.task import Context
from celery.backends.redis import RedisBackend
from harness import PATIENCE, free_port, wait_until
from redis.exceptions import ConnectionError as BrokenConnectionError
from redis.exceptions import ResponseError

from acme_tasks.lanes import results
from acme_tasks.lanes.timeouts import (
    RESULTS_AWAY,
    RESULTS_CONNECT,
    RESULTS_PATIENCE,
    RESULTS_REPLY,
)

LANES = 'default_lane = "quick"\n[lanes.quick]\n'

URLS = {
    "TCP": "redis://host/1",
    "TLS": "rediss://host/1",
    "a socket": "redis+socket:///run/valkey.sock",
    "Sentinel": "sentinel://host:26379",
}


@pytest.mark.parametrize("url", URLS.values(), ids=URLS)
def test_every_kind_of_redis_keeps_results_in_ours(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """On connections of ours. Seen before: a class of its own for Sentinel."""
    monkeypatch.setenv("RESULT_URL", url)
    app: Any = bound(LANES)
    assert type(app.backend) is results.Backend
    pool = app.backend.client.connection_pool
    assert pool.connection_kwargs["server"] is app.results
    assert app.results.endpoint.variable == "RESULT_URL"
    assert app.results.endpoint.scheme == url.partition(":")[0]


def test_a_backend_that_is_asked_for_its_url_tells_no_secret(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESULT_URL", "redis://:secret@host:6379/1")
    backend = bound(LANES).backend
    for url in (backend.as_uri(), backend.as_uri(include_password=True), str(backend.url)):
        assert "host:6379/1" in url
        assert "secret" not in url


def test_a_result_that_cannot_be_kept_is_lost_with_a_line_of_log_and_no_more(
    bound: Callable[[str], Celery],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def away(*_args: object, **_options: object) -> None:
        raise BrokenConnectionError("refused")

    monkeypatch.setattr(RedisBackend, "store_result", away)
    app: Any = bound(LANES)
    assert app.backend.store_result("some-id", "answer", "SUCCESS") == "answer"
    why = app.results.explain(BrokenConnectionError("refused"))
    assert caplog.messages == [f"a result is lost, the backend failed: some-id: {why}"]


def test_a_backend_that_is_away_is_not_waited_for_again_at_once(
    bound: Callable[[str], Celery],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A lane keeps its pace: one task in ten seconds waits, and each says what is lost.

    Seen before: each task tried anew, and of a backend that was silent, the first never ended.
    """
    tried: list[str] = []

    def away(_self: Any, task_id: str, *_args: object, **_options: object) -> None:
        tried.append(task_id)
        raise BrokenConnectionError("refused")

    now = 1000.0
    monkeypatch.setattr(results, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(RedisBackend, "store_result", away)
    app: Any = bound(LANES)
    backend, why = app.backend, app.results.explain(BrokenConnectionError("refused"))
    for id_ in ("a", "b"):
        backend.store_result(id_, "answer", "SUCCESS")
    backend.on_chord_part_return(Context(id="c", chord={}), "SUCCESS", "answer")
    assert caplog.messages == [
        f"a result is lost, the backend failed: a: {why}",
        "a result is lost, the backend failed: b: it was away a moment ago",
        "a chord will not end, the backend failed: c: it was away a moment ago",
    ]
    now += RESULTS_AWAY + 1
    backend.store_result("d", "answer", "SUCCESS")
    assert tried == ["a", "d"]


def test_a_backend_that_refuses_is_asked_for_the_next_result_too(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It answers, so nobody waits; and the next one may be small enough."""
    tried: list[str] = []

    def full(_self: Any, task_id: str, *_args: object, **_options: object) -> None:
        tried.append(task_id)
        raise ResponseError("OOM")

    monkeypatch.setattr(RedisBackend, "store_result", full)
    backend = bound(LANES).backend
    for id_ in ("a", "b"):
        backend.store_result(id_, "answer", "SUCCESS")
    assert tried == ["a", "b"]


@pytest.mark.parametrize("kind", ["refuses", "says nothing"])
def test_a_result_that_cannot_be_kept_holds_its_task_up_for_seconds_and_no_more(
    bound: Callable[[str], Celery],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    """Seen before: no end to it where a server accepts and is silent."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1] if kind == "says nothing" else free_port()
        monkeypatch.setenv("RESULT_URL", f"redis://127.0.0.1:{port}/0")
        backend = bound(LANES).backend
        began = time.monotonic()
        backend.store_result("some-id", "answer", "SUCCESS")
    # One try, and as much again for a machine that is busy with others.
    assert time.monotonic() - began < 2 * (RESULTS_CONNECT + RESULTS_REPLY)
    (said,) = caplog.messages
    assert said.startswith("a result is lost, the backend failed: some-id: ")


@pytest.mark.parametrize("of", ["a result", "a result that is waited for"])
def test_whoever_waits_for_a_result_of_a_backend_that_is_away_is_told_so_in_time(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    monkeypatch.setenv("RESULT_URL", f"redis://127.0.0.1:{free_port()}/0")
    monkeypatch.setitem(results.Backend.retry_policy, "timeout", 1.0)  # seconds, of 20
    result = bound(LANES).AsyncResult("some-id")
    began = time.monotonic()
    with pytest.raises((BrokenConnectionError, RuntimeError)):
        _ = result.state if of == "a result" else result.get(timeout=PATIENCE)
    assert time.monotonic() - began < RESULTS_PATIENCE


def test_sending_does_not_need_the_place_where_results_are_kept(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch, broker: Any
) -> None:
    monkeypatch.setenv("BROKER_URL", broker.url)
    monkeypatch.setenv("RESULT_URL", f"redis://127.0.0.1:{free_port()}/0")
    with bound(LANES) as app:
        app.send_task("look_up")
    assert broker.redis.llen("quick_tasks") == 1


@pytest.mark.parametrize("of", ["one", "a group"])
def test_a_result_that_nobody_was_told_of_is_found(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch, broker: Any, of: str
) -> None:
    monkeypatch.setenv("BROKER_URL", broker.url)
    with bound(LANES) as app, ThreadPoolExecutor() as thread:

        def wait() -> Any:  # whose backend is its thread's own
            one = app.AsyncResult("some-id")
            waited = one if of == "one" else app.GroupResult("some-group", [one])
            return waited.get(timeout=PATIENCE)

        answer = thread.submit(wait)
        looks = {"cmdstat_get", "cmdstat_mget"}
        wait_until(lambda: looks & broker.redis.info("commandstats").keys(), "Celery's one look")
        backend: Any = app.backend
        meta = {"task_id": "some-id", "status": "SUCCESS", "result": "answer", "children": []}
        backend.client.set(backend.get_key_for_task("some-id"), backend.encode(meta))
        assert answer.result() == ("answer" if of == "one" else ["answer"])


def test_a_result_that_is_none_of_redis_matter_is_still_an_error(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_args: object, **_options: object) -> None:
        raise ValueError("not JSON")

    monkeypatch.setattr(RedisBackend, "store_result", wrong)
    with pytest.raises(ValueError, match="not JSON"):
        bound(LANES).backend.store_result("some-id", object(), "SUCCESS")
