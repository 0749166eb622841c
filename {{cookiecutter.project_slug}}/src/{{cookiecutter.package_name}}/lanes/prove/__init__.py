"""The proof on the reader's machine: a flood in one lane does not delay another.

And within a lane, a flood of one key does not delay the others.
"""

import importlib
import json
import signal
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich import box
from rich.console import Console
from rich.table import Table

from ..config import Lanes
from ..errors import UsageError
from ..values import spoken
from ..worker import PACKAGE
from .experiment import CUT_OFF, InTime, Outcome, Pair, Step, run
from .keys import run_keys
from .report import finite, keys_as_object, show_keys, shown, summary

_T = TypeVar("_T")
#: Times as many late tasks as the objective allows, at which an alert calls somebody out of bed.
PAGES = 14.4


def main(lanes: Lanes, *, flood: int, burn: bool, plot: Path | None, as_json: bool) -> int:
    """Flood one lane and measure another; returns the exit code, 1 when that was delayed."""
    _check(plot)
    outcome = _measure(lambda app, step: run(lanes, app, flood=flood, burn=burn, step=step))
    if plot is not None:
        from . import plot as drawing

        drawing.draw(outcome, plot)
    if as_json:
        click.echo(json.dumps(as_object(outcome), indent=2))
    else:
        _print(outcome, plot)
    return 0 if all(outcome.kept(pair) for pair in outcome.pairs) else 1


def main_keys(lanes: Lanes, *, flood: int, plot: Path | None, as_json: bool) -> int:
    """Flood a lane by one key and measure others; returns 1 when these were delayed, or else 0."""
    _check(plot)
    outcome = _measure(lambda app, step: run_keys(lanes, app, flood=flood, step=step))
    if plot is not None:
        from . import plot as drawing

        drawing.draw_keys(outcome, plot)
    if as_json:
        click.echo(json.dumps(keys_as_object(outcome), indent=2))
    else:
        show_keys(outcome, Console())
        _say_where(plot)
    return 0 if outcome.kept else 1


def _check(plot: Path | None) -> None:
    """See that it can be drawn, before all is measured."""
    if plot is not None:
        _require_matplotlib()
        plot.touch()


def _measure(experiment: Callable[[Any, Step], _T]) -> _T:
    """What an experiment with the project's app finds; shows how far it is."""
    for ending in (signal.SIGTERM, signal.SIGHUP):
        # An exit stops the workers; without it they would go on without their broker, for ever.
        signal.signal(ending, lambda number, _: sys.exit(128 + number))
    app = importlib.import_module(f"{PACKAGE}.celery").app
    progress = Console(stderr=True)
    if not progress.is_terminal:
        return experiment(app, lambda _: None)
    moving = "dots" if progress.encoding.startswith("utf") else "line"
    with progress.status("starting", spinner=moving) as spinner:
        return experiment(app, spinner.update)


def as_object(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON values; times in seconds, null for a task that was not answered."""
    return {
        "flood_lane": outcome.flood_lane.name,
        "measured_lane": outcome.probe_lane.name,
        "flood": outcome.flood,
        "enqueue_seconds": outcome.enqueue_time,
        "cut_off_seconds": CUT_OFF,
        "one_queue": summary(outcome.control) | {"in_time": _in_time(outcome.unlaned)},
        "lanes": [
            {
                "slow_tasks": pair.slow_tasks,
                "idle": summary(pair.idle),
                "flooded": summary(pair.flooded),
                "p99_ratios": [finite(ratio) for ratio in pair.ratios],
                "p99_allowed": finite(outcome.allowed(pair)),
                "kept": outcome.kept(pair),
                "in_time": {each.lane.name: _in_time(each) for each in pair.in_time},
            }
            for pair in outcome.pairs
        ],
    }


def _in_time(counted: InTime) -> dict[str, Any]:
    return {"good": counted.good, "total": counted.total, "burn_rate": counted.burn}


def _print(outcome: Outcome, plot: Path | None) -> None:
    console = Console()
    measured = outcome.probe_lane.name
    flood = f"{outcome.flood:,}"
    title = f"How long a task of the lane {measured} waits before it starts"
    table = Table("", title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in ("tasks", "p50", "p99", "max"):
        table.add_column(column, justify="right")
    late = sum(wait is None for wait in outcome.control.waits)
    row = [shown(outcome.control.percentile(share)) for share in (0.5, 0.99, 1.0)]
    if late == len(outcome.control.waits):
        row = ["", "not answered", f"in {CUT_OFF:.0f} s"]
    table.add_row(f"one queue, {flood} slow tasks ahead", str(len(outcome.control.waits)), *row)
    for pair in outcome.pairs:
        for label, condition in (
            ("lanes, idle", pair.idle),
            (f"lanes, {flood} {pair.slow_tasks} in {outcome.flood_lane.name}", pair.flooded),
        ):
            figures = [shown(condition.percentile(share)) for share in (0.5, 0.99, 1.0)]
            table.add_row(label, str(len(condition.waits)), *figures)
    console.print(table)
    for pair in outcome.pairs:
        console.print(_seen_by_alerts(outcome, pair))
    for pair in outcome.pairs:
        kept = "is not delayed" if outcome.kept(pair) else "IS DELAYED"
        ratios = sorted(pair.ratios)
        console.print(
            f"{measured} {kept} by {flood} {pair.slow_tasks}: its p99 is "
            f"{statistics.median(ratios):.2f} x idle (rounds {ratios[0]:.2f} to {ratios[-1]:.2f}), "
            f"{shown(pair.flooded.percentile(0.99))} where {shown(outcome.allowed(pair))} is "
            "allowed.",
            soft_wrap=True,
        )
    queued = f"{outcome.flood / outcome.enqueue_time:,.0f} a second"
    console.print(f"{flood} tasks were queued in {outcome.enqueue_time:.1f} s, {queued}.")
    _say_where(plot)


def _say_where(plot: Path | None) -> None:
    if plot is not None:
        Console().print(f"The plot is in {plot}.", soft_wrap=True)


def _seen_by_alerts(outcome: Outcome, pair: Pair) -> Table:
    """In time by lane: of one queue by what its tasks waited, of lanes as their workers counted."""
    title = f"In time while {outcome.flood:,} {pair.slow_tasks} wait, and how fast the budget burns"
    table = Table("", title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for column in ("started within", "in time", "of", "burn rate"):
        table.add_column(column, justify="right")
    named = [(f"lanes: {each.lane.name}", each) for each in pair.in_time]
    for label, each in [(f"one queue: {outcome.probe_lane.name}", outcome.unlaned), *named]:
        burn = f"{each.burn:.1f} x" + (", pages" if each.burn >= PAGES else "")
        within = spoken(each.lane.latency_slo)
        table.add_row(label, within, f"{each.good:,}", f"{each.total:,}", burn)
    return table


def _require_matplotlib() -> None:
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise UsageError(
            "--plot needs matplotlib, which is not installed: pip install -e '.[plot]'"
        ) from None
