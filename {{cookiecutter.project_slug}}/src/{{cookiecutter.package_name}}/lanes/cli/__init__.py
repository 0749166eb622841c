"""The project's command. Nothing imports it but __main__."""

import difflib
import functools
import io
import logging
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from .. import __version__, deploy, envfile, logs, settings, worker, workers
from .. import prove as proof
from ..errors import LanesError, UsageError
from . import advise, context, letters, operate, overview, schedule, show

_READ = f"{__name__}.read"  # names of variables that were read from .env, in the context


def command(project: deploy.Project) -> Callable[[], Any]:
    """The command of `project`, ready to be an entry point."""
    return functools.partial(_main, prog_name=project.slug, obj=project)


class _Group(click.Group):
    def main(self, *args: Any, **options: Any) -> Any:
        """Show what the locale's encoding lacks as an escape: a name is no reason for an end."""
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        return super().main(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Our errors are for people: their text on stderr, and no traceback."""
        try:
            return super().invoke(ctx)
        except LanesError as error:
            logs.say(str(error), level=logging.ERROR, file=sys.stderr)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.filename is None:
                raise
            text = f"{error.filename}: {error.strerror}"
            logs.say(text, level=logging.ERROR, file=sys.stderr)
            ctx.exit(UsageError.exit_code)


def _print_version(ctx: click.Context, _option: click.Parameter, asked: bool) -> None:
    if not asked:
        return
    parts = [f"lanes {__version__}"]
    for name, called in (("celery", "celery"), ("kombu", "kombu"), ("redis", "redis-py")):
        parts.append(f"{called} {metadata.version(name)}")
    ours = ctx.find_object(deploy.Project)
    with suppress(metadata.PackageNotFoundError):  # run from its source, not installed
        if ours:
            parts.insert(0, f"{ours.slug} {metadata.version(ours.slug)}")
    click.echo(", ".join([*parts, f"Python {platform.python_version()}"]))
    ctx.exit()


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Show the versions of the project, its lanes runtime and what they run on.",
)
@click.pass_context
def _main(ctx: click.Context) -> None:
    """Run and watch the lanes declared in lanes.toml.

    Variables that are not set are read from `.env` in the current folder.

    Exit codes: 0 good, 1 a check failed or the broker does not answer, 2 wrong usage or
    configuration.
    """
    ctx.meta[_READ] = envfile.read()
    if ctx.invoked_subcommand not in ("worker", "workers"):  # which may have to say it in JSON
        _say_what_was_read(ctx)


def _say_what_was_read(ctx: click.Context) -> None:
    if names := ctx.meta[_READ]:
        logs.say(f"read from {envfile.FILE}: {', '.join(names)}", file=sys.stderr)


@_main.command()
def lanes() -> None:
    """Show the lanes as declared."""
    declared = context.lanes()
    table = show.table(
        "lane", "queue", "pool", "workers", "tasks", "starts in", "limit", "expires", "retries"
    )
    for lane in declared:
        table.add_row(
            lane.name,
            lane.queue,
            lane.pool,
            str(lane.workers),
            str(lane.concurrency),
            show.duration(lane.latency_slo),
            show.duration(lane.time_limit),
            show.duration(lane.expires),
            str(lane.max_retries),
        )
    show.console().print(table)
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
@click.pass_context
def run_worker(ctx: click.Context, lane: str, instance: int, only_print: bool) -> None:
    """Become a worker of LANE."""
    if not only_print:
        logs.begin(settings.load_log())
    _say_what_was_read(ctx)
    declared = context.lanes().get(lane)
    if only_print:
        click.echo(" ".join(worker.command(declared, instance=instance)))
    else:
        worker.run(declared, instance=instance)


@_main.command(name="workers")
@click.pass_context
def run_workers(ctx: click.Context) -> None:
    """Run every lane, and a broker if there is none; Ctrl-C stops."""
    logs.begin(settings.load_log(), descriptor=1)
    _say_what_was_read(ctx)
    workers.run(context.lanes(), settings.load())


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
    files = deploy.render(context.lanes(), project)
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
    type=click.IntRange(1, 1_000_000),
    help="How many slow tasks make the flood: 20000, or 10000 with --keys.",
)
@click.option("--keys", is_flag=True, help="Flood a lane by one key, and measure other keys in it.")
@click.option("--burn", is_flag=True, help="Again, with slow tasks that burn CPU.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the result into this PNG file.",
)
@click.option("--json", "as_json", is_flag=True, help="For scripts: one object.")
def prove(slow: int | None, keys: bool, burn: bool, plot: Path | None, as_json: bool) -> None:
    """Flood one lane and measure another, beside one queue for all.

    Starts a broker and workers of its own and stops them again; yours are not touched. Exits 1
    when the other lane, or the other keys, were delayed.
    """
    lanes = context.lanes()
    if not keys:
        flood = slow or 20_000
        sys.exit(proof.main(lanes, flood=flood, burn=burn, plot=plot, as_json=as_json))
    if burn:
        raise UsageError("--burn floods another lane, and --keys the same one: leave one out")
    sys.exit(proof.main_keys(lanes, flood=slow or 10_000, plot=plot, as_json=as_json))


for _other in (
    *(overview.status, operate.metrics, operate.examine),
    *(operate.pause, operate.resume, operate.purge, operate.revoke),
):
    _main.add_command(_other)
_main.add_command(advise.advise)
_main.add_command(letters.dead)
_main.add_command(schedule.schedule)
