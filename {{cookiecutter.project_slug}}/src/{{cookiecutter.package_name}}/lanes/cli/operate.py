"""Look after the lanes and steer them: metrics, doctor, pause, resume, purge."""

import dataclasses
import importlib.util
import sys
from collections import Counter

import click
from rich.markup import escape

from .. import deploy, doctor, logs, settings
from .. import status as operations
from ..errors import UsageError
from . import context, show


@click.command()
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    envvar="METRICS_HOST",
    show_envvar=True,
    help="The address to listen at; 0.0.0.0 for all of this host, to whoever can reach it.",
)
@click.option(
    "--port",
    default=9464,
    show_default=True,
    type=click.IntRange(1, 65_535),
    envvar="METRICS_PORT",
    show_envvar=True,
    help="The port to listen at.",
)
@click.option("--once", is_flag=True, help="Print what a scrape would get, and end.")
@click.pass_obj
def metrics(project: deploy.Project, host: str, port: int, once: bool) -> None:
    """Tell Prometheus of the lanes, at /metrics.

    It keeps nothing itself: any number of them say the same.
    """
    if importlib.util.find_spec("prometheus_client") is None:
        raise UsageError(
            "metrics needs prometheus-client, which is not installed: "
            f"pip install '{project.slug}[metrics]', or -e '.[metrics]' in its folder"
        )
    from .. import metrics as exporter  # of no use to other commands

    app = context.loaded_app()
    if once:
        click.echo(exporter.once(app), nl=False)
    else:
        logs.begin(settings.load_log())
        exporter.serve(app, host=host, port=port)


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="For scripts: a list of objects.")
@click.pass_obj
def examine(project: deploy.Project, as_json: bool) -> None:
    """Check versions, the broker, lanes and this machine; say what to change.

    Changes nothing. A problem loses or delays tasks, now or with the next mishap: exits 1 when
    there is one. A note is worth knowing.
    """
    findings = list(doctor.examine(context.app(), project))
    counts = Counter(finding.level for finding in findings)
    if as_json:
        show.print_json(map(dataclasses.asdict, findings))
    else:
        for finding in findings:
            _print_finding(finding)
        click.echo(f"problems: {counts['problem']}, notes: {counts['note']}")
    sys.exit(1 if counts["problem"] else 0)


def _print_finding(finding: doctor.Finding) -> None:
    colour = {"ok": "green", "note": "yellow", "problem": "red"}[finding.level]
    line = f"[{colour}]{finding.level:9}[/]{finding.area:10}{escape(finding.what)}"
    do = f"\n{'':19}-> {escape(finding.do)}" if finding.do else ""
    show.console().print(line + do, soft_wrap=True, highlight=False)


@click.command()
@click.argument("lane")
def pause(lane: str) -> None:
    """Have LANE fetch nothing more, until resume.

    Restarts do not change it.
    """
    operations.pause(context.app(), context.lanes().get(lane), paused=True)
    click.echo(f"{lane} is paused; what runs goes on, what comes waits")


@click.command()
@click.argument("lane")
def resume(lane: str) -> None:
    """Have a paused LANE go on."""
    operations.pause(context.app(), context.lanes().get(lane), paused=False)
    click.echo(f"{lane} goes on")


@click.command()
@click.argument("lane")
@click.option("--waiting", is_flag=True, help="What may be fetched.")
@click.option("--delayed", is_flag=True, help="What waits for its time, retries included.")
@click.option("--dead", "letters", is_flag=True, help="Its dead letters.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(lane: str, waiting: bool, delayed: bool, letters: bool, yes: bool) -> None:
    """Delete messages of LANE for good.

    What waits and what is delayed, unless you say which. What workers hold goes on. Nobody is told:
    who waits for a result of what is deleted waits on.
    """
    chosen = {"waiting": waiting, "delayed": delayed, "dead": letters}
    if not any(chosen.values()):
        chosen |= {"waiting": True, "delayed": True}
    declared = context.lanes().get(lane)
    with operations.broker(context.app()) as redis:
        counts = operations.store_of(redis, declared).counts()
        there = {"waiting": counts.waiting, "delayed": counts.delayed, "dead": counts.dead}
        asked = {what: there[what] for what, is_chosen in chosen.items() if is_chosen}
        if not yes:
            click.confirm(f"{lane}: delete {show.listed(asked)} for good?", abort=True)
        with show.progress() as progress:
            gone = {
                what: operations.purge(redis, declared, what, show.advance(progress, what, count))
                for what, count in reversed(asked.items())  # what falls due meanwhile waits
            }
    kept = {what: count for what, count in there.items() if what not in asked}
    kept["running"] = counts.leased
    deleted = {what: gone[what] for what in asked}
    click.echo(f"{lane}: deleted {show.listed(deleted)}; left {show.listed(kept)}")
