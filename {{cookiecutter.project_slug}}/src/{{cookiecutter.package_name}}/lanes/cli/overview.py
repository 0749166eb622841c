"""How the lanes are, in tables, or anew every two seconds, or for scripts."""

import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.markup import escape

from .. import status as operations
from ..config import Lane
from ..errors import BrokerError, UsageError
from ..redis.store import KeyState
from ..status import LaneStatus, Recent
from . import context, show

_REFRESH = 2.0  # seconds


@click.command()
@click.argument("lane", required=False)
@click.option("--keys", is_flag=True, help="Of LANE, the ten keys of which most messages wait.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: a list of objects.")
@click.option("--watch", is_flag=True, help="Show it anew every 2 s, until Ctrl-C.")
@click.option("--fail", is_flag=True, help="Say on stderr what is wrong, and exit 1 for it.")
def status(lane: str | None, keys: bool, as_json: bool, watch: bool, fail: bool) -> None:
    """Show what waits and runs in each lane, and which tasks start in time.

    With LANE, of that alone, and of each of its tasks in the last hour. With --keys, what waits and
    runs of its keys, too, and which limit holds each back.

    With --fail, it exits 1 when a lane's oldest task has waited for longer than latency_slo, or
    tasks wait and no worker is there, unless the lane is paused; when more tasks were late in 30
    days than slo_target allows; or when there is no room for dead letters.
    """
    app = context.app()
    only = app.lanes.get(lane) if lane else None
    if keys and only is None:
        raise UsageError("--keys shows those of one lane; name it: status LANE --keys")
    if watch:
        if as_json or fail:
            raise UsageError("--watch is for people; leave out --json and --fail, or --watch")
        _watch(app, only, keys=keys)
        return
    seen = _read(app, only, keys=keys)
    states = seen.states
    if as_json:
        show.print_json(_object(state, seen) for state in states)
    else:
        for part in _parts(seen):
            show.console().print(part)
        for state in states:
            if state.dead_full:
                click.echo(operations.no_room(state.lane))
    wrong = [line for state in states for line in operations.failures(state)]
    if fail and wrong:
        click.echo("\n".join(wrong), err=True)
        sys.exit(1)


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
    """What is shown."""

    states: list[LaneStatus]
    tasks: Mapping[str, Recent] | None = None  # of one lane
    keys: list[KeyState] | None = None  # of one lane, where they were asked for


def _read(app: Any, only: Lane | None, *, keys: bool) -> _Seen:
    states = operations.read(app, only)
    if only is None:
        return _Seen(states)
    tasks = operations.tasks_of(app, only)
    return _Seen(states, tasks, operations.longest_keys(app, only) if keys else None)


def _object(state: LaneStatus, seen: _Seen) -> dict[str, Any]:
    found = dataclasses.asdict(state)
    if seen.tasks is not None:
        found["tasks"] = {name: dataclasses.asdict(recent) for name, recent in seen.tasks.items()}
    if seen.keys is not None:
        found["longest_keys"] = [dataclasses.asdict(each) for each in seen.keys]
    return found


def _watch(app: Any, only: Lane | None, *, keys: bool) -> None:
    console = show.console()
    if not console.is_terminal:
        raise UsageError("--watch needs a terminal; without one, run status again, or ask metrics")
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(_screen(app, only, keys=keys), refresh=True)
                time.sleep(_REFRESH)
    except KeyboardInterrupt:
        return


def _screen(app: Any, only: Lane | None, *, keys: bool) -> RenderableType:
    try:
        return Group(*_parts(_read(app, only, keys=keys)))
    except BrokerError as error:  # it may come back
        return escape(str(error))


def _parts(seen: _Seen) -> Iterator[RenderableType]:
    states = seen.states
    yield _now(states)
    if any(state.last_30d.done or state.last_30d.in_time is not None for state in states):
        yield _lately(states)
    if seen.tasks:
        yield _of_tasks(seen.tasks, target=states[0].slo_target)
    if seen.keys is not None:
        yield _of_keys(seen.keys, states[0])


def _now(states: list[LaneStatus]) -> RenderableType:
    table = show.table(
        "lane", "waiting", "oldest", "delayed", "running", "workers", "dead", "starts in time"
    )
    for state in states:
        kept = "[green]yes[/]" if state.slo_kept else "[red]no[/]"
        if state.paused:
            kept = "[yellow]paused[/]"
        table.add_row(
            state.lane,
            f"{state.waiting:,}",
            show.duration(state.oldest),
            f"{state.delayed:,}",
            str(state.running),
            str(state.workers) if state.workers else "[red]0[/]",
            _dead(state),
            f"{kept}, within {show.duration(state.latency_slo)}",
        )
    return table


def _dead(state: LaneStatus) -> str:
    shown = f"{state.dead:,}, full" if state.dead_full else f"{state.dead:,}"
    return f"[red]{shown}[/]" if state.dead else shown


def _lately(states: list[LaneStatus]) -> RenderableType:
    """How many started in time; of the last five minutes, how many ended, and how long they waited.

    The last column is how many workers the lane wants.
    """
    table = show.table(
        *("lane", "in time, 5 min", "1 h", "30 d", "target", "budget"),
        *("done/s", "wait p50", "p99", "wants"),
    )
    for state in states:
        target, left, recent = state.slo_target, state.budget_left, state.last_5m
        table.add_row(
            state.lane,
            *(_share(each.in_time, target) for each in (recent, state.last_1h, state.last_30d)),
            _percent(target),
            _budget(left),
            f"{recent.per_second:.3g}",
            show.duration(recent.wait_p50),
            show.duration(recent.wait_p99),
            "-" if state.wanted_workers is None else str(state.wanted_workers),
        )
    return table


def _budget(left: float | None) -> str:
    """What is left of it, or how often it was spent."""
    if left is None:
        return "-"
    return _percent(left) if left > 0 else f"[red]spent {1 - left:.3g} x[/]"


def _of_tasks(tasks: Mapping[str, Recent], *, target: float) -> RenderableType:
    table = show.table(
        *("task, last hour", "done", "not well", "in time", "wait p50", "p99", "run p50", "p99"),
    )
    for name, recent in tasks.items():
        not_well = recent.done - recent.outcomes.get("succeeded", 0)
        table.add_row(
            escape(name),
            f"{recent.done:,}",
            f"[red]{not_well:,}[/]" if not_well else "0",
            _share(recent.in_time, target),
            *map(show.duration, (recent.wait_p50, recent.wait_p99)),
            *map(show.duration, (recent.run_p50, recent.run_p99)),
        )
    return table


def _of_keys(keys: list[KeyState], state: LaneStatus) -> RenderableType:
    if not keys:
        return f"{state.lane}: no key has messages waiting"
    table = show.table("key", "waiting", "running", "held by")
    for each in keys:
        held = f"[yellow]{each.held_by}[/]" if each.held_by else "-"
        table.add_row(escape(show.text(each.key)), f"{each.waiting:,}", f"{each.running:,}", held)
    more = state.keys - len(keys)
    if more <= 0:
        return table
    return Group(table, f"{len(keys)} of {state.keys:,} keys, those of which most wait")


def _share(share: float | None, target: float) -> str:
    if share is None:
        return "-"
    return f"[red]{_percent(share)}[/]" if share < target else f"[green]{_percent(share)}[/]"


def _percent(share: float) -> str:
    """Rounded down, so that 100 % is all."""
    return f"{math.floor(share * 1e4 + 1e-6) / 100:g} %"
