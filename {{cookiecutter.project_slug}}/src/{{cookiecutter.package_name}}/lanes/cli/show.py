"""What the commands print: tables, progress, JSON."""

import functools
import json
import textwrap
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from ..values import spoken


def table(*columns: str) -> Table:
    """A table without lines around it."""
    # An id or a task's name that is cut off is of no use, and the dots that say so are no ASCII.
    headed = (Column(column, overflow="fold") for column in columns)
    return Table(*headed, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def console() -> Console:
    """Where tables go: a terminal, or a pipe."""
    console = Console()
    # In a pipe there is no edge to wrap at.
    return console if console.is_terminal else Console(width=200)


def duration(seconds: float | None) -> str:
    """As `values.spoken`; "-" for None."""
    return "-" if seconds is None else spoken(seconds)


def listed(counts: dict[str, int]) -> str:
    """Such as "3 waiting, 1 delayed"."""
    return ", ".join(f"{count:,} {what}" for what, count in counts.items())


def tasks(count: int) -> str:
    """Such as "1 task", "2,000 tasks"."""
    return f"{count:,} {'task' if count == 1 else 'tasks'}"


def text(given: str) -> str:
    """What somebody sent, with an escape for what would not be seen, or would move the cursor."""
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in given
    )


def iso(at: float) -> str:
    """Seconds since 1970 as an ISO 8601 time, in UTC."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def print_json(objects: Iterable[dict[str, Any]]) -> None:
    """As json.dumps(list(objects), indent=2), one at a time."""
    before = "[\n"
    for each in objects:
        click.echo(before + textwrap.indent(json.dumps(each, indent=2), "  "), nl=False)
        before = ",\n"
    click.echo("[]" if before == "[\n" else "\n]")


def progress() -> Progress:
    """Bars on a terminal, on stderr; nothing in a pipe."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)


def advance(progress: Progress, what: str, total: int | None) -> Callable[[int], None]:
    """Called with how many more are done; `total` is None where nobody knows."""
    return functools.partial(progress.advance, progress.add_task(what, total=total))
