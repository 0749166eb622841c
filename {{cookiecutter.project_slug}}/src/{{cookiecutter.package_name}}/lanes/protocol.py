"""Celery's message protocols: what came in the first is made one of the second.

https://docs.celeryq.dev/en/stable/internals/protocol.html
"""

from base64 import b64decode
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from kombu.compression import decompress
from kombu.serialization import dumps, loads

#: What the two call alike; in the second they are headers.
_HEADERS = ("id", "task", "eta", "expires", "retries", "timelimit", "group", "group_index")
_OPTIONS = ("callbacks", "errbacks", "chord")


def upgraded(payload: Any) -> Any:
    """A message of protocol 1 as one of protocol 2; anything else as it is, malformed or not.

    Celery 3 sends those, and later ones with `task_protocol = 1`: all that is said of the task is
    in the body, where neither its name nor its time can be seen.
    """
    with suppress(Exception):  # anything may have been sent; the firewall says what is wrong
        if "task" not in payload["headers"]:
            body = body_of(payload)
            if isinstance(body, Mapping) and "task" in body and "id" in body:
                return _upgraded(payload, body)
    return payload


def _upgraded(payload: Any, old: Mapping[str, Any]) -> Any:
    args, kwargs = old.get("args") or [], old.get("kwargs") or {}
    options = {"chain": None} | {name: old.get(name) for name in _OPTIONS}
    type_, encoding, body = dumps([args, kwargs, options], "json")
    headers = {name: value for name, value in payload["headers"].items() if name != "compression"}
    headers |= {name: old.get(name) for name in _HEADERS}
    headers |= {
        "lang": "py",
        "root_id": old["id"],
        "group": old.get("group") or old.get("taskset"),
        "retries": old.get("retries") or 0,
        "argsrepr": shown(args),
        "kwargsrepr": shown(kwargs),
    }
    if old.get("utc") is False:
        headers |= {name: _in_a_zone(headers[name]) for name in ("eta", "expires")}
    properties = {
        name: value for name, value in payload["properties"].items() if name != "body_encoding"
    }
    return dict(payload) | {
        "headers": headers,
        "properties": properties,
        "body": body,
        "content-type": type_,
        "content-encoding": encoding,
    }


def _in_a_zone(time: Any) -> Any:
    """A sender with `enable_utc = False` means its own zone, which it does not say: as here."""
    with suppress(TypeError, ValueError, OverflowError):
        return datetime.fromisoformat(time).astimezone().isoformat()
    return time


def body_of(payload: Any) -> Any:
    """What the body of a message says.

    Raises:
        Exception: of any kind, when it cannot be read, or is not JSON.
    """
    body, headers = payload["body"], payload["headers"]
    if payload["properties"].get("body_encoding") == "base64":
        body = b64decode(body)
    if headers.get("compression"):
        body = decompress(body, headers["compression"])
    return loads(
        body, payload["content-type"], payload["content-encoding"], accept={"application/json"}
    )


def shown(arguments: Any) -> str:
    """Arguments as monitors and logs show them, cut to Celery's 1,024 characters."""
    return f"{arguments!r:.1024}"
