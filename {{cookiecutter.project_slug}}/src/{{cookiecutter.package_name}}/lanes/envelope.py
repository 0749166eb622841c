"""Write a message as Celery and kombu do: the envelope of most is made once for a task and a lane.

Celery decides for each message anew what is the same in all of a task's. Here only ids, arguments,
times and a key are filled in, unless a call has options that say more; see many.py, too.
"""

import json
import re
from base64 import b64encode
from collections.abc import Collection, Mapping
from secrets import token_hex
from typing import Any, NamedTuple

from celery.utils.functional import maybe_list
from celery.utils.nodenames import anon_nodename
from kombu import serialization
from kombu.utils.json import dumps

from .config import Lane
from .keyed import key_of
from .protocol import shown
from .redis.store import KEY, Keys, Outgoing, Store, instant
from .routing import LANE_EXPIRES, MAPS, SENT_AT, mark, stamp

#: Options that say where to.
_PLACE = ("lane", "queue", "key")
#: Options that a message says, by their names in Celery's `as_task_v2`.
_SAID = (
    *("countdown", "eta", "expires", "time_limit", "soft_time_limit", "shadow", "retries"),
    *("group_id", "group_index", "chord", "chain", "replaced_task_nesting", "ignore_result"),
)
#: Those with which a message differs from others of its task and lane in `_PLACES` alone.
_PLAIN = frozenset(
    (
        *(*_PLACE, "ignore_result", "task_id", "task_type", "result_cls", "add_to_parent"),
        *("serializer", "producer", "group_id", "group_index", "root_id", "parent_id", "reply_to"),
    )
)
#: All that can be written here; each is Celery's, or the router's.
OPTIONS = _PLAIN.union(_SAID, ("headers", "link", "link_error"))
#: Where in a message stands what may differ, besides its body.
_PLACES = {
    "headers": (
        *("id", "root_id", "parent_id", "group", "group_index", "argsrepr", "kwargsrepr"),
        *("origin", "ignore_result", SENT_AT, "expires", LANE_EXPIRES, KEY),
    ),
    "properties": ("correlation_id", "reply_to", "delivery_tag"),
}
_DIFFERS = frozenset(_PLACES["headers"] + _PLACES["properties"])
_TOKEN = token_hex(8)  # no header of a user's is taken for a mark: nobody knows it
_MARK = _TOKEN + "{}."
_MOST = 1000  # envelopes that are kept: `send_task` takes any name

_json = json.JSONEncoder().encode


class Call(NamedTuple):
    """One call of a task."""

    name: str
    args: Any  # as the caller gave them
    kwargs: Any  # likewise
    id: str
    options: Mapping[str, Any]  # some of OPTIONS, none of them None
    parent: Any  # the request of the task that sends it; None: none does


class Envelope(NamedTuple):
    """What messages of one task in one lane have in common."""

    lane: Lane
    content: tuple[str, str]  # the type and the encoding of their bodies
    embedded: Any  # the third part of a body
    text: str  # with `%(name)s` where something differs

    @classmethod
    def of(cls, lane: Lane, message: Mapping[str, Any], differs: Collection[str]) -> "Envelope":
        """That of messages like one.

        Args:
            message: as `whole` makes it; marked and stamped.
            differs: names of what is to be filled in besides the body, wherever it is there.
        """
        _, _, embedded = message["body"]
        content, _ = encoded(message["body"])
        marked = dict(message) | {"body": _MARK.format("body")}
        marked["content-type"], marked["content-encoding"] = content
        for place, parts in _PLACES.items():
            marks = {part: _MARK.format(part) for part in parts if part in differs}
            marked[place] = {name: marks.get(name, value) for name, value in message[place].items()}
        text = re.sub(rf'"{_TOKEN}(\w+)\."', r"%(\1)s", dumps(marked).replace("%", "%%"))
        return cls(lane, content, embedded, text)

    def filled(self, values: Mapping[str, Any]) -> str:
        """A message.

        Args:
            values: what differs, by name, the body as `encoded` returns it; or more.
        """
        return self.text % {
            name: "null" if value is None else _json(value) for name, value in values.items()
        }


class Writer:
    """Writes an app's messages."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._stores: dict[str, Store] = {}  # by lane
        self._envelopes: dict[Any, Envelope] = {}

    def written(self, call: Call) -> tuple[Store, Outgoing, float | None]:
        """Of a call: where its message goes, the message, and when it is due.

        That is in seconds since 1970, by the server's clock; None: at once.

        Raises:
            RoutingError: as Celery's way of a send does.
            EncodeError: likewise.
            TypeError: likewise.
        """
        args, kwargs = call.args or (), call.kwargs or {}
        is_plain = call.options.keys() <= _PLAIN and call.name not in MAPS
        if is_plain and isinstance(args, list | tuple) and isinstance(kwargs, Mapping):
            task = call.options.get("task_type")
            key = key_of(call.name, call.options, args, kwargs, task)
            envelope = self._envelope(call, is_keyed=key is not None)
            content, body = encoded((args, kwargs, envelope.embedded))
            if content == envelope.content:  # else "json" is another serializer's name by now
                text = self._filled(envelope, call, body, key)
                return self._store(envelope.lane), Outgoing(text, key), None
        lane, message = self._message(call)
        content, message["body"] = encoded(message["body"])
        message["content-type"], message["content-encoding"] = content
        text, headers = dumps(message), message["headers"]
        return self._store(lane), Outgoing(text, headers.get(KEY)), instant(headers["eta"])

    def _store(self, lane: Lane) -> Store:
        if lane.name not in self._stores:
            self._stores[lane.name] = Store(self._app.server.client, Keys.of(lane))
        return self._stores[lane.name]

    def _envelope(self, call: Call, *, is_keyed: bool) -> Envelope:
        options = call.options
        own_lane = getattr(options.get("task_type"), "lane", None)
        which = (call.name, own_lane, options.get("lane"), options.get("queue"), is_keyed)
        known = self._envelopes.get(which)
        if known is not None:
            return known
        made = Envelope.of(*self._message(call), _DIFFERS)
        if len(self._envelopes) >= _MOST:
            self._envelopes.clear()
        self._envelopes[which] = made
        return made

    def _filled(self, envelope: Envelope, call: Call, body: str, key: str | None) -> str:
        options, parent = call.options, call.parent
        root_id = options.get("root_id") or (parent and (parent.root_id or parent.id))
        values = {
            "id": call.id,
            "correlation_id": call.id,
            "root_id": root_id or call.id,
            "parent_id": options.get("parent_id") or (parent and parent.id),
            "group": options.get("group_id"),
            "group_index": options.get("group_index"),
            "argsrepr": shown(call.args or ()),
            "kwargsrepr": shown(call.kwargs or {}),
            "origin": anon_nodename(),
            "ignore_result": options.get("ignore_result"),
            "reply_to": options.get("reply_to") or self._app.thread_oid,
            "delivery_tag": token_hex(16),
            "body": body,
            KEY: key,
        }
        stamp(values, envelope.lane, self._app.server.clock.now())
        return envelope.filled(values)

    def _message(self, call: Call) -> tuple[Lane, dict[str, Any]]:
        """The lane, and the message; its body is not encoded yet."""
        app, options, parent = self._app, call.options, call.parent
        amqp = app.amqp
        place = {each: options[each] for each in _PLACE if each in options}
        task = options.get("task_type")
        place = amqp.router.route(place, call.name, call.args, call.kwargs, task)
        made = amqp.create_task_message(
            call.id,
            call.name,
            call.args,
            call.kwargs,
            callbacks=maybe_list(options.get("link")),
            errbacks=maybe_list(options.get("link_error")),
            reply_to=options.get("reply_to") or app.thread_oid,
            root_id=options.get("root_id") or (parent and (parent.root_id or parent.id)),
            parent_id=options.get("parent_id") or (parent and parent.id),
            **{"ignore_result": None} | {each: options[each] for each in _SAID if each in options},
        )
        queue = place["queue"].name
        lane = app.lanes.for_queue(queue)
        made.headers.update(options.get("headers", {}))
        mark(made.headers, place.get(KEY))
        stamp(made.headers, lane, app.server.clock.now())
        return lane, whole(lane, made, options.get("expires"))


def whole(lane: Lane, made: Any, expires: float | None = None) -> dict[str, Any]:
    """A message of Celery's as kombu completes it; its body is not encoded yet.

    Args:
        lane: where it goes.
        made: the message, of protocol 2.
        expires: seconds, as the call says it.
    """
    properties = made.properties | {"delivery_mode": 2}
    if expires is not None:
        properties["expiration"] = str(int(expires * 1000))
    properties |= {
        "delivery_info": {"exchange": "", "routing_key": lane.queue},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": token_hex(16),
    }
    content = dict.fromkeys(("content-encoding", "content-type"))
    return {"body": made.body, **content, "headers": made.headers, "properties": properties}


def encoded(body: Any) -> tuple[tuple[str, str], str]:
    """The type and the encoding of what a body is made to, and that as base64.

    By kombu's serializer of the name "json", which the owner may have replaced.

    Raises:
        EncodeError: when it does not know such arguments.
    """
    content_type, encoding, text = serialization.dumps(body, "json")
    raw = text.encode() if isinstance(text, str) else text
    return (content_type, encoding), b64encode(raw).decode()
