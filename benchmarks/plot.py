"""Draw what was measured: a panel for each figure, a bar for each arm, ours in another colour."""

import math
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from report import OURS, Results

#: Okabe and Ito's blue, and a grey: they differ in lightness too.
_OURS, _OTHERS = "#0072b2", "#b5b5b5"
_PANELS = (
    ("drain_rate", "run, tasks/s", "more is better"),
    ("enqueue_rate", "sent one at a time, /s", "more is better"),
    ("p50_idle", "send to start, p50, ms", "less is better"),
    ("p99_flood", "the same under a flood, p99, ms", "less is better; log scale"),
    ("drain_cpu", "CPU of a task's run, ms", "less is better"),
    ("memory", "memory of an idle worker, MiB", "less is better"),
)
_LOG = "p99_flood"
_COLUMNS = 2


def draw(results: Results, path: Path) -> None:
    """Write the PNG."""
    panels = [panel for panel in _PANELS if panel[0] in results.figures]
    rows = math.ceil(len(panels) / _COLUMNS)
    height = 0.8 + (0.7 + 0.22 * len(results.arms)) * rows
    figure = Figure(figsize=(10, height), layout="constrained")
    grid = figure.subplots(rows, _COLUMNS, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for place, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
        name, title, direction = panel
        axes.set_title(f"{title} ({direction})", fontsize=9, loc="left")
        _bars(axes, results, name, is_first=place % _COLUMNS == 0)
    figure.suptitle("Median of all rounds, with the smallest and the largest", fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _bars(axes: Any, results: Results, name: str, *, is_first: bool) -> None:
    arms = list(results.arms)
    every = [value for arm in arms for value in results.figures[name].get(arm, [])]
    for place, arm in enumerate(arms):
        values = results.figures[name].get(arm)
        if not values:
            continue
        middle = statistics.median(values)
        whiskers = [[middle - min(values)], [max(values) - middle]]
        colour = _OURS if arm == OURS else _OTHERS
        if name == _LOG:  # where a bar's length would say nothing
            axes.plot(middle, place, "o", color=colour, markersize=7)
        else:
            axes.barh(place, middle, color=colour, height=0.7)
        axes.errorbar(middle, place, xerr=whiskers, color="black", linewidth=1, capsize=2)
        text = f"  {middle:,.0f}" if middle >= 20 else f"  {middle:,.2g}"
        axes.annotate(text, (max(values), place), va="center", fontsize=8)
    titles = [results.arms[arm]["title"] for arm in arms] if is_first else [""] * len(arms)
    axes.set_yticks(range(len(arms)), titles, fontsize=8)
    axes.set_ylim(len(arms) - 0.5, -0.5)
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    # Room for the number beside the longest bar.
    if name == _LOG:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlim(min(every) / 2, max(every) * 4)
    else:
        axes.set_xlim(0, max(every) * 1.18)
