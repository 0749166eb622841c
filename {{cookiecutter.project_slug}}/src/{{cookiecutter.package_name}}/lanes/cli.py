"""The project's command. Nothing imports it but __main__."""

import dataclasses
import difflib
import functools
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from . import config, deadletters, deploy, settings, worker, workers
from . import prove as proof
from . import status as operations
from .config import Lane, Lanes
from .errors import LanesError, NotFoundError, UsageError


def command(project: deploy.Project) -> Callable[[], Any]:
    """The command of `project`, ready to be an entry point."""
    return functools.partial(_main, prog_name=project.slug, obj=project)


class _Group(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        """Our errors are for people: their text on stderr, and no traceback."""
        try:
            return super().invoke(ctx)
        except LanesError as error:
            click.echo(str(error), err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.filename is None:
                raise
            click.echo(f"{error.filename}: {error.strerror}", err=True)
            ctx.exit(UsageError.exit_code)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
def _main() -> None:
    """Run and watch the lanes declared in lanes.toml.

    Exit codes: 0 good, 1 a check failed or the broker does not answer, 2 wrong usage or
    configuration.
    """


@_main.command()
def lanes() -> None:
    """Show the lanes as declared."""
    declared = _lanes()
    table = _table(
        "lane", "queue", "pool", "workers", "tasks", "starts in", "limit", "expires", "retries"
    )
    for lane in declared:
        table.add_row(
            lane.name,
            lane.queue,
            lane.pool,
            str(lane.workers),
            str(lane.concurrency),
            _duration(lane.latency_slo),
            _duration(lane.time_limit),
            _duration(lane.expires),
            str(lane.max_retries),
        )
    _console().print(table)
    for pattern, lane in declared.routes:
        click.echo(f"{pattern} goes to {lane.name}")
    click.echo(f"A task that names no lane goes to {declared.default.name}.")


@_main.command(name="worker")
@click.argument("lane")
@click.option(
    "--instance",
    default=1,
    show_default=True,
    type=click.IntRange(1, 100),
    help="Which of the lane's workers on this host.",
)
@click.option("--print", "only_print", is_flag=True, help="Show the command line, run nothing.")
def run_worker(lane: str, instance: int, only_print: bool) -> None:
    """Become a worker of LANE."""
    declared = _lanes().get(lane)
    if only_print:
        click.echo(" ".join(worker.command(declared, instance=instance)))
    else:
        worker.run(declared, instance=instance)


@_main.command(name="workers")
def run_workers() -> None:
    """Run every lane, and a broker if there is none; Ctrl-C stops."""
    workers.run(_lanes(), settings.load())


@_main.command()
@click.option("--json", "as_json", is_flag=True, help="For scripts: a list of objects.")
def status(as_json: bool) -> None:
    """Show what waits and runs in each lane."""
    states = operations.read(_app())
    if as_json:
        click.echo(json.dumps([dataclasses.asdict(state) for state in states], indent=2))
        return
    table = _table(
        "lane", "waiting", "oldest", "delayed", "running", "workers", "dead", "starts in time"
    )
    for state in states:
        kept = "[green]yes[/]" if state.slo_kept else "[red]no[/]"
        if state.paused:
            kept = "[yellow]paused[/]"
        table.add_row(
            state.lane,
            f"{state.waiting:,}",
            _duration(state.oldest),
            f"{state.delayed:,}",
            str(state.running),
            str(state.workers) if state.workers else "[red]0[/]",
            f"[red]{state.dead:,}[/]" if state.dead else "0",
            f"{kept}, within {_duration(state.latency_slo)}",
        )
    _console().print(table)


@_main.command()
@click.argument("lane")
def pause(lane: str) -> None:
    """Have LANE fetch nothing more until it is resumed; restarts do not change it."""
    operations.pause(_app(), _lanes().get(lane), paused=True)
    click.echo(f"{lane} is paused; what runs goes on, what comes waits")


@_main.command()
@click.argument("lane")
def resume(lane: str) -> None:
    """Have a paused LANE go on."""
    operations.pause(_app(), _lanes().get(lane), paused=False)
    click.echo(f"{lane} goes on")


@_main.group()
def dead() -> None:
    """Look at dead letters: list, show, retry, purge."""


def _chosen(function: Callable[..., None]) -> Callable[..., None]:
    """The ways to say which dead letters are meant."""
    for option in (
        click.option("--lane", help="Of this lane only."),
        click.option("--reason", type=click.Choice(deadletters.REASONS), help="For this reason."),
        click.option("--task", help="Of this task."),
        click.argument("ids", nargs=-1, metavar="[LANE/NUMBER]..."),
    ):
        function = option(function)
    return function


class _Choice:
    """Which dead letters a command was told to take."""

    def __init__(
        self, ids: tuple[str, ...], lane: str | None, reason: str | None, task: str | None
    ) -> None:
        self.lane, self.reason, self.task = lane, reason, task
        declared = _lanes()
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
        return not (self.numbers or self.lane or self.reason or self.task)

    def check_found(self, letters: list[deadletters.DeadLetter]) -> None:
        """Raise NotFoundError for ids that were named and are none of `letters`."""
        found = {(letter.lane, letter.number) for letter in letters}
        missing = [
            f"{lane}/{number}"
            for lane, numbers in (self.numbers or {}).items()
            for number in numbers
            if (lane, number) not in found
        ]
        if missing:
            raise NotFoundError(f"no such dead letter: {', '.join(missing)}")

    def letters(self, redis: Any, lane: Lane) -> Iterator[deadletters.DeadLetter]:
        numbers = self.numbers.get(lane.name, []) if self.numbers is not None else None
        return deadletters.read(redis, lane, reason=self.reason, task=self.task, numbers=numbers)


@dead.command(name="list")
@_chosen
@click.option("--json", "as_json", is_flag=True, help="For scripts: a list of objects.")
def list_dead(as_json: bool, **chosen: Any) -> None:
    """List dead letters, oldest first."""
    choice = _Choice(**chosen)
    with operations.broker(_app()) as redis:
        letters = [letter for lane in choice.lanes for letter in choice.letters(redis, lane)]
        now = operations.store_of(redis, _lanes().default).now()
    if as_json:
        click.echo(json.dumps([_letter_object(letter) for letter in letters], indent=2))
        return
    table = _table("id", "age", "reason", "task", "deliveries", "error")
    for letter in letters:
        age = _duration(deadletters.age(letter, now))
        error = escape(letter.error.partition("\n")[0][:100])
        cells = (letter.id, age, letter.reason, escape(letter.task or "-"), str(letter.deliveries))
        table.add_row(*cells, error)
    _console().print(table)


@dead.command(name="show")
@click.argument("ids", nargs=-1, required=True, metavar="LANE/NUMBER...")
@click.option("--json", "as_json", is_flag=True, help="For scripts: a list of objects.")
def show_dead(ids: tuple[str, ...], as_json: bool) -> None:
    """Show all that is known of dead letters, their messages included."""
    choice = _Choice(ids, None, None, None)
    with operations.broker(_app()) as redis:
        letters = [letter for lane in choice.lanes for letter in choice.letters(redis, lane)]
    if as_json:
        click.echo(json.dumps([_letter_object(letter) for letter in letters], indent=2))
    else:
        for letter in letters:
            for key, value in _letter_object(letter).items():
                click.echo(f"{key}: {value}")
            click.echo()
    choice.check_found(letters)


@dead.command(name="retry")
@_chosen
@click.option("--all", "everything", is_flag=True, help="All of them.")
def retry_dead(everything: bool, **chosen: Any) -> None:
    """Put dead letters back in their queues."""
    _move(chosen, everything, "retry", deadletters.retry, "back in their queues")


@dead.command(name="purge")
@_chosen
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge_dead(everything: bool, yes: bool, **chosen: Any) -> None:
    """Delete dead letters for good."""
    ask = None if yes else "Delete these dead letters for good?"
    _move(chosen, everything, "purge", deadletters.purge, "deleted", ask=ask)


def _move(  # noqa: PLR0913 - two commands in one
    chosen: dict[str, Any],
    everything: bool,
    verb: str,
    act: Callable[..., int],
    done: str,
    *,
    ask: str | None = None,
) -> None:
    choice = _Choice(**chosen)
    if choice.is_all and not everything:
        raise UsageError(f"{verb} which? name ids, or --lane, --reason, --task, or --all")
    if ask:
        click.confirm(ask, abort=True)
    total = 0
    chosen_letters: list[deadletters.DeadLetter] = []
    console = Console(stderr=True)
    with (
        operations.broker(_app()) as redis,
        Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
    ):
        for lane in choice.lanes:
            letters = list(choice.letters(redis, lane))
            chosen_letters += letters
            bar = progress.add_task(lane.name, total=len(letters))
            total += act(redis, lane, letters, functools.partial(progress.advance, bar))
    click.echo(f"{total} {'message' if total == 1 else 'messages'} {done}")
    choice.check_found(chosen_letters)


def _letter_object(letter: deadletters.DeadLetter) -> dict[str, Any]:
    known = dataclasses.asdict(letter)
    at = datetime.fromtimestamp(letter.at, UTC).isoformat(timespec="seconds")
    # JSON has no bytes; this way none is lost, and text stays readable.
    message = letter.message.decode("utf-8", "surrogateescape")
    return (
        {"id": letter.id}
        | known
        | {"at": at, "message": message.encode("utf-8", "backslashreplace").decode()}
    )


@_main.command()
@click.option("--check", is_flag=True, help="Write nothing; exit 1 with a diff when stale.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="deploy",
    show_default=True,
    help="The folder to write to.",
)
@click.pass_obj
def units(project: deploy.Project, check: bool, out: Path) -> None:
    """Write deploy/ anew from lanes.toml."""
    files = deploy.render(_lanes(), project)
    if not check:
        for path in deploy.write(files, out):
            click.echo(f"{'wrote' if path.exists() else 'removed'} {path}")
        return
    stale = deploy.stale(files, out)
    for path, old, new in stale:
        diff = difflib.unified_diff(
            (old or "").splitlines(keepends=True),
            (new or "").splitlines(keepends=True),
            f"{path} as it is",
            f"{path} as lanes.toml says",
        )
        click.echo("".join(diff), nl=False)
    if stale:
        click.echo(f"{out} is out of date: run `{project.slug} units`", err=True)
        sys.exit(1)


@_main.command()
@click.option(
    "--slow",
    default=20_000,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="How many slow tasks make the flood.",
)
@click.option("--burn", is_flag=True, help="Again, with slow tasks that burn CPU.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the result into this PNG file.",
)
@click.option("--json", "as_json", is_flag=True, help="For scripts: one object.")
def prove(slow: int, burn: bool, plot: Path | None, as_json: bool) -> None:
    """Flood one lane and measure another, beside one queue for all.

    Starts a broker and workers of its own and stops them again; yours are not touched. Exits 1
    when the other lane was delayed.
    """
    sys.exit(proof.main(_lanes(), flood=slow, burn=burn, plot=plot, as_json=as_json))


def _app() -> Any:
    return importlib.import_module(f"{worker.PACKAGE}.celery").app


def _lanes() -> Lanes:
    return config.load(settings.load().lanes_file)


def _table(*columns: str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _console() -> Console:
    console = Console()
    # In a pipe there is no edge to wrap at.
    return console if console.is_terminal else Console(width=200)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for size, unit in ((3600, "h"), (60, "min"), (1, "s")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1000:.0f} ms"
