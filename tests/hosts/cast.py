"""Who plays in a test of several hosts: Redis and its Sentinels, workers, senders; all real."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from processes import PATIENCE, Process, eventually, free_port
from redis import Redis
from redis.exceptions import RedisError
from support import environment

from . import ledger
from .ledger import Account

HERE = Path(__file__).parent
TASKS = '''

# --- What the tests of several hosts add, as an owner would ---
import os


def _note(what, name):
    """Write down outside the broker what happens; the clock is the same for all hosts."""
    line = f"{what} {name} {os.environ['ON']} {os.getpid()} {time.monotonic():.3f}\\n"
    ledger = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(ledger, line.encode())
    finally:
        os.close(ledger)


def _work(name, seconds):
    _note("start", name)
    time.sleep(seconds)
    _note("end", name)


@app.task(lane="quick")
def hosts_quick(name, seconds):
    _work(name, seconds)


@app.task(lane="slow")
def hosts_slow(name, seconds):
    _work(name, seconds)


@app.task(lane="quick", bind=True)
def hosts_tick(self):
    """Of the schedule: its id says of which entry, and of which instant."""
    again = self.request.delivery_info.get("redelivered")
    _note("again" if again else "first", self.request.id)
'''
NOISE = 5.0  # seconds that a busy machine of two cores may add to what is claimed of time
LEASE = 15.0  # seconds, a lane's default
PACKAGE = "acme_tasks"
MASTER = "mymaster"  # the name that Sentinels know it by, and a project's default


def missing() -> str | None:
    """Why no Redis can be run here, or None."""
    needed = ("redis-server", "redis-sentinel")
    absent = [tool for tool in needed if shutil.which(tool) is None]
    return f"not installed: {', '.join(absent)}" if absent else None


class Place(Protocol):
    """Where processes run: a `network.Host`, or `Here`."""

    name: str
    address: str

    def start(self, name: str, *command: object, cwd: Path, env: dict[str, str]) -> Process:
        """A process there."""

    def redis(self, port: int) -> Redis:
        """A client of a server there."""


class Here:
    """This machine, on its loopback."""

    address = "127.0.0.1"

    def __init__(self, name: str) -> None:
        """`name` is what the ledger calls it."""
        self.name = name

    def start(self, name: str, *command: object, cwd: Path, env: dict[str, str]) -> Process:
        """A process."""
        return Process(name, *command, cwd=cwd, env=env)

    def redis(self, port: int) -> Redis:
        """A client."""
        return Redis(port=port, socket_timeout=5, socket_connect_timeout=5)


@dataclass(frozen=True, slots=True)
class Project:
    """The generated project under test, with the tasks of these tests."""

    source: Path  # to import from

    @classmethod
    def of(cls, bake: Path, into: Path) -> Self:
        """A copy of a bake's sources; the bake is left as it is."""
        shutil.copytree(bake / "src", into / "src", ignore=shutil.ignore_patterns("__pycache__"))
        with (into / "src" / PACKAGE / "tasks.py").open("a") as file:
            file.write(TASKS)
        return cls(into / "src")


class Server:
    """A redis-server that has its data on disk."""

    def __init__(self, cast: "Cast", place: Place, *options: object) -> None:
        """`Cast.server` makes them."""
        self.place = place
        # A host's is its own; this machine's is for everybody.
        self.port = free_port() if isinstance(place, Here) else 6379
        self.folder = cast.folder / f"redis-{place.name}-{self.port}"
        self.folder.mkdir()
        self.redis = place.redis(self.port)
        self._options = ("--bind", "127.0.0.1" if isinstance(place, Here) else "0.0.0.0", *options)  # noqa: S104 - in a namespace
        self._cast = cast
        self.start()

    @property
    def url(self) -> str:
        """For BROKER_URL or RESULT_URL."""
        return f"redis://{self.place.address}:{self.port}/0"

    def start(self, *options: object) -> None:
        """Start it, on the data that it has; wait until it answers."""
        kept = ("--appendonly", "yes", "--save", "", "--dir", self.folder)
        quick = ("--repl-diskless-sync-delay", "0", "--protected-mode", "no")
        command = ("redis-server", "--port", self.port, *kept, *quick, *self._options, *options)
        self.process = self._cast.start(self.place, self.folder.name, *command)
        eventually(lambda: self.answers, f"an answer of {self.folder.name}: {self.process.log}")

    @property
    def answers(self) -> bool:
        """Whether it is there."""
        with contextlib.suppress(RedisError):
            return bool(self.redis.ping())
        return False

    @property
    def role(self) -> str:
        """`master`, `slave`, or nothing when it does not answer."""
        with contextlib.suppress(RedisError):
            return str(self._replication()["role"])
        return ""

    @property
    def replicas(self) -> int:
        """How many are connected and up to date."""
        with contextlib.suppress(RedisError):
            about = self._replication()
            states = [about.get(f"slave{number}", {}) for number in range(3)]
            return sum(each.get("state") == "online" for each in states)
        return 0

    def _replication(self) -> dict[str, Any]:
        about: dict[str, Any] = self.redis.info("replication")
        return about

    def kill(self) -> None:
        """SIGKILL: its connections are closed, its data is what is on disk."""
        self.process.process.kill()
        self.process.process.wait()

    def freeze(self) -> None:
        """SIGSTOP: it accepts connections, and says nothing."""
        self.process.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.process.send_signal(signal.SIGCONT)

    def leased(self, lane: str) -> set[str]:
        """Names of the tasks that workers hold now, running or about to."""
        messages: list[Any] = self.redis.hvals(f"lanes:{lane}:leased")
        return {_name(message) for message in messages}

    def left(self, *lanes: str) -> int:
        """Messages that wait, are delayed, or are held."""
        with self.redis.pipeline(transaction=False) as pipeline:
            for lane in lanes:
                pipeline.llen(f"{lane}_tasks")
                pipeline.hlen(f"lanes:{lane}:leased")
                pipeline.zcard(f"lanes:{lane}:delayed")
            return sum(pipeline.execute())

    def dead(self, lane: str) -> int:
        """Dead letters."""
        return int(self.redis.zcard(f"lanes:{lane}:dead"))


def _name(message: bytes) -> str:
    arguments, *_ = json.loads(b64decode(json.loads(message)["body"]))
    return str(arguments[0])


class Watched:
    """A master and its replicas, with three Sentinels that watch them."""

    def __init__(
        self, cast: "Cast", servers: Sequence[Place], sentinels: Sequence[Place], *options: object
    ) -> None:
        """`Cast.watched` makes them; the first of `servers` is the master."""
        first, *rest = servers
        master = cast.server(first, *options)
        of = ("--replicaof", f"{master.place.address} {master.port}")
        self.servers = [master, *(cast.server(place, *of, *options) for place in rest)]
        eventually(lambda: master.replicas == len(rest), "replicas")
        self.sentinels = [cast.sentinel(place, master) for place in sentinels]
        for sentinel in self.sentinels:
            eventually(partial(sentinel.knows, len(rest)), "Sentinels that know all")

    @property
    def url(self) -> str:
        """For BROKER_URL."""
        return ";".join(each.url for each in self.sentinels)

    @property
    def master(self) -> Server | None:
        """Whom a Sentinel names, when that one agrees that it is the master."""
        for sentinel in self.sentinels:
            with contextlib.suppress(RedisError):
                address = sentinel.named()
                for server in self.servers:
                    if (server.place.address, server.port) == address and server.role == "master":
                        return server
        return None


class Sentinel:
    """A redis-sentinel; two of them decide that the master is gone."""

    def __init__(self, cast: "Cast", place: Place, master: Server) -> None:
        """`Cast.sentinel` makes them."""
        self.place = place
        self.port = free_port() if isinstance(place, Here) else 26379
        self.redis = place.redis(self.port)
        folder = cast.folder / f"sentinel-{place.name}-{self.port}"
        folder.mkdir()
        address = f"{MASTER} {master.place.address} {master.port}"
        lines = [
            f"port {self.port}",
            f"bind {'127.0.0.1' if isinstance(place, Here) else '0.0.0.0'}",  # noqa: S104 - in a namespace
            "protected-mode no",
            f"dir {folder}",
            f"sentinel monitor {address} 2",
            f"sentinel down-after-milliseconds {MASTER} 3000",
            f"sentinel failover-timeout {MASTER} 10000",
        ]
        (folder / "sentinel.conf").write_text("\n".join(lines) + "\n")
        command = ("redis-sentinel", folder / "sentinel.conf")
        self.process = cast.start(place, folder.name, *command)

    @property
    def url(self) -> str:
        """Its part of a BROKER_URL."""
        return f"sentinel://{self.place.address}:{self.port}/0"

    def fail_over(self) -> None:
        """Have it make a replica the master.

        Raises:
            RedisError: when it will not, as it has not finished with the change before.
        """
        self._command("FAILOVER", MASTER)

    def named(self) -> tuple[str, int] | None:
        """Where it says that the master is."""
        address = self._command("GET-MASTER-ADDR-BY-NAME", MASTER)
        return (address[0].decode(), int(address[1])) if address else None

    def knows(self, replicas: int) -> bool:
        """Whether it has found the replicas, and the other Sentinels."""
        with contextlib.suppress(RedisError):
            about = self._command("MASTER", MASTER)
            if isinstance(about, list):  # RESP2
                about = dict(zip(about[::2], about[1::2], strict=True))
            return (int(about[b"num-slaves"]), int(about[b"num-other-sentinels"])) == (replicas, 2)
        return False

    def _command(self, *words: str) -> Any:  # noqa: ANN401 - each has its own reply
        # As words apart: redis-py's own methods parse replies, and not alike in every version.
        return self.redis.execute_command("SENTINEL", *words)  # type: ignore[no-untyped-call]


class Cast:
    """Starts all of a scene, for the length of a `with` block; afterwards nothing of it runs."""

    def __init__(self, folder: Path, project: Project) -> None:
        """`folder` is for logs and data."""
        folder.mkdir()
        self.folder, self.project = folder, project
        self.ledger = folder / "ledger"
        self._sent: list[Path] = []
        self._started: list[Process] = []

    def __enter__(self) -> Self:
        """Nothing runs yet."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Kill all at once: what hangs is what is tested, and would not end by itself."""
        for each in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(each.process.pid, signal.SIGKILL)
        for each in self._started:
            each.process.wait(PATIENCE)

    def start(self, place: Place, name: str, *command: object, **env: str) -> Process:
        """A process in a place; it knows where the project is, and where the ledger."""
        variables = {
            "PYTHONPATH": str(self.project.source),
            "PYTHONDONTWRITEBYTECODE": "1",
            "PACKAGE": PACKAGE,
            "LEDGER": str(self.ledger),
            "ON": place.name,
        }
        own = environment(self.folder / "home", **variables | env)
        process = place.start(name, *command, cwd=self.folder, env=own)
        self._started.append(process)
        return process

    def server(self, place: Place, *options: object) -> Server:
        """A redis-server; `options` are of its command line."""
        return Server(self, place, *options)

    def sentinel(self, place: Place, master: Server) -> Sentinel:
        """A redis-sentinel that watches `master`."""
        return Sentinel(self, place, master)

    def watched(
        self, servers: Sequence[Place], sentinels: Sequence[Place], *options: object
    ) -> Watched:
        """A master, replicas, and Sentinels that have found one another."""
        return Watched(self, servers, sentinels, *options)

    def worker(
        self, place: Place, url: str, *, lane: str = "quick", instance: int = 1, **env: str
    ) -> Process:
        """A worker of the project, by the project's own command; see `ready`."""
        command = (sys.executable, "-m", PACKAGE, "worker", lane, "--instance", instance)
        name = f"worker-{place.name}-{lane}-{instance}"
        return self.start(place, name, *command, BROKER_URL=url, **env)

    def sender(
        self, place: Place, url: str, *seconds: float, lane: str = "quick", rate: float, **env: str
    ) -> Process:
        """Send `rate` tasks a second until told to stop; they take `seconds`, in turn."""
        prefix = f"{place.name}-{lane}-{len(self._sent)}"
        self._sent.append(self.folder / f"sent-{prefix}")
        script = (sys.executable, HERE / "sending.py", prefix, rate, lane, self._sent[-1])
        return self.start(place, f"sender-{prefix}", *script, *seconds, BROKER_URL=url, **env)

    @property
    def account(self) -> Account:
        """What was sent and what ran so far."""
        return ledger.read(self.ledger, self._sent, time.monotonic())

    def settle(self, senders: Sequence[Process], server: Server, *lanes: str, within: float) -> str:
        """End the senders, and wait until all that was confirmed has run and nothing is held.

        Returns:
            What was missing after `within` seconds, or nothing: for the test to judge.
        """
        for sender in senders:
            sender.process.terminate()
        until = time.monotonic() + within
        what = ""
        while time.monotonic() < until:
            what = self._unsettled(senders, server, lanes)
            if not what:
                break
            time.sleep(0.2)
        print(f"{self.folder.name}: {self.account}{what and f'; {what}'}")
        return what

    def _unsettled(self, senders: Sequence[Process], server: Server, lanes: Sequence[str]) -> str:
        if hanging := [each.output.stem for each in senders if each.process.poll() is None]:
            return f"{', '.join(hanging)} hangs in a send"
        if lost := self.account.lost:
            return f"{len(lost)} sent and not run"
        try:
            left = server.left(*lanes)
        except RedisError as error:
            return f"{server.folder.name}: {error}"
        return f"{left} messages left" if left else ""


def ready(*workers: Process) -> None:
    """Wait until they say that they are."""
    for worker in workers:
        worker.await_log(" ready.")


def ended(process: Process, within: float) -> float | None:
    """Seconds until it ended; None when it did not."""
    began = time.monotonic()
    try:
        process.process.wait(within)
    except subprocess.TimeoutExpired:
        return None
    return time.monotonic() - began
