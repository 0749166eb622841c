"""Messages that are no tasks, or hardly, by name. Each is what some producer could send."""

import gzip
import json
import pickle
from collections.abc import Callable
from typing import Any

from support import encoded, message

NAN, INFINITY = float("nan"), float("inf")
OPTIONS = dict.fromkeys(("callbacks", "errbacks", "chain", "chord"))


def corpus() -> dict[str, bytes]:
    """Every payload, with a task id of its own, ready for the queue."""
    whole = {name: _bytes(_good(name)) for name in ("good",)}
    cases = whole | _raw() | _without() | _wrong_type() | _headers() | _bodies() | _encodings()
    return {name.replace(" ", "-"): payload for name, payload in cases.items()}


def _good(name: str) -> dict[str, Any]:
    return message("tick", [name.replace(" ", "-")])


def _bytes(envelope: object) -> bytes:
    return json.dumps(envelope).encode()


def _changed(name: str, change: Callable[[dict[str, Any]], object]) -> bytes:
    envelope = _good(name)
    change(envelope)
    return _bytes(envelope)


def _raw() -> dict[str, bytes]:
    """Not an envelope at all."""
    return {
        "empty": b"",
        "space": b" ",
        "text": b"hello",
        "not UTF-8": b"\xff\xfe\x00 garbage",
        "half a message": _bytes(_good("half"))[:150],
        "JSON null": b"null",
        "JSON number": b"42",
        "JSON NaN": b"NaN",
        "JSON text": b'"text"',
        "JSON list": b'[1, 2, "three"]',
        "empty list": b"[]",
        "empty object": b"{" + b"}",
        "deep list": b"[" * 100_000 + b"]" * 100_000,
        "deep object": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
        "pickle": pickle.dumps(message("tick", ["pickle"])),
        "5 MB of text": b"x" * 5_000_000,
        "zeros": b"\0" * 1000,
        "a lone surrogate": b'{"headers": {"task": "\\ud800", "id": "\\udfff"}, "properties": {}}',
    }


def _without() -> dict[str, bytes]:
    cases: dict[str, bytes] = {}
    for part in ("body", "content-encoding", "content-type", "headers", "properties"):
        cases[f"no {part}"] = _changed(f"no {part}", lambda e, p=part: e.pop(p))
    for key in message()["properties"]:
        name = f"no properties {key}"
        cases[name] = _changed(name, lambda e, k=key: e["properties"].pop(k))
    for key in message()["headers"]:
        name = f"no headers {key}"
        cases[name] = _changed(name, lambda e, k=key: e["headers"].pop(k))
    return cases


def _wrong_type() -> dict[str, bytes]:
    cases: dict[str, bytes] = {}
    for part in message():
        for value in (None, 7, [1], "text"):
            name = f"{part} is {type(value).__name__}"
            cases[name] = _changed(name, lambda e, p=part, v=value: e.update({p: v}))
    for part in ("headers", "properties"):
        for key in message()[part]:
            for value in (7, NAN, {"an": "object"}, ["a list"], "text", "\ud800"):
                name = f"{part} {key} is {json.dumps(value)[:9].translate(_PLAIN)}"
                cases[name] = _changed(name, lambda e, p=part, k=key, v=value: e[p].update({k: v}))
    return cases


_PLAIN = dict.fromkeys(map(ord, '{}[]":\\ '), "_")


def _headers() -> dict[str, bytes]:
    deep: Any = []
    for _ in range(900):  # as deep as json.dumps goes
        deep = [deep]
    values: dict[str, dict[str, object]] = {
        "unknown task": {"task": "no.such.task"},
        "huge task name": {"task": "x" * 5_000_000},
        "deep task name": {"task": deep},
        "deep id": {"id": deep},
        "eta is no time": {"eta": "tomorrow"},
        "eta of year 1": {"eta": "0001-01-01T00:00:00+23:59"},
        "expired in year 1": {"expires": "0001-01-01T00:00:00+23:59"},
        "expired": {"expires": "2001-01-01T00:00:00+00:00"},
        "expires in year 9999": {"expires": "9999-12-31T23:59:59-23:59"},
        "expires is no time": {"expires": "never"},
        "expires is a number": {"expires": 1e300},
        "limits NaN": {"timelimit": [NAN, NAN]},
        "limits infinite": {"timelimit": [INFINITY, INFINITY]},
        "limits huge": {"timelimit": [1e300, 1e300]},
        "limits text": {"timelimit": ["1", "2"]},
        "limits one": {"timelimit": [1]},
        "limits three": {"timelimit": [1, 2, 3]},
        "limits true": {"timelimit": [True, False]},
        "retries negative": {"retries": -3},
        "retries huge": {"retries": 10**400},
        "stamped without stamps": {"stamped_headers": ["a"], "stamps": None},
        "stamped by lists": {"stamped_headers": [["a"], {"b": 1}], "stamps": {"a": 1}},
        "stamps of lists": {"stamped_headers": ["a"], "stamps": {"a": [[1], {"b": 2}]}},
        "lang of another": {"lang": "klingon"},
        "compression unknown": {"compression": "application/x-rar"},
        "compression of what is not": {"compression": "application/x-gzip"},
        "malformed says the sender": {"malformed": "yes"},
        "group index text": {"group": "g", "group_index": "first"},
        "replaced nesting text": {"replaced_task_nesting": "deep"},
        "ignore result list": {"ignore_result": [1]},
        "countdown of our own": {"lane_sent_at": "yesterday"},
    }
    return {
        name: _changed(name, lambda e, h=headers: e["headers"].update(h))
        for name, headers in values.items()
    }


def _bodies() -> dict[str, bytes]:
    values: dict[str, bytes] = {
        "body empty": b"",
        "body not JSON": b"]",
        "body not UTF-8": b'["\xff"]',
        "body null": b"null",
        "body text": b'"abc"',
        "body of two": b"[[], null]",
        "body of four": b"[[], {}, {}, {}]".replace(b"{}", b"{ }"),
        "body protocol 1": json.dumps({"task": "tick", "id": "1", "args": ["one"]}).encode(),
        "args object": json.dumps([{"a": 1}, {}, OPTIONS]).encode(),
        "args text": json.dumps(["abc", {}, OPTIONS]).encode(),
        "args null": json.dumps([None, {}, OPTIONS]).encode(),
        "args too many": json.dumps([[1, 2, 3, 4], {}, OPTIONS]).encode(),
        "kwargs list": json.dumps([[], ["a"], OPTIONS]).encode(),
        "kwargs null": json.dumps([["n"], None, OPTIONS]).encode(),
        "kwargs unknown": json.dumps([["k"], {"what": 1}, OPTIONS]).encode(),
        "options list": json.dumps([["o"], {}, [1]]).encode(),
        "options null": json.dumps([["options-null"], {}, None]).encode(),
        "deep body": b"[" * 50_000 + b"]" * 50_000,
        "huge body": json.dumps([["x " * 2_500_000, 0.0], {}, OPTIONS]).encode(),
    }
    for key in OPTIONS:
        for value in (7, "text", ["text"], [7], {"task": 7}, [None]):
            name = f"{key} {json.dumps(value).translate(_PLAIN)}"
            body = [[name.replace(" ", "-")], {}, OPTIONS | {key: value}]
            values[name] = json.dumps(body).encode()
    return {name: _with_body(name, body) for name, body in values.items()}


def _with_body(name: str, body: bytes, **envelope: object) -> bytes:
    return _bytes(_good(name) | {"body": encoded(body)} | envelope)


def _encodings() -> dict[str, bytes]:
    body = json.dumps([["encoded"], {}, OPTIONS]).encode()

    def sent(name: str, properties: dict[str, object] | None = None, **envelope: object) -> bytes:
        whole = _good(name) | {key.replace("_", "-"): value for key, value in envelope.items()}
        whole["properties"] |= properties or {}
        return _bytes(whole)

    return {
        "pickled body": _with_body(
            "pickled", pickle.dumps(1), **{"content-type": "application/x-python-serialize"}
        ),
        "pickled body called JSON": _with_body("pickled", pickle.dumps([[], {}, OPTIONS])),
        "yaml body": _with_body("yaml", b"- []", **{"content-type": "application/x-yaml"}),
        "gzipped body": _with_body("gzipped", gzip.compress(body)),
        "unknown type": sent("unknown type", content_type="application/x-unknown"),
        "unknown encoding": sent("unknown encoding", content_encoding="klingon"),
        "binary encoding": sent("binary encoding", content_encoding="binary"),
        "type null": sent("type null", content_type=None),
        "not base64": sent("not base64", body="%%% not base64 %%%"),
        "base64 without padding": sent("base64 without padding", body="abc"),
        "body encoding unknown": sent("body encoding unknown", {"body_encoding": "rot13"}),
        "body encoding null": sent("body encoding null", {"body_encoding": None}),
        "delivery tag of another": sent("delivery tag of another", {"delivery_tag": "1@work-1@vm"}),
        "delivery tag again": sent("delivery tag again", {"delivery_tag": "1@work-1@vm"}),
        "delivery tag empty": sent("delivery tag empty", {"delivery_tag": ""}),
        "priority absurd": sent("priority absurd", {"priority": 10**30}),
        "exchange of another": sent(
            "exchange of another", {"delivery_info": {"exchange": "x", "routing_key": "nowhere"}}
        ),
        "delivery info null": sent("delivery info null", {"delivery_info": None}),
        "reply to nobody": sent("reply to nobody", {"reply_to": "nobody"}),
    }
