"""The schedule: what is next, what became of the last run; run, pause and resume an entry."""

import dataclasses

import click
from rich.markup import escape

from .. import planned
from . import context, show


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="For scripts: a list of objects.")
@click.pass_context
def schedule(ctx: click.Context, as_json: bool) -> None:
    """Show the schedule: of each entry, its last run and its next."""
    if ctx.invoked_subcommand is not None:
        return
    found = planned.read(context.loaded_app())
    if as_json:
        show.print_json(map(dataclasses.asdict, found.entries))
        return
    if not found.entries:
        click.echo("lanes.toml has no [schedule.NAME], and beat_schedule is empty")
        return
    table = show.table("entry", "when", "next", "last", "result", "sent late", "missed")
    for each in found.entries:
        table.add_row(
            escape(each.name),
            escape(each.when),
            _next(each),
            show.iso(each.last) if each.last is not None else "-",
            (each.state or "-").lower(),
            f"{show.duration(each.late_by)}; {each.late:,} in all",
            f"{each.missed:,}",
        )
    show.console().print(table)
    if not found.keepers:
        click.echo("No worker keeps it: nothing is sent until one is there.")
    elif not found.ours:
        click.echo(f"{found.keepers:,} workers keep another one than this release has.")


def _next(each: planned.EntryStatus) -> str:
    if each.paused:
        return "[yellow]paused[/]"
    if each.next is None:
        return "never"
    if each.overdue > 1:
        return f"[red]{show.iso(each.next)}, {show.duration(each.overdue)} late[/]"
    return show.iso(each.next)


@schedule.command()
@click.argument("name")
def run(name: str) -> None:
    """Send the task of the entry NAME now; what is due is not changed by it."""
    click.echo(f"{name}: sent {planned.run(context.loaded_app(), name)}")


@schedule.command()
@click.argument("name")
def pause(name: str) -> None:
    """Have the entry NAME send nothing, until resume.

    What is due meanwhile is passed over. Restarts do not change it.
    """
    planned.pause(context.loaded_app(), name, paused=True)
    click.echo(f"{name} is paused; what is due meanwhile is passed over")


@schedule.command()
@click.argument("name")
def resume(name: str) -> None:
    """Have a paused entry NAME go on."""
    planned.pause(context.loaded_app(), name, paused=False)
    click.echo(f"{name} goes on")
