"""How many files a worker must be able to open: without them it fails in a hundred ways.

Its pipes and connections count as files. Celery ends with "Too many open files", with a traceback,
or takes a connection that could not be opened for an outage of the broker, and waits for its end.
"""

import resource

from .config import Lane
from .errors import UsageError

MANY = 1024  # files of one process that runs a broker, all lanes, or both
_WORKER = 32  # files of a worker without its slots; 18 to 20 were counted
#: Files of each slot: a child's pipes, of which the other children hold some, too; a thread's
#: connections to the result backend, and for what its task sends.
_SLOT = {"prefork": 6, "threads": 2, "solo": 2}


def needed(lane: Lane, concurrency: int | None = None) -> int:
    """The files that a worker of `lane` opens, with some to spare; those of its tasks come on top.

    Args:
        concurrency: its slots, if they are not the lane's.
    """
    return _WORKER + _SLOT[lane.pool] * (concurrency or lane.concurrency)


def ensure(wanted: int, *, who: str) -> None:
    """Have this process, and what it starts, be allowed to open so many files.

    Raises:
        UsageError: when the system's limit for it is below that.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise UsageError(
            f"a process may open {hard:,} files here, and {who} needs {wanted:,}; {way_out(wanted)}"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def way_out(wanted: int) -> str:
    """How to have the hard limit raised, which only root may do, and whoever set it."""
    most = max(MANY, wanted)
    return (
        f"raise that limit where it was set: ulimit -n {most} in a script, LimitNOFILE={most} in "
        "a systemd unit, or /etc/security/limits.conf"
    )


def allowed() -> float:
    """How many files a worker that this process starts may open, after `ensure`."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return float("inf") if hard == resource.RLIM_INFINITY else hard
