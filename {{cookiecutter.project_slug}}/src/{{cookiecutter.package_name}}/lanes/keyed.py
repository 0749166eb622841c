"""Whose a message is: its key, made when it is sent. It stands in the header KEY for scripts."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any
from urllib.parse import unquote
from uuid import UUID

from .errors import RoutingError
from .redis.store import KEY, quoted
from .values import LONGEST_KEY

Find = Callable[[Sequence[Any], Mapping[str, Any]], object]  # a key, of a task's arguments


def text_of(value: object, label: str) -> str:
    """A key, or what `unique` is, as a text.

    Args:
        value: a text, a whole number or a UUID.
        label: how the error begins, such as "report: key".

    Raises:
        RoutingError: when it is anything else, or is empty or longer than LONGEST_KEY.
    """
    wrong = f"{label}={value!r:.60} cannot be used: "
    if isinstance(value, bool) or not isinstance(value, str | int | UUID):
        raise RoutingError(
            f"{wrong}expected a text, a whole number or a UUID; make a text of it that is always "
            "the same"
        )
    if isinstance(value, str):
        text = str.__str__(value)  # of an enumeration's member, what it stands for
    else:
        text = int.__repr__(value) if isinstance(value, int) else str(value)
    if not 0 < len(text) <= LONGEST_KEY:
        raise RoutingError(
            f"{wrong}expected 1 to {LONGEST_KEY} characters, and these are {len(text)}; "
            "a hash of it is short enough"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RoutingError(f"{wrong}it has half a character in it; leave that out") from None
    return text


def finder(name: str, key: object, run: Callable[..., Any]) -> Find | None:
    """What finds the key of a task's messages in their arguments.

    Where an argument stands is looked up here, once, and not at each send.

    Args:
        name: the task's, for the error.
        key: an argument's name; a function, which is called with the arguments; None: no key.
        run: what the task runs, without its `self`.

    Raises:
        RoutingError: when there is no such argument; it names those there are.
    """
    if key is None:
        return None
    if callable(key):
        return lambda args, kwargs: key(*args, **kwargs)
    parameters = inspect.signature(run).parameters
    kinds = inspect.Parameter
    stars = (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
    names = [each.name for each in parameters.values() if each.kind not in stars]
    # With `**options`, any name may be among them.
    takes_any = any(each.kind is kinds.VAR_KEYWORD for each in parameters.values())
    if not isinstance(key, str) or (key not in names and not (takes_any and key.isidentifier())):
        raise RoutingError(
            f"{name}: key={key!r} is none of its arguments; say one of them, or a function that is "
            f"called with them (arguments: {', '.join(names) or 'none'})"
        )
    by_position = [each for each in names if parameters[each].kind is not kinds.KEYWORD_ONLY]
    position = by_position.index(key) if key in by_position else None
    default = parameters[key].default if key in names else None
    default = None if default is kinds.empty else default

    def find(args: Sequence[Any], kwargs: Mapping[str, Any]) -> object:
        if position is not None and position < len(args):
            return args[position]
        return kwargs.get(key, default)

    return find


def run_of(task: Any) -> Callable[..., Any]:
    """What a task, a class, runs; without its `self`."""
    own = inspect.getattr_static(task, "run")
    return task.run if isinstance(own, staticmethod | classmethod) else MethodType(own, task)


def key_of(
    name: str,
    options: Mapping[str, Any],
    args: Sequence[Any] | None,
    kwargs: Mapping[str, Any] | None,
    task: Any,
) -> str | None:
    """The key of a call as its header says it; None: it has none.

    That is the call's own, else that of the run before, in a retry, else what the task's `key` says
    of the arguments.

    Args:
        name: the task's.
        options: the call's.
        args: positional arguments of the task.
        kwargs: keyword arguments of the task.
        task: the task, where it is known.

    Raises:
        RoutingError: when it cannot be one; see `text_of`.
    """
    own = options.get("key")
    if own is not None:
        return quoted(text_of(own, f"{name}: key"))
    if options.get(KEY):
        return quoted(unquote(str(options[KEY])))  # of a message, which anything may have sent
    find: Find | None = getattr(task, "find_key", None)
    found = find(args or (), kwargs or {}) if find else None
    if found is None:
        return None
    label = task.key if isinstance(task.key, str) else "key"
    return quoted(text_of(found, f"{name}: {label}"))
