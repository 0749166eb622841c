"""Draw a project's dashboard during a flood: its panels, where they lie, with what Prometheus says.

The queries are those of the project's JSON, asked of a real Prometheus that scrapes real workers;
an hour is a minute (tests/watching.py). `make dashboard` runs it, with Debian's `prometheus` and
`prometheus-alertmanager`, in about two minutes.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter
from support import environment
from watching import Query, Watch, missing, queries, watched

CALM, FLOOD, AFTER = 20, 1600, 100  # seconds before it, tasks, seconds from its beginning
LANES = ("quick", "slow")
FORMATS = {"percentunit": PercentFormatter(1), "s": EngFormatter("s")}


def main() -> int:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("project", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    if missing():
        print(f"not here (Debian): {', '.join(missing())}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        env = environment(Path(folder) / "home")
        with watched(options.project.absolute(), Path(folder), env) as watch:
            begun = time.time()
            print(f"a flood, and what becomes of it: {CALM + AFTER} s ...")
            time.sleep(CALM)
            watch.flood(FLOOD)
            time.sleep(AFTER)
            draw(watch, begun, options.picture)
    print(f"drew {options.picture}")
    return 0


def draw(watch: Watch, begun: float, picture: Path) -> None:
    """Each lane's row, one below the other; times are in seconds."""
    panels = watch.dashboard["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) * len(LANES)
    figure = Figure(figsize=(15, 0.3 * rows))
    for number, lane in enumerate(LANES):
        asked = queries(watch.dashboard, lane)
        for panel in panels:
            at = panel["gridPos"]
            bottom = rows * (len(LANES) - number) / len(LANES) - at["y"] - at["h"]
            # Room for the numbers on the left and below, and for the title above.
            corner = ((at["x"] + 0.8) / 24.2, (bottom + 0.9) / (rows + 1))
            axes = figure.add_axes(
                (*corner, (at["w"] - 1) / 24.2, max(at["h"] - 2, 1) / (rows + 1))
            )
            if panel["type"] == "row":
                axes.set_axis_off()
                axes.text(0, 0, lane, fontsize=14, weight="bold", va="center")
                continue
            axes.set_title(panel["title"], fontsize=10, loc="left")
            of_panel = [query for query in asked if query.panel == panel["title"]]
            (_numbers if panel["type"] == "stat" else _lines)(axes, of_panel, watch, begun)
    figure.savefig(picture, dpi=80)


def _numbers(axes: Any, of_panel: list[Query], watch: Watch, _begun: float) -> None:
    axes.set_axis_off()
    for number, query in enumerate(of_panel):
        (series,) = watch.query(query.expression)
        value = float(series["value"][1])
        y = 0.85 - 0.3 * number
        axes.text(0, y, query.legend, color="#555555", va="center")
        axes.text(1, y, f"{100 * value:.4g} %", fontsize=16, ha="right", va="center")


def _lines(axes: Any, of_panel: list[Query], watch: Watch, begun: float) -> None:
    for query in of_panel:
        for series in watch.query_range(query.expression, begun, begun + CALM + AFTER):
            label = query.legend
            for name, value in series["metric"].items():
                label = label.replace(f"{{{{{name}}}}}", value.rpartition(".")[2])
            times = [at - begun for at, _ in series["values"]]
            values = [float(value) for _, value in series["values"]]
            if any(values) or len(of_panel) > 1:  # as for outcomes of which there are none
                axes.plot(times, values, linewidth=1.2, label=label)
    axes.set_xlim(0, CALM + AFTER)
    axes.grid(visible=True, alpha=0.3)
    axes.tick_params(labelsize=8)
    if (form := FORMATS.get(of_panel[0].unit)) is not None:
        axes.yaxis.set_major_formatter(form)
    if of_panel[0].unit != "percentunit":
        axes.set_ylim(bottom=0)
    elif axes.get_ylim()[0] > 0:
        axes.set_ylim(0, 1.05)
    axes.legend(fontsize=7, loc="upper right")


if __name__ == "__main__":
    sys.exit(main())
