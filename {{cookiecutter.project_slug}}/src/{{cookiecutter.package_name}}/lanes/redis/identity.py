"""Who a worker process is, and whether an earlier one of its name has ended for sure.

A worker that was killed leaves its leases behind. They are taken back when they run out; at once,
when it is certain that the process is gone. Certain is only what this very kernel says of one of
its own processes. All else, another host above all, may be alive and out of reach.
"""

import contextlib
import json
import os
import secrets
import time
from pathlib import Path

PROJECT = __name__.rsplit(".", 3)[0]
_SAME_BOOT = 2.0  # seconds that two measurements of one boot's time may differ


def new_owner(node: str) -> str:
    """The owner of a process's leases: its node name, and what no other process has."""
    return f"{node}#{secrets.token_hex(4)}"


def node_of(owner: str) -> str:
    """The node name in an owner."""
    return owner.rpartition("#")[0] or owner


def note(now: float, *, stopping: bool) -> str:
    """Where this process runs, for others to compare.

    Args:
        now: seconds since 1970, by the server's clock.
        stopping: it was told to stop: whatever becomes of what it runs, no task is to blame.
    """
    here = {"pid": os.getpid(), "boot": round(_booted(now), 1), "in": _namespace()}
    return json.dumps(here | {"stopping": stopping, "project": PROJECT})


def project_of(other: str) -> str:
    """Whose worker wrote this note: the package's name, empty where it does not say."""
    try:
        return str(json.loads(other)["project"])
    except (ValueError, TypeError, KeyError):
        return ""


def is_gone(other: str, now: float) -> bool:
    """Whether the process that wrote this note has ended: True only when that is certain."""
    pid = _pid_here(other, now)
    return pid is not None and not _is_running(pid)


def is_alive_here(other: str, now: float) -> bool:
    """Whether the process that wrote this note runs beside this one: True only when certain."""
    pid = _pid_here(other, now)
    return pid is not None and _is_running(pid)


def _pid_here(other: str, now: float) -> int | None:
    """The process id in a note that this kernel's processes wrote; None for all else."""
    try:
        known = json.loads(other)
        pid, boot, namespace = int(known["pid"]), float(known["boot"]), known["in"]
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    here = abs(boot - _booted(now)) <= _SAME_BOOT and namespace == _namespace()
    return pid if here and 0 < pid < 2**31 else None


def _is_running(pid: int) -> bool:
    if pid == os.getpid():
        return False  # its number is ours now
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _booted(now: float) -> float:
    """When this kernel started, by the server's clock: no two hosts start in the same instant."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return now - time.clock_gettime(clock)


def _namespace() -> str:
    """The namespace of our process ids, with the kernel's own name where it may be read."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino))
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    return " ".join(parts)
