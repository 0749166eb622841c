"""Whether a message like another is sent: its lock, made when it is sent.

It stands in the header ONCE, where scripts read it, and take the lock in the step that sends.
"""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cache
from hashlib import sha1
from typing import Any, NamedTuple
from urllib.parse import quote

from kombu.utils.json import dumps

from .errors import RoutingError
from .keyed import run_of, text_of
from .redis.store import ONCE
from .values import parse_duration

#: Options of a call.
OPTIONS = ("unique", "unique_for", "unique_until", "replace")
#: Seconds that `unique_for` may be, at most.
LONGEST_LOCK = 366 * 86_400


class Once(NamedTuple):
    """What the header ONCE says, but for the message itself."""

    mode: str  # "start", "done", "time" or "latest": see `once_of`
    milliseconds: int  # how long the lock holds, in the mode "time"; else 0
    name: str  # of the lock, as it stands in the header

    def header(self, id_: str, retries: int) -> str:
        """The header of a message.

        Args:
            id_: its task's.
            retries: runs of the task before this one.
        """
        return f"{self.mode} {self.milliseconds} {retries} {quote(id_, safe='')} {self.name}"

    @classmethod
    def read(cls, header: object) -> "Once | None":
        """What a header says; None when it says nothing that can be read."""
        match str(header).split(" "):
            case [mode, milliseconds, _, _, name] if milliseconds.isdecimal():
                return cls(mode, int(milliseconds), name)
        return None


def once_of(
    name: str,
    options: Mapping[str, Any],
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    task: Any,
) -> Once | None:
    """The lock that a call asks for with `unique`; None: it asks for none.

    Its mode says when the lock goes: "start", when the task starts; "done", when it has ended;
    "time", after a time that counts from the send. "latest" is like "start", and a second message
    takes the place of the first. The arguments of this function are those of `keyed.key_of`.

    Raises:
        RoutingError: when the options cannot be used, or not together.
    """
    unique, lasts, until, replace = (options.get(each) for each in OPTIONS)
    if unique is None or unique is False:
        for each in OPTIONS[1:]:
            if options.get(each) not in (None, False):
                raise RoutingError(
                    f"{name}: {each}={options[each]!r} needs unique: say unique=True, or a text"
                )
        return Once.read(options[ONCE]) if ONCE in options else None
    if options.get(ONCE):
        raise RoutingError(
            f"{name}: unique cannot be said in a retry, which keeps that of its task"
        )
    if until not in (None, "start", "done"):
        raise RoutingError(
            f"{name}: unique_until={until!r} cannot be used: expected 'start' or 'done'"
        )
    if lasts is not None and until is not None:
        raise RoutingError(
            f"{name}: unique_for and unique_until cannot be used together: the one ends by the "
            "clock, the other with the task; leave one of them out"
        )
    if replace and (lasts is not None or until == "done"):
        other = "unique_for" if lasts is not None else "unique_until='done'"
        raise RoutingError(
            f"{name}: replace and {other} cannot be used together: only what has not started can "
            "be replaced; leave one of them out"
        )
    milliseconds = 0 if lasts is None else _milliseconds(name, lasts)
    mode = "latest" if replace else "time" if milliseconds else until or "done"
    if unique is not True:
        text = text_of(unique, f"{name}: unique")
    elif task is None:
        raise RoutingError(
            f"{name}: unique=True needs to know the task's arguments, and no task is called so "
            "here: say a text instead"
        )
    else:
        text = _digest(_signature(task.__class__), args or (), kwargs or {})
    return Once(mode, milliseconds, quote(f"{name}:{text}", safe=""))


def _milliseconds(name: str, lasts: object) -> int:
    try:
        if isinstance(lasts, timedelta):
            seconds = lasts.total_seconds()
        elif isinstance(lasts, str):
            seconds = parse_duration(lasts)
        else:
            seconds = float(lasts) if type(lasts) in (int, float) else 0.0  # type: ignore[arg-type]
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_LOCK:
        raise RoutingError(
            f"{name}: unique_for={lasts!r} cannot be used: expected seconds, a timedelta or a "
            'duration such as "1h", of up to 366 days'
        )
    return max(1, round(seconds * 1000))


@cache
def _signature(task: type) -> inspect.Signature:
    return inspect.signature(run_of(task))


def _digest(signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """A text of a task's arguments: the same however they are given."""
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    whole = dumps(bound.arguments, sort_keys=True, separators=(",", ":"))
    return sha1(whole.encode(), usedforsecurity=False).hexdigest()


def check_alone(name: str, message: Any, once: Once | None) -> None:
    """See that nothing waits for a message that may not be sent at all.

    A chain is looked at when it is sent: later, its first tasks would have run.

    Args:
        name: the task's.
        message: Celery's, of protocol 2.
        once: what is to be sent once; None: the message is always sent.

    Raises:
        RoutingError: when the message or what follows it is to be sent once, and is part of more.
    """
    headers, embedded = message.headers, message.body[2]
    if once is None and not embedded["chain"] and not embedded["chord"]:
        return
    if once is not None:
        parts = {
            "a chain": embedded["chain"] is not None,  # empty in its last task
            "a chord": embedded["chord"],
            "a group": headers["group"],
            "a call with link or link_error": embedded["callbacks"] or embedded["errbacks"],
            "what replaces a task": headers["replaced_task_nesting"],
        }
        for part, is_so in parts.items():
            if is_so:
                raise _never_sent(name, part)
    for part, signatures in (
        ("a chain", embedded["chain"] or ()),
        ("a chord", (embedded["chord"],) if embedded["chord"] else ()),
    ):
        for each in signatures:
            for inner in _tasks_in(each):
                if (inner.get("options") or {}).get("unique"):
                    raise _never_sent(inner["task"], part)


def _never_sent(name: str, part: str) -> RoutingError:
    return RoutingError(
        f"{name}: unique cannot be used in {part}: what is not sent, because another is under way, "
        "would never end, and nothing would follow it; send it by itself"
    )


def _tasks_in(signature: Any) -> Iterator[Any]:
    """The signatures of tasks that one is made of: of a chain, a group, a chord, or itself."""
    inner = signature.get("kwargs") or {}
    match signature.get("subtask_type"):
        case "chain" | "group":
            parts = list(inner["tasks"])
        case "chord":
            header = inner["header"]
            parts = [*([header] if isinstance(header, Mapping) else header), inner["body"]]
        case _:
            yield signature
            return
    for each in parts:
        yield from _tasks_in(each)
