from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery
from celery.backends.redis import RedisBackend
from harness import PATIENCE, free_port, wait_until
from redis.exceptions import ConnectionError as BrokenConnectionError

from {{ cookiecutter.package_name }}.lanes import results

LANES = 'default_lane = "quick"\n[lanes.quick]\n'

BACKENDS = {
    "TCP": ("redis://host/1", results.Backend),
    "TLS": ("rediss://host/1", results.Backend),
    "a socket": ("redis+socket:///run/valkey.sock", results.Backend),
    "Sentinel": ("sentinel://host:26379", results.SentinelResults),
}


@pytest.mark.parametrize(("url", "backend"), BACKENDS.values(), ids=BACKENDS)
def test_every_kind_of_redis_keeps_results_in_ours(
    bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch, url: str, backend: type
) -> None:
    monkeypatch.setenv("RESULT_URL", url)
    assert type(bound(LANES).backend) is backend


def test_a_result_that_cannot_be_kept_is_lost_with_a_line_of_log_and_no_more(
    bound: Callable[[str], Celery],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def away(*_args: object, **_options: object) -> None:
        raise BrokenConnectionError("refused")

    monkeypatch.setattr(RedisBackend, "store_result", away)
    assert bound(LANES).backend.store_result("some-id", "answer", "SUCCESS") == "answer"
    assert caplog.messages == ["the result of some-id is lost, the backend failed: refused"]


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
