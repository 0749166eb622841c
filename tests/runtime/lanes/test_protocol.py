"""What comes in Celery's first protocol is, once it is read, one of the second."""

import json
from base64 import b64encode
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from celery import Celery
from kombu.compression import compress as kombu_compress

from acme_tasks.lanes.consumer import problem
from acme_tasks.lanes.protocol import body_of, upgraded
from acme_tasks.lanes.redis.transport import Message

OLD: dict[str, Any] = {
    "task": "echo",
    "id": "some-id",
    "args": [1],
    "kwargs": {"a": 2},
    "retries": 3,
    "eta": "2042-01-01T00:00:00",
    "expires": "2042-01-02T00:00:00+00:00",
    "utc": True,
    "callbacks": [{"task": "after"}],
    "errbacks": [{"task": "alas"}],
    "timelimit": [30, 27],
    "taskset": "of-this-group",
    "chord": {"task": "end"},
}


def envelope(body: Any, *, compress: bool = False, **headers: Any) -> dict[str, Any]:
    """As kombu has it in Redis."""
    raw = json.dumps(body).encode()
    if compress:
        raw, headers["compression"] = kombu_compress(raw, "gzip")
    return {
        "body": b64encode(raw).decode(),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": {"body_encoding": "base64", "delivery_tag": "1", "delivery_info": {}},
    }


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "compressed"])
def test_all_that_it_says_is_kept(compress: bool) -> None:
    new = upgraded(envelope(OLD, compress=compress, trace="x"))
    assert new["headers"] == {
        "lang": "py",
        "task": "echo",
        "id": "some-id",
        "root_id": "some-id",
        "retries": 3,
        "eta": "2042-01-01T00:00:00",
        "expires": "2042-01-02T00:00:00+00:00",
        "timelimit": [30, 27],
        "group": "of-this-group",
        "group_index": None,
        "argsrepr": "[1]",
        "kwargsrepr": "{'a': 2}",
        "trace": "x",
    }
    options = {"callbacks": OLD["callbacks"], "errbacks": OLD["errbacks"], "chord": OLD["chord"]}
    assert body_of(new) == [[1], {"a": 2}, options | {"chain": None}]
    assert new["properties"] == {"delivery_tag": "1", "delivery_info": {}}
    assert upgraded(new) is new


def test_the_least_that_it_may_say_is_enough() -> None:
    new = upgraded(envelope({"task": "echo", "id": "some-id"}))
    assert problem(Message(new, channel=_Channel())) is None
    assert body_of(new)[:2] == [[], {}]


def test_times_without_a_zone_are_in_utc_unless_it_says_otherwise() -> None:
    local = upgraded(envelope(OLD | {"utc": False}))["headers"]
    assert local["eta"] == datetime(2042, 1, 1).astimezone().isoformat()
    assert datetime.fromisoformat(local["expires"]) == datetime.fromisoformat(OLD["expires"])


class _Channel:
    no_ack_consumers = None

    def decode_body(self, body: Any, encoding: Any = None) -> Any:
        assert encoding is None
        return body


SAID: dict[str, tuple[dict[str, Any], str]] = {
    "arguments": ({"args": "x"}, "body: expected a list of arguments and an object"),
    "keyword arguments": ({"kwargs": [1]}, "body: expected a list of arguments and an object"),
    "id": ({"id": 7}, "headers.id: 7 (expected a text)"),
    "task": ({"task": ["x"]}, "headers.task: ['x'] (expected a text)"),
    "eta": ({"eta": "soon"}, "headers.eta: 'soon' (not what Celery sends)"),
    "eta in no zone": ({"eta": "x", "utc": False}, "headers.eta: 'x' (not what Celery sends)"),
    "retries": ({"retries": "x"}, "headers.retries: 'x' (not what Celery sends)"),
    "limits": ({"timelimit": 3}, "headers.timelimit: 3 (not what Celery sends)"),
}


@pytest.mark.parametrize(("wrong", "said"), SAID.values(), ids=SAID)
def test_a_malformed_one_is_named_by_what_is_wrong(wrong: dict[str, Any], said: str) -> None:
    found = problem(Message(upgraded(envelope(OLD | wrong)), channel=_Channel()))
    assert str(found).startswith(said)


OTHERS: dict[str, Any] = {
    "one of protocol 2": envelope([[], {}, {}], task="echo", id="some-id"),
    "a body that is no task": envelope({"not": "a task"}),
    "a body that is a list": envelope([1, 2]),
    "no body": {"headers": {}, "properties": {}},
    "no headers": {"body": ""},
    "headers that are a list": {"headers": []},
    "a list": [1],
    "nothing": None,
    "a pickle": envelope(OLD) | {"content-type": "application/x-python-serialize"},
    "not base64": envelope(OLD) | {"body": "%"},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_anything_else_is_left_as_it_is(other: Any) -> None:
    before = json.dumps(other)
    assert upgraded(other) is other
    assert json.dumps(other) == before


def test_a_bound_app_makes_messages_of_the_second_whatever_it_is_told(
    bound: Callable[[str], Celery],
) -> None:
    app: Any = bound('default_lane = "quick"\n[lanes.quick]\n')
    app.conf.task_protocol = 1
    assert app.amqp.create_task_message("some-id", "echo").headers["id"] == "some-id"
