"""Draw both arms, so that a reader gets it in one look."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .experiment import CUT_OFF, RATE, ROUND_TIME, ROUNDS, Condition, Outcome
from .keys import FLOOD_KEY, KeysOutcome

_QUIET, _BUSY, _LATE = "#2a6f97", "#e07a1f", "#b3261e"


def draw(outcome: Outcome, path: Path) -> None:
    """Write the PNG: one queue on the left, lanes on the right, one scale of waiting times."""
    measured, flood = outcome.probe_lane.name, f"{outcome.flood:,} slow tasks"
    figure, left, right = _frame(f"How long a task of the lane {measured} waits behind {flood}")
    left.set_title("one queue")
    _draw_control(left, outcome.control)
    right.set_title("lanes")
    sleeping = outcome.pairs[0]
    _draw_condition(right, sleeping.idle, "idle", _QUIET)
    _draw_condition(right, sleeping.flooded, f"{flood} waiting", _BUSY)
    for number in range(ROUNDS):
        times = sleeping.flooded.times[number * RATE * ROUND_TIME :][: RATE * ROUND_TIME]
        right.axvspan(times[0], times[-1], color=_BUSY, alpha=0.08)
    _save(figure, path)


def draw_keys(outcome: KeysOutcome, path: Path) -> None:
    """Likewise: without keys on the left, with keys on the right."""
    flood = f"{outcome.flood:,} tasks of {FLOOD_KEY}"
    figure, left, right = _frame(f"How long a task of another key waits behind {flood}")
    left.set_title("no keys")
    _draw_control(left, outcome.control)
    right.set_title(f"keys, in the lane {outcome.lane.name}")
    _draw_condition(right, outcome.idle, f"all slots taken by {FLOOD_KEY}", _QUIET)
    _draw_condition(right, outcome.flooded, f"{flood} waiting", _BUSY)
    _save(figure, path)


def _frame(title: str) -> tuple[Figure, Any, Any]:
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 3))
    figure.suptitle(title)
    left.set(yscale="log", ylim=(0.0005, 2 * CUT_OFF), ylabel="waited (log scale)")
    left.set_yticks([0.001, 0.01, 0.1, 1, 10], ["1 ms", "10 ms", "0.1 s", "1 s", "10 s"])
    right.set_xlabel("seconds")
    for axes in (left, right):
        axes.axhline(CUT_OFF, color=_LATE, linestyle=":", linewidth=1)
        axes.grid(visible=True, axis="y", alpha=0.3)
    return figure, left, right


def _save(figure: Figure, path: Path) -> None:
    figure.axes[1].legend(loc="upper right", title="median wait", markerscale=2)
    figure.savefig(path, dpi=120)


def _draw_condition(axes: Any, condition: Condition, label: str, colour: str) -> None:
    # A task that was not answered is drawn where it was given up.
    waits = [CUT_OFF if wait is None else wait for wait in condition.waits]
    median = f"{condition.percentile(0.5) * 1000:.1f} ms"
    axes.scatter(condition.times, waits, s=6, color=colour, label=f"{label}: {median}")


def _draw_control(axes: Any, control: Condition) -> None:
    late = sum(wait is None for wait in control.waits)
    for number, wait in enumerate(control.waits):
        axes.scatter(number, wait or CUT_OFF, marker="o" if wait else "^", color=_LATE)
    if late:
        axes.annotate(
            f"{late} of {len(control.waits)} not\nanswered in {CUT_OFF:.0f} s",
            (0.5, 0.75),
            xycoords="axes fraction",
            ha="center",
            color=_LATE,
        )
    axes.set_xticks([])
    axes.set_xlabel(f"{len(control.waits)} tasks")
