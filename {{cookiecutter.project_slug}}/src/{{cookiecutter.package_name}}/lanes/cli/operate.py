"""Look after the lanes and steer them: metrics, doctor, pause, resume, purge, revoke."""

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
@context.key_option("What has this key, and nothing else.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def purge(  # noqa: PLR0913 - its options
    *, lane: str, waiting: bool, delayed: bool, letters: bool, key: str | None, yes: bool
) -> None:
    """Delete messages of LANE for good.

    What waits and what is delayed, unless you say which. What workers hold goes on. Nobody is told:
    who waits for a result of what is deleted waits on.
    """
    chosen = {"waiting": waiting, "delayed": delayed, "dead": letters}
    if not any(chosen.values()):
        chosen |= {"waiting": True, "delayed": True}
    declared = context.lanes().get(lane)
    with operations.broker(context.app()) as redis:
        there = operations.held(redis, declared, key)
        asked = {what: there[what] for what, is_chosen in chosen.items() if is_chosen}
        of_key = "" if key is None else f" of the key {show.text(key)}"
        if not yes:
            click.confirm(f"{lane}: delete {show.listed(asked)}{of_key} for good?", abort=True)
        gone = {}
        with show.progress() as progress:
            for what, count in reversed(asked.items()):  # what falls due meanwhile waits
                advance = show.advance(progress, what, count)
                gone[what] = operations.purge(redis, declared, what, advance, key=key)
    kept = {what: count for what, count in there.items() if what not in asked}
    deleted = {what: gone[what] for what in asked}
    click.echo(f"{lane}: deleted {show.listed(deleted)}{of_key}; left {show.listed(kept)}")


@click.command()
@click.argument("lane")
@click.argument("ids", nargs=-1, metavar="[ID]...")
@context.key_option("What has this key, and waits, is delayed or runs now.")
@click.option("--terminate", is_flag=True, help="End those that run, too.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def revoke(lane: str, ids: tuple[str, ...], key: str | None, terminate: bool, yes: bool) -> None:
    """Have tasks of LANE not start any more, by their ids or by their key.

    Their results say that they were revoked. What is sent later with the key is not. Those that run
    go on, unless you say --terminate.
    """
    if bool(ids) == (key is not None):
        raise UsageError("revoke which? name ids, or --key; not both")
    app = context.app()
    declared = context.lanes().get(lane)
    with operations.broker(app) as redis:
        if key is None:
            count, which = len(ids), "named by id"
        else:
            held = operations.store_of(redis, declared).counts_of(key)
            there = {"waiting": held.waiting, "delayed": held.delayed, "running": held.leased}
            count = sum(there.values())
            which = f"of the key {show.text(key)} ({show.listed(there)})"
        if not yes:
            click.confirm(f"{lane}: revoke {show.tasks(count)} {which}?", abort=True)
        if key is None:
            app.control.revoke(list(ids), terminate=terminate)
        else:
            count = app.control.revoke_by_key(key, lane=lane, terminate=terminate)
    click.echo(f"{lane}: revoked {show.tasks(count)}")
