"""What a value in lanes.toml may be: each parser returns the value, or raises its rule."""

import json
import re
from collections.abc import Callable
from typing import Any

from .timetable import Entry, zone

Parser = Callable[[object], Any]

LONGEST_KEY = 200  # characters


def parse_duration(value: object) -> float:
    """Seconds in a duration such as "250ms", "30s", "10m", "1h", "30d".

    Raises:
        ValueError: when `value` is anything else; the message is the rule, with an example.
    """
    match = isinstance(value, str) and re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", value)
    if not match or float(match[1]) == 0:
        raise ValueError('expected a duration such as "30s"')
    return float(match[1]) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


def parse_size(value: object) -> int:
    """Bytes in a size such as "512K", "512M", "2G" (powers of 1024).

    Raises:
        ValueError: when `value` is anything else; the message is the rule, with an example.
    """
    match = isinstance(value, str) and re.fullmatch(r"([1-9]\d*)([KMG])", value)
    if not match:
        raise ValueError('expected a size such as "512M"')
    return int(match[1]) << {"K": 10, "M": 20, "G": 30}[match[2]]


def parse_rate(value: object) -> float:
    """Seconds between two, of a rate such as "100/m", "10/s" or "0.5/h".

    Raises:
        ValueError: when `value` is anything else; the message is the rule, with an example.
    """
    match = isinstance(value, str) and re.fullmatch(r"(\d+(?:\.\d+)?)/([smh])", value)
    if not match or float(match[1]) == 0:
        raise ValueError('expected a rate such as "100/m"')
    return {"s": 1, "m": 60, "h": 3600}[match[2]] / float(match[1])


def parse_share(value: object) -> float:
    """The value, if it is a share of tasks that an objective can ask for.

    Below a half, more may be late than not, and few alerts about that could still fire.

    Raises:
        ValueError: when `value` is anything else; the message is the rule, with an example.
    """
    if not isinstance(value, float) or not 0.5 <= value <= 0.99999:
        raise ValueError("expected a share from 0.5 to 0.99999, such as 0.99 for 99 %")
    return value


def whole_number(low: int, high: int) -> Parser:
    """A parser of whole numbers, both ends included."""

    def parse(value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return value

    return parse


def optional(parse: Parser) -> Parser:
    """A parser to which `false` is `None`: no limit."""

    def parse_or_off(value: object) -> Any:
        if value is False:
            return None
        try:
            return parse(value)
        except ValueError as error:
            raise ValueError(f"{error}, or false for none") from None

    return parse_or_off


def choice(*choices: str) -> Parser:
    """A parser of one of these words."""

    def parse(value: object) -> str:
        if value not in choices:
            expected = " or ".join(json.dumps(word) for word in choices)
            raise ValueError(f"expected {expected}")
        return str(value)

    return parse


def parse_truth(value: object) -> bool:
    """The value, if it is `true` or `false`; raises ValueError when it is not."""
    if not isinstance(value, bool):
        raise ValueError("expected true or false")  # noqa: TRY004 - one kind for every rule
    return value


def parse_queue_name(value: object) -> str:
    """The value, if a lane's queue may be called so; raises ValueError when it may not."""
    # The names that kombu and Celery keep for themselves in the same Redis database.
    reserved = isinstance(value, str) and re.match(r"celeryev|.*\.pidbox|unacked", value)
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z][\w.-]{0,99}", value) or reserved:
        raise ValueError(
            "expected a queue name of letters, digits, '_', '.' or '-', "
            "not one of Celery's own (celeryev..., ...pidbox, unacked...)"
        )
    return value


def parse_text(value: object) -> str:
    """The value, if it is a text, and not empty; raises ValueError when it is not."""
    if not isinstance(value, str) or not value:
        raise ValueError("expected a text")
    return value


def parse_key(value: object) -> str:
    """The value, if it is a text, and may be a key; raises ValueError when it is not."""
    if not isinstance(value, str) or not 0 < len(value) <= LONGEST_KEY:
        raise ValueError(f"expected a text of 1 to {LONGEST_KEY} characters")
    return value


def parse_every(value: object) -> float:
    """Seconds of a duration of one or more; raises ValueError for all else."""
    seconds = parse_duration(value)
    if seconds < 1:
        raise ValueError('expected "1s" or more')
    return seconds


def parse_timezone(value: object) -> str:
    """The value, if a time zone is called so; raises ValueError when none is."""
    zone(value if isinstance(value, str) else "")
    return str(value)


def parse_cron(value: object) -> str:
    """The value, if it is five fields of cron that come at all; raises ValueError when not."""
    from cronsim import CronSimError  # of no use to who has no schedule

    if not isinstance(value, str) or len(value.split()) != 5:
        raise ValueError('expected five fields such as "0 3 * * *"')
    try:
        comes = Entry(name="", task="", cron=value).following(0.0)
    except CronSimError as error:
        raise ValueError(f'{error}; expected five fields such as "0 3 * * *"') from None
    if comes is None:
        raise ValueError("never comes")
    return " ".join(value.split())


def parse_arguments(value: object) -> tuple[Any, ...]:
    """The value as a tuple, if it is a list that JSON can say; raises ValueError when not."""
    if not isinstance(value, list) or not _is_json(value):
        raise ValueError('expected a list of arguments such as ["all"]')
    return tuple(value)


def parse_keywords(value: object) -> dict[str, Any]:
    """The value, if it is a table that JSON can say; raises ValueError when it is not."""
    if not isinstance(value, dict) or not _is_json(value):
        raise ValueError('expected a table of arguments such as { name = "all" }')
    return value


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except TypeError:
        return False
    return True


def spoken(seconds: float) -> str:
    """Seconds in the largest unit that they reach, such as "1.5 h"."""
    for size, unit in ((3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1000:.0f} ms"
