"""The command line of a lane's worker: Celery's own, with the lane's limits as its flags."""

import os
import sys

from .config import Lane

PACKAGE = __name__.rsplit(".", 2)[0]


def command(lane: Lane, *, instance: int = 1, app: str = PACKAGE) -> list[str]:
    """The `celery worker` command of one worker of `lane`.

    Args:
        instance: which of the lane's workers on this host, from 1; part of the node's name.
        app: the module that holds the Celery app, as `celery -A` takes it.
    """
    flags: dict[str, object] = {
        "--hostname": f"{lane.name}-{instance}@%h",
        "--queues": lane.queue,
        "--pool": lane.pool,
        "--concurrency": lane.concurrency,
        "--prefetch-multiplier": lane.prefetch,
        "--time-limit": lane.time_limit,
        "--soft-time-limit": lane.soft_time_limit,
        "--max-tasks-per-child": lane.max_tasks_per_child,
        # Celery counts KiB.
        "--max-memory-per-child": lane.max_memory_per_child and lane.max_memory_per_child // 1024,
    }
    # Workers need nothing of each other: mingle asks for revoked tasks at start and waits a
    # second, gossip is an event stream nobody reads. The banner has no lane in front of it.
    celery = [sys.executable, "-m", "celery", "--quiet", "-A", app, "worker"]
    more = lane.nice - os.getpriority(os.PRIO_PROCESS, 0)  # systemd may have set it already
    if more > 0:
        celery = ["nice", "-n", str(more), *celery]
    options = [
        f"{flag}={value:g}" if isinstance(value, float) else f"{flag}={value}"
        for flag, value in flags.items()
        if value is not None
    ]
    return [*celery, *options, "--without-mingle", "--without-gossip"]


def run(lane: Lane, *, instance: int = 1) -> None:
    """Replace this process with the lane's worker."""
    os.environ["PYTHONUNBUFFERED"] = "1"  # a line of log is seen when it is written
    arguments = command(lane, instance=instance)
    os.execvp(arguments[0], arguments)
