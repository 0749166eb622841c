"""Run Celery's and kombu's own integration tests on a generated project, and beside stock.

All runs at once, each with brokers and workers of its own. What passes on stock must pass, but for
what differences.toml lists, and what that lists must fail. Exits 1 when anything else happens.
"""

import argparse
import os
import signal
import socket
import sys
from pathlib import Path

from .report import report
from .runs import LOGS, RUNS, SOURCES, Run, end, start, wait

NOBODY = 12345  # the port where kombu's tests connect to no server


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="make test-celery", description=__doc__)
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help=f"of {', '.join(RUNS)}; default: all"
    )
    parser.add_argument("-k", metavar="EXPRESSION", help="these tests alone, as pytest has it")
    parser.add_argument("-n", type=int, metavar="N", help="processes of each run")
    parser.add_argument(
        "--limit", type=float, default=1200, metavar="SECONDS", help="for all (default: 1200)"
    )
    given = parser.parse_args()
    if unknown := set(given.runs) - set(RUNS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    stocks = {f"{name.partition('/')[0]}/stock" for name in given.runs}
    names = [name for name in RUNS if not given.runs or name in {*given.runs, *stocks}]
    bake = Path(os.environ.get("LANES_BAKE", SOURCES / "acme-tasks"))
    print(f"{', '.join(names)}: side by side, some minutes; logs in {LOGS}", file=sys.stderr)
    runs: list[Run] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    nobody = socket.socket()  # bound, and not listening: connections are refused
    try:
        nobody.bind(("127.0.0.1", NOBODY))
    except OSError as error:
        sys.exit(f"port {NOBODY}: {error.strerror}, and kombu's tests expect that nobody is there")
    try:
        runs.extend(start(name, bake, processes=given.n, only=given.k) for name in names)
        wait(runs, given.limit)
    finally:
        nobody.close()
        for run in runs:
            end(run)
    sys.exit(0 if report(runs, all_tests=not given.k) else 1)


if __name__ == "__main__":
    main()
