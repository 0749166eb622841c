"""Several hosts on one machine: network namespaces on a bridge, with links that can be cut.

The bridge has a namespace of its own and no way out, so what runs here meets nothing else, not even
the hosts of another test with the same addresses.
"""

import contextlib
import ctypes
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from processes import Process, eventually
from redis import Redis
from redis.connection import Connection, ConnectionPool

Cut = Literal["drop", "link", "inbound", "outbound"]

_NAMESPACES = Path("/run/netns")
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count(1)


def missing() -> str | None:
    """Why no network can be made here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    absent = [tool for tool in ("ip", "nft", "unshare") if shutil.which(tool) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


class Network:
    """Hosts on one bridge, for the length of a `with` block; afterwards nothing of it is left."""

    def __init__(self, folder: Path) -> None:
        """Nothing is made before the block begins; `folder` is for logs."""
        self.folder = folder
        self.prefix = f"lanes-{os.getpid()}-{next(_numbers)}"
        self.subnet = f"10.77.{os.getpid() % 250 + 1}"  # for whoever reads a log; see above
        self.hosts: dict[str, Host] = {}
        self.bridge = f"{self.prefix}-bridge"
        self._relays: list[Process] = []

    def __enter__(self) -> Self:
        """Make the bridge."""
        _remove_left_behind()
        _run("ip", "netns", "add", self.bridge)
        try:
            self._in_bridge("ip", "link", "add", "br0", "type", "bridge")
            self._in_bridge("ip", "link", "set", "br0", "up")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Kill what still runs, and remove all of it."""
        self.close()

    def close(self) -> None:
        """Likewise."""
        for namespace in (*(host.namespace for host in self.hosts.values()), self.bridge):
            _remove(namespace)
        ended = [process for host in self.hosts.values() for process, *_ in host.started]
        for each in (*ended, *self._relays):
            each.process.wait()

    def host(self, name: str) -> "Host":
        """A new host, on the network."""
        host = self.hosts[name] = Host(self, name, len(self.hosts) + 1)
        self._plug_in(host)
        return host

    def _plug_in(self, host: "Host") -> None:
        _run("ip", "netns", "add", host.namespace)
        peer = ("type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        self._in_bridge("ip", "link", "add", host.port, *peer)
        # The same after a reboot: a machine keeps its card, and others have its address in mind.
        host.ip("link", "set", "eth0", "address", f"02:77:00:00:00:{host.number:02x}")
        host.ip("address", "add", f"{host.address}/24", "dev", "eth0")
        for interface in ("lo", "eth0"):
            host.ip("link", "set", interface, "up")
        self._in_bridge("ip", "link", "set", host.port, "master", "br0", "up")

    def cut(self, host: "Host", how: Cut = "drop") -> None:
        """Take a host off the network, whose connections are not told.

        Args:
            host: which one; its own loopback goes on.
            how: "drop", packets vanish both ways; "inbound" or "outbound", those to or those from
                the host alone do (half-open); "link", its cable is pulled, and it knows.
        """
        if how == "link":
            host.ip("link", "set", "eth0", "down")
            return
        rules = [f"add table bridge {host.table}"]
        rules.append(f"add chain bridge {host.table} c {{ type filter hook forward priority 0; }}")
        if how in {"drop", "inbound"}:
            rules.append(f"add rule bridge {host.table} c oifname {host.port} drop")
        if how in {"drop", "outbound"}:
            rules.append(f"add rule bridge {host.table} c iifname {host.port} drop")
        self._in_bridge("nft", "; ".join(rules))  # in one transaction

    def heal(self, host: "Host") -> None:
        """Undo `cut`, however it was made."""
        table = f"add table bridge {host.table}; delete table bridge {host.table}"
        self._in_bridge("nft", table)  # added first, so that there is one to delete
        host.ip("link", "set", "eth0", "up")

    def delay(self, host: "Host", milliseconds: float) -> None:
        """Have each round trip to and from `host` take so much longer, from now on.

        By a process that passes on every packet late: `tc ... netem` is not in every kernel.
        """
        outer, inner = f"o{host.number}", f"i{host.number}"
        self._in_bridge("ip", "link", "add", outer, "type", "veth", "peer", "name", inner)
        self._in_bridge("ip", "link", "set", host.port, "nomaster")
        self._in_bridge("ip", "link", "set", inner, "up")
        script = Path(__file__).with_name("relay.py")
        words = ["ip", "netns", "exec", self.bridge, sys.executable, script, host.port, inner]
        seconds = milliseconds / 2000  # each way
        name = f"relay-{host.name}"
        relay = Process(name, *words, seconds, cwd=self.folder, env=dict(os.environ))
        self._relays.append(relay)
        relay.await_log("relaying")
        self._in_bridge("ip", "link", "set", outer, "master", "br0", "up")
        host.port = outer

    def reboot(self, host: "Host", *, away: float) -> list[Process]:
        """Cut a host's power, and start it again after `away` seconds, with what ran on it.

        Nobody is told: a kernel that has no power sends no FIN, and the one that starts knows
        nothing of the old connections.

        Returns:
            The processes that were started again, in the order in which they first were.
        """
        self._in_bridge("ip", "link", "del", host.port)  # first, so that no FIN gets out
        ran = [each for each in host.started if each[0].process.poll() is None]
        _remove(host.namespace)
        host.started.clear()
        for process, *_ in ran:
            process.process.wait()
        time.sleep(away)  # what is tried: there is no condition to wait for
        self._plug_in(host)
        return [
            host.start(f"{process.output.stem}-again", *command, cwd=cwd, env=env)
            for process, command, cwd, env in ran
        ]

    def _in_bridge(self, *command: str) -> None:
        _run("ip", "netns", "exec", self.bridge, *command)


class Host:
    """One machine on a `Network`, with a name and an address of its own."""

    def __init__(self, network: Network, name: str, number: int) -> None:
        """`Network.host` makes them."""
        self.name, self.number = name, number
        self.namespace = f"{network.prefix}-{name}"
        self.address = f"{network.subnet}.{number}"
        self.port = f"p{number}"  # of the bridge
        self.table = f"cut{number}"
        self.started: list[tuple[Process, tuple[object, ...], Path, dict[str, str]]] = []

    def ip(self, *words: str) -> None:
        """Configure its network."""
        _run("ip", "-n", self.namespace, *words)

    def _inside(self, *command: object) -> list[str]:
        # A hostname of its own: it is a part of the workers' names. Each program replaces the one
        # before it, so that the process started is the one asked for.
        named = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name)
        words = ("ip", "netns", "exec", self.namespace, *named, *command)
        return [str(word) for word in words]

    def run(self, *command: object, env: dict[str, str]) -> str:
        """What a command printed there; fails the test when the command fails."""
        return _run(*self._inside(*command), env=env)

    def start(self, name: str, *command: object, cwd: Path, env: dict[str, str]) -> Process:
        """A process there, with its output in `cwd`/`name`.log; a reboot starts it again."""
        process = Process(name, *self._inside(*command), cwd=cwd, env=env)
        self.started.append((process, command, cwd, env))
        return process

    def redis(self, port: int) -> Redis:
        """A client on this host, of a server on it: a cut hides nothing from it."""
        pool = ConnectionPool(
            connection_class=_InNamespace,
            namespace=self.namespace,
            port=port,
            socket_timeout=5,
            socket_connect_timeout=5,
        )
        return Redis(connection_pool=pool)


class _InNamespace(Connection):
    """A connection made in a network namespace; its socket stays there."""

    def __init__(self, *, namespace: str, **options: object) -> None:
        self.namespace = namespace
        super().__init__(**options)  # type: ignore[no-untyped-call]

    def connect_check_health(self, *args: bool, **options: bool) -> None:
        with _inside(self.namespace):
            super().connect_check_health(*args, **options)


@contextlib.contextmanager
def _inside(namespace: str) -> Iterator[None]:
    """This thread alone is in the namespace."""
    with (
        Path("/proc/thread-self/ns/net").open() as own,
        (_NAMESPACES / namespace).open() as other,
    ):
        _set_namespace(other.fileno())
        try:
            yield
        finally:
            _set_namespace(own.fileno())


def _set_namespace(descriptor: int) -> None:
    if _libc.setns(descriptor, _NEW_NETWORK) != 0:  # os.setns is new in Python 3.12
        raise OSError(ctypes.get_errno(), "setns")


def _run(*command: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


def _remove(namespace: str) -> None:
    """Kill all that runs in a namespace at once, and remove it if it is there."""
    if not (_NAMESPACES / namespace).exists():
        return

    def emptied() -> bool:
        found = {int(pid) for pid in _run("ip", "netns", "pids", namespace).split()}
        pids = found - {os.getpid()}  # in there for a moment, when it makes a connection
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    eventually(emptied, f"the end of what ran in {namespace}")
    _run("ip", "netns", "del", namespace)


def _remove_left_behind() -> None:
    """Remove what a test run that was killed could not remove itself."""
    for path in _NAMESPACES.glob("lanes-*"):
        name = re.fullmatch(r"lanes-(\d+)-\d+-.*", path.name)
        if name and not Path(f"/proc/{name[1]}").exists():
            _remove(path.name)
