"""Dead letters: list, show, retry, purge."""

import dataclasses
import heapq
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import click
from rich.markup import escape

from .. import deadletters
from .. import status as operations
from ..config import Lane
from ..errors import NotFoundError, UsageError
from . import context, show

_LIMIT = 50  # that `dead list` shows


@click.group()
def dead() -> None:
    """Look at dead letters: list, show, retry, purge."""


def _chosen(function: Callable[..., None]) -> Callable[..., None]:
    """The ways to say which dead letters are meant."""
    for option in (
        click.option("--lane", help="Of this lane only."),
        click.option("--reason", type=click.Choice(deadletters.REASONS), help="For this reason."),
        click.option("--task", help="Of this task."),
        context.key_option("Of messages with this key."),
        click.argument("ids", nargs=-1, metavar="[LANE/NUMBER]..."),
    ):
        function = option(function)
    return function


class _Choice:
    """Which dead letters a command was told to take."""

    def __init__(
        self,
        ids: tuple[str, ...],
        lane: str | None = None,
        reason: str | None = None,
        task: str | None = None,
        key: str | None = None,
    ) -> None:
        self.lane, self.reason, self.task, self.key = lane, reason, task, key
        declared = context.lanes()
        self.numbers: dict[str, list[int]] | None = None
        if ids:
            self.numbers = {}
            for id_ in ids:
                name, slash, number = id_.partition("/")
                if not slash or not number.isdecimal():
                    raise UsageError(f"{id_!r} is no dead letter (expected one such as quick/12)")
                self.numbers.setdefault(declared.get(name).name, []).append(int(number))
        names = list(self.numbers) if self.numbers else declared.by_name
        self.lanes = [declared.get(name) for name in ([lane] if lane else names)]

    @property
    def is_all(self) -> bool:
        """Whether nothing was said that would narrow it down."""
        return not (self.numbers or self.lane or self.is_filtered)

    @property
    def is_filtered(self) -> bool:
        """Whether a letter must be read to know if it is meant."""
        return bool(self.reason or self.task or self.key)

    def check_found(self, found: set[tuple[str, int]]) -> None:
        """Raise NotFoundError for ids that were named and are not among these, lane and number."""
        missing = [
            f"{lane}/{number}"
            for lane, numbers in (self.numbers or {}).items()
            for number in numbers
            if (lane, number) not in found
        ]
        if missing:
            raise NotFoundError(f"no such dead letter: {', '.join(missing)}")

    def letters(
        self, redis: Any, lane: Lane, found: set[tuple[str, int]] | None = None, **how: Any
    ) -> Iterator[deadletters.DeadLetter]:
        """Those of a lane that are meant; of those that were named, `found` is told."""
        numbers = self.numbers.get(lane.name, []) if self.numbers is not None else None
        choice: Any = {"reason": self.reason, "task": self.task, "key": self.key}
        choice["numbers"] = numbers
        for letter in deadletters.read(redis, lane, **choice, **how):
            if found is not None and numbers is not None:
                found.add((letter.lane, letter.number))
            yield letter

    def newest_first(self, redis: Any, **how: Any) -> Iterator[deadletters.DeadLetter]:
        """Those of all lanes, by time; those that were named, as they were."""
        if self.numbers is not None:
            return itertools.chain(*(self.letters(redis, lane, **how) for lane in self.lanes))
        by_lane = (self.letters(redis, lane, newest_first=True, **how) for lane in self.lanes)
        return heapq.merge(*by_lane, key=lambda letter: letter.at, reverse=True)


@dead.command(name="list")
@_chosen
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help=f"Show so many; {_LIMIT} unless you name ids, and all with --json.",
)
@click.option("--group", is_flag=True, help="Count them by task and error.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: a list of objects.")
def list_dead(limit: int | None, group: bool, as_json: bool, **chosen: Any) -> None:
    """List dead letters, newest first."""
    choice = _Choice(**chosen)
    if limit is None and not as_json and choice.numbers is None:
        limit = _LIMIT
    with operations.broker(context.app()) as redis:
        now = operations.store_of(redis, context.lanes().default).now()
        if group:
            found = deadletters.groups(choice.newest_first(redis, messages=False))
            shown, total = found[:limit], len(found)
            if as_json:
                show.print_json(map(_group_object, shown))
                return
            _print_groups(shown, now)
        else:
            letters = choice.newest_first(redis, messages=as_json)
            if as_json:
                show.print_json(map(_letter_object, itertools.islice(letters, limit)))
                return
            total = _print_letters(itertools.islice(letters, limit), now)
            if choice.is_filtered:
                total += sum(1 for _ in letters)
            elif choice.numbers is None:
                total = sum(deadletters.count(redis, lane) for lane in choice.lanes)
    if limit is not None and total > limit:
        what = "groups, the largest" if group else "dead letters, the newest"
        count = "" if group else ", --group counts them by task and error"
        click.echo(f"{limit:,} of {total:,} {what} first; --limit shows more{count}")


def _print_letters(letters: Iterator[deadletters.DeadLetter], now: float) -> int:
    """In tables of a thousand, since a table is laid out when it is whole; returns how many."""
    shown = 0
    while part := list(itertools.islice(letters, 1000)):
        shown += len(part)
        table = show.table("id", "age", "reason", "task", "deliveries", "error")
        for letter in part:
            age, task = show.duration(deadletters.age(letter, now)), escape(letter.task or "-")
            error = escape(letter.error.partition("\n")[0][:100])
            table.add_row(letter.id, age, letter.reason, task, str(letter.deliveries), error)
        show.console().print(table)
    if not shown:
        click.echo("no dead letters")
    return shown


def _print_groups(groups: list[deadletters.Group], now: float) -> None:
    table = show.table(
        "count", "lane", "reason", "task", "newest", "oldest", "newest's id", "error"
    )
    for group in groups:
        table.add_row(
            f"{group.count:,}",
            group.lane,
            group.reason,
            escape(group.task or "-"),
            show.duration(max(0.0, now - group.newest)),
            show.duration(max(0.0, now - group.oldest)),
            group.id,
            escape(group.error[:100]),
        )
    show.console().print(table)


@dead.command(name="show")
@click.argument("ids", nargs=-1, required=True, metavar="LANE/NUMBER...")
@click.option("--json", "as_json", is_flag=True, help="For scripts: a list of objects.")
def show_dead(ids: tuple[str, ...], as_json: bool) -> None:
    """Show all that is known of dead letters, their messages included."""
    choice = _Choice(ids)
    found: set[tuple[str, int]] = set()
    with operations.broker(context.app()) as redis:
        letters = (letter for lane in choice.lanes for letter in choice.letters(redis, lane, found))
        if as_json:
            show.print_json(map(_letter_object, letters))
        else:
            for letter in letters:
                for key, value in _letter_object(letter).items():
                    click.echo(f"{key}: {value}")
                click.echo()
    choice.check_found(found)


def _moving(function: Callable[..., None]) -> Callable[..., None]:
    """What is common to what moves dead letters."""
    for option in (
        click.option("--all", "everything", is_flag=True, help="All of them."),
        click.option("--dry-run", is_flag=True, help="Count them, and do nothing."),
    ):
        function = option(function)
    return _chosen(function)


@dead.command(name="retry")
@_moving
def retry_dead(**options: Any) -> None:
    """Put dead letters back in their queues."""
    _move("retry", deadletters.retry, "back in their queues", **options)


@dead.command(name="purge")
@_moving
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge_dead(yes: bool, **options: Any) -> None:
    """Delete dead letters for good."""
    ask = None if yes else "Delete these dead letters for good?"
    _move("purge", deadletters.purge, "deleted", ask=ask, **options)


def _move(  # noqa: PLR0913 - two commands in one
    verb: str,
    act: Callable[..., int],
    done: str,
    *,
    everything: bool,
    dry_run: bool,
    ask: str | None = None,
    **chosen: Any,
) -> None:
    choice = _Choice(**chosen)
    if choice.is_all and not everything:
        raise UsageError(f"{verb} which? name ids, or --lane, --reason, --task, --key, or --all")
    if ask and not dry_run:
        click.confirm(ask, abort=True)
    total = 0
    found: set[tuple[str, int]] = set()
    with operations.broker(context.app()) as redis, show.progress() as progress:
        if dry_run:
            now = operations.store_of(redis, context.lanes().default).now()
            groups = deadletters.groups(
                letter
                for lane in choice.lanes
                for letter in choice.letters(redis, lane, found, messages=False)
            )
            _print_groups(groups, now)
            total = sum(group.count for group in groups)
            done = "would be " + done
        else:
            for lane in choice.lanes:
                letters = choice.letters(redis, lane, found, messages=verb == "retry")
                known = not choice.is_filtered and choice.numbers is None
                count = deadletters.count(redis, lane) if known else None
                total += act(redis, lane, letters, show.advance(progress, lane.name, count))
    click.echo(f"{total} {'message' if total == 1 else 'messages'} {done}")
    choice.check_found(found)


def _group_object(group: deadletters.Group) -> dict[str, Any]:
    times = {"oldest": show.iso(group.oldest), "newest": show.iso(group.newest)}
    return dataclasses.asdict(group) | times


def _letter_object(letter: deadletters.DeadLetter) -> dict[str, Any]:
    known = dataclasses.asdict(letter)
    # JSON has no bytes; this way none is lost, and text stays readable.
    message = letter.message.decode("utf-8", "surrogateescape")
    return (
        {"id": letter.id}
        | known
        | {
            "at": show.iso(letter.at),
            "message": message.encode("utf-8", "backslashreplace").decode(),
        }
    )
