"""Dead letters: messages set aside with a reason instead of being run or dropped."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .config import Lane
from .protocol import upgraded
from .redis.store import Keys, Store, instant, key_in

REASONS = ("poison", "failed", "expired", "unknown", "malformed", "worker")
_BATCH = 200  # letters read or moved in one go
#: Numbers and hexadecimal ones, such as a user's, an address, a part of a UUID.
_NUMBER = re.compile(r"\b(?:0x[0-9a-f]+|[0-9a-f]*[0-9][0-9a-f]*)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message that was set aside."""

    lane: str
    number: int  # its own in the lane
    at: float  # seconds since 1970, when it was set aside
    reason: str  # one of REASONS
    error: str
    task: str | None  # the task's name, where the message has one
    task_id: str | None
    key: str | None  # the message's, where it has one
    deliveries: int
    traceback: str | None
    message: bytes  # as it was in the queue; empty where `read` was told to leave it out

    @property
    def id(self) -> str:
        """What the command calls it."""
        return f"{self.lane}/{self.number}"


@dataclass(frozen=True, slots=True)
class Group:
    """Dead letters of one task with one error."""

    lane: str
    reason: str
    task: str | None
    error: str  # the newest's first line; numbers in it may differ between the others
    count: int
    oldest: float  # seconds since 1970, when it was set aside
    newest: float  # likewise
    id: str  # the newest's


def read(  # noqa: PLR0913 - a choice, by name
    redis: Any,
    lane: Lane,
    *,
    reason: str | None = None,
    task: str | None = None,
    key: str | None = None,
    numbers: Iterable[int] | None = None,
    newest_first: bool = False,
    messages: bool = True,
) -> Iterator[DeadLetter]:
    """The lane's dead letters, oldest first, those that match all of what is given.

    Those are read that are there when this begins, some at a time: what is tried again and fails
    while others are still read does not come twice.

    Args:
        messages: whether to read the messages, too, which may be far larger than all else.
    """
    store = Store(redis, Keys.of(lane))
    wanted = store.dead_numbers() if numbers is None else list(numbers)
    if newest_first:
        wanted.reverse()
    for start in range(0, len(wanted), _BATCH):
        numbers = wanted[start : start + _BATCH]
        part = store.dead_letters(numbers, messages=messages, keys=key is not None)
        for number, message, report in part:
            letter = _letter(lane.name, number, message, report)
            if (
                reason in (None, letter.reason)
                and task in (None, letter.task)
                and key in (None, letter.key)
            ):
                yield letter


def count(redis: Any, lane: Lane) -> int:
    """How many dead letters the lane has."""
    return Store(redis, Keys.of(lane)).dead_count()


def groups(letters: Iterable[DeadLetter]) -> list[Group]:
    """Letters by lane, reason, task and error, numbers in it aside; the largest group first."""
    found: dict[tuple[str, str, str | None, str], Group] = {}
    for letter in letters:
        error = letter.error.partition("\n")[0][:200]
        key = (letter.lane, letter.reason, letter.task, _NUMBER.sub("#", error))
        group = found.get(key)
        if group is None:
            at = letter.at
            found[key] = Group(*key[:3], error, 1, oldest=at, newest=at, id=letter.id)
        elif letter.at >= group.newest:
            found[key] = replace(
                group, count=group.count + 1, error=error, newest=letter.at, id=letter.id
            )
        else:
            oldest = min(group.oldest, letter.at)
            found[key] = replace(group, count=group.count + 1, oldest=oldest)
    return sorted(found.values(), key=lambda group: group.count, reverse=True)


def _letter(lane: str, number: int, message: bytes, report: dict[str, Any]) -> DeadLetter:
    headers: Any = {}
    if message and not (report.get("task") and "key" in report):
        try:
            headers = upgraded(json.loads(message))["headers"]
            named = {"task": headers.get("task"), "id": headers.get("id")}
            headers = named | {"key": key_in(headers)}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            headers = {}
    return DeadLetter(
        lane=lane,
        number=number,
        at=float(report["at"]),
        reason=report["reason"],
        error=_text(report.get("error")) or "",
        task=_text(report.get("task") or headers.get("task")),
        task_id=_text(report.get("task_id") or headers.get("id")),
        key=_text(report.get("key") or headers.get("key")),
        deliveries=int(report["deliveries"]),
        traceback=_text(report.get("traceback")),
        message=message,
    )


def _text(value: object) -> str | None:
    """`value` if it is a text, fit to be printed: a message may hold half a character."""
    if not isinstance(value, str):
        return None
    return value.encode("utf-8", "backslashreplace").decode()


def retry(
    redis: Any, lane: Lane, letters: Iterable[DeadLetter], moved: Callable[[int], None]
) -> int:
    """Put letters back in their queue; each is in one of the two places at any time.

    The message goes back byte for byte, but for one that has expired meanwhile: it gets a fresh
    expiry, or it would be set aside again at once.

    Args:
        moved: told how many went with each batch, for a progress bar.
    """
    store = Store(redis, Keys.of(lane))
    total, now = 0, store.now()
    for batch in _batches(letters):
        count = store.retry({letter.number: _renewed(letter, lane, now) for letter in batch})
        total += count
        moved(count)
    return total


def _renewed(letter: DeadLetter, lane: Lane, now: float) -> bytes:
    """The message, with a fresh expiry if it has expired; all else as it was."""
    try:
        message = upgraded(json.loads(letter.message))
        expires = instant(message["headers"]["expires"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return letter.message  # it has none, or is no task
    if expires is None or expires > now:
        return letter.message
    from .routing import stamp

    message["headers"]["expires"] = None
    message["headers"]["eta"] = None
    stamp(message["headers"], lane, now)
    return json.dumps(message).encode()


def purge(
    redis: Any, lane: Lane, letters: Iterable[DeadLetter], gone: Callable[[int], None]
) -> int:
    """Delete letters for good; returns how many."""
    store = Store(redis, Keys.of(lane))
    total = 0
    for batch in _batches(letters):
        count = store.purge_dead([letter.number for letter in batch])
        total += count
        gone(count)
    return total


def _batches(letters: Iterable[DeadLetter]) -> Iterator[list[DeadLetter]]:
    batch: list[DeadLetter] = []
    for letter in letters:
        batch.append(letter)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def age(letter: DeadLetter, now: float) -> float:
    """Seconds since it was set aside; `now` by the broker's clock."""
    return max(0.0, now - letter.at)
