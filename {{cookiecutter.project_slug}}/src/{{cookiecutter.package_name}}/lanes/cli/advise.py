"""What to change in lanes.toml, by what the workers have counted."""

import dataclasses
import json
from typing import Any

import click
from rich.markup import escape

from .. import advise as advising
from .. import capacity
from .. import status as operations
from . import context, show


@click.command()
@click.argument("lane", required=False)
@click.option(
    "--hours",
    default=24,
    show_default=True,
    type=click.IntRange(1, 720),
    help="Of how many hours to look at the counts: 1 by minutes, to 24 by hours, beyond by days.",
)
@click.option("--json", "as_json", is_flag=True, help="For scripts: one object.")
def advise(lane: str | None, hours: int, as_json: bool) -> None:
    """Say which task is in the wrong LANE, how many workers it wants, and what does not fit.

    Of all lanes, unless you name one. Changes nothing. Exits 0 with advice and without: nothing of
    it is lost or broken.
    """
    declared = context.lanes()
    if lane is not None:
        declared.get(lane)
    with operations.broker(context.app()) as redis:
        lanes = advising.look(redis, declared, hours * 3600)
    found = list(advising.examine(lanes, lane))
    shown = [seen for seen in lanes if lane in (None, seen.lane.name)]
    if as_json:
        advice = [dataclasses.asdict(each) for each in found]
        answer = {"lanes": [_object(seen) for seen in shown], "advice": advice}
        click.echo(json.dumps(answer, indent=2))
        return
    for each in found:
        _print(each)
    for seen in shown:
        if seen.flow is None:
            click.echo(_too_little(seen))
    if any(each.about == "workers" for each in found):
        click.echo(advising.ASSUMED)
    if not found and any(seen.flow for seen in shown):
        runs = sum(seen.period.all.run.count for seen in shown)
        click.echo(f"nothing to change, by {runs:,} runs in the last {hours} h")


def _print(advice: advising.Advice) -> None:
    lines = [f"[yellow]{advice.lane}[/]: {escape(advice.what)}", f"  -> {escape(advice.do)}"]
    if advice.write:
        lines.append(f"     {escape(advice.write)}")
    show.console().print("\n".join(lines), soft_wrap=True, highlight=False)


def _too_little(seen: advising.Seen) -> str:
    return (
        f"{seen.lane.name}: too little to say how many workers it wants: "
        f"{seen.period.all.run.count:,} runs in {show.duration(seen.period.since or 0.0)}, and "
        f"{capacity.LEAST_RUNS} in {show.duration(capacity.LEAST_TIME)} are the least"
    )


def _object(seen: advising.Seen) -> dict[str, Any]:
    """A lane's numbers: seconds, tasks, shares."""
    counted, sizing = seen.period.all, advising.size(seen)
    known: dict[str, Any] = {
        "lane": seen.lane.name,
        "seconds": seen.period.since,
        "runs": counted.run.count,
        "late_share": seen.late if counted.total else None,
        "wait_mean": counted.wait.mean,
        "waiting": seen.waiting,
        "workers": seen.workers,
        "slots": seen.slots,
        "sizing": None,
    }
    if sizing:
        keeps_up = sizing.busiest.load < seen.slots
        known["sizing"] = {
            "seconds": sizing.seconds,
            "arrivals_per_second": sizing.busiest.arrivals,
            "slot_seconds": sizing.busiest.taken,
            "slot_variation": sizing.busiest.variation,
            "slots_busy": sizing.busiest.load,
            "wait_mean": sizing.wait.mean if keeps_up else None,
            "late_share": sizing.wait.beyond(seen.lane.latency_slo),
            "slots_wanted": sizing.slots,
            "workers_wanted": sizing.workers,
        }
    return known
