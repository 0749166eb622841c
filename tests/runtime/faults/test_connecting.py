"""One URL, decided once: every way of starting a process reaches the same server, in the same way.

Real servers, and real processes: workers by the project's command, by Celery's and by supervisor,
beat, a sender, the command.
"""

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import pytest
from harness import (
    PATIENCE,
    SCHEDULER,
    Process,
    Project,
    free_port,
    own_scheduler,
    processes,
    wait_until,
)
from secured import (
    OPENSSL,
    PASSWORD,
    REDIS,
    SENTINEL_PASSWORD,
    WRONG_PASSWORD,
    Certificates,
    Wire,
    leaks,
    login,
    relay,
    running,
)
from support import Server, alive

from acme_tasks.lanes import worker

pytestmark = [
    pytest.mark.ours_only("about where our processes connect to"),
    pytest.mark.skipif(not (REDIS and OPENSSL), reason="no redis-server, or no openssl"),
]

WORKERS = ("own", "plain", "supervised")  # lanes, called by how their worker is started
LANES = 'default_lane = "own"\n' + "".join(f"[lanes.{lane}]\nconcurrency = 1\n" for lane in WORKERS)
CLUSTER = (
    "this is a Redis Cluster, which is not supported because a lane's keys must be on one server; "
    "use a single Redis or Valkey, or one with Sentinels for fail-over (sentinel://)"
)
UNTRUSTED = (
    "the certificate is not trusted (self-signed certificate in certificate chain); "
    "name its authority's file with ssl_ca_certs"
)
UNCERTIFIED = (
    "the server ends the connection; if it wants a certificate of ours, add ssl_certfile and "
    "ssl_keyfile, and else see its log"
)
SUPERVISED = 'default_lane = "supervised"\n[lanes.supervised]\nconcurrency = 1\n'
#: What most senders are: they send, and wait for the result.
SENDER = f"""
import sys
from kombu.exceptions import OperationalError
from {worker.PACKAGE}.tasks import app
try:
    sent = app.tasks["where"].apply_async(lane=sys.argv[1])
except OperationalError as error:
    sys.exit(str(error))
print("ran in", sent.get(timeout=60))
"""


class Started(Project):
    """A project whose processes are started in every way that there is."""

    def __init__(self, folder: Path, url: str, **variables: str) -> None:
        folder.mkdir()
        super().__init__(folder, LANES, url)
        self.variables |= variables
        self.environment |= variables
        self.beaten = folder / "beaten"
        self.others: list[Process] = []  # all that were started but workers
        with (folder / worker.PACKAGE / "celery.py").open("a", encoding="utf-8") as app:
            often = {"task": "light.note", "schedule": 0.5, "args": [str(self.beaten)]}
            app.write(own_scheduler({"note": often | {"options": {"lane": "own"}}}))
        (folder / "supervised.toml").write_text(SUPERVISED, encoding="utf-8")

    def command(self, how: str, *options: str) -> list[str]:
        """The command line of a worker that is started so; `options` are Celery's."""
        python = [sys.executable, "-m"]
        if how == "own":
            return [*python, worker.PACKAGE, "worker", "own"]
        if how == "supervised":
            lanes = f"LANES_FILE={self.folder / 'supervised.toml'}"
            return ["env", lanes, *python, worker.PACKAGE, "workers"]
        return [
            *(*python, "celery", "-A", worker.PACKAGE, *options, "worker"),
            *("-Q", "plain_tasks", "-n", "plain-1@%h", "-c", "1", "-l", "INFO"),
        ]

    @contextmanager
    def at_work(self, *hows: str, options: tuple[str, ...] = ()) -> Iterator[dict[str, Process]]:
        """Workers that were started so, ready."""
        commands = {how: self.command(how, *options) for how in hows}
        with processes(commands, self.folder, self.environment) as self.started:
            yield self.started
            for how, process in self.started.items():
                if how != "supervised":  # whose workers are in sessions of their own
                    process.kill()  # at once: how a worker stops is for other tests

    def start(self, *command: str) -> Process:
        """Start any command; it is ended with the project."""
        name = f"other-{len(self.others)}"
        self.others.append(Process(name, list(command), self.folder, self.environment))
        return self.others[-1]

    def send(self, lane: str = "own") -> Process:
        """Start a sender, which waits for its result."""
        return self.start(sys.executable, "-c", SENDER, lane)

    def celery(self, *arguments: str) -> Process:
        """Start one of Celery's commands."""
        return self.start(sys.executable, "-m", "celery", "-A", worker.PACKAGE, *arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.others:
            if alive(process):
                process.kill()

    def beats(self) -> int:
        """Have beat run until a task that it sent has run; returns how often it has."""
        before = _lines(self.beaten)
        beat = self.celery("beat", *SCHEDULER)
        wait_until(lambda: _lines(self.beaten) > before or not alive(beat), "a task of beat's")
        assert alive(beat), beat.log
        beat.end()
        return _lines(self.beaten) - before

    @property
    def output(self) -> str:
        """All that the processes have printed."""
        return "".join(path.read_text(errors="replace") for path in self.folder.glob("*.log"))


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def finished(process: Process) -> tuple[int, str]:
    """The exit code and the output of a process that ends by itself."""
    return process.process.wait(PATIENCE), process.log


def workers_of(status: str) -> dict[str, int]:
    """How many workers each lane has, as `status --json` says."""
    return {lane["lane"]: lane["workers"] for lane in json.loads(status)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("connecting")


@pytest.fixture(scope="module")
def certificates(folder: Path) -> Certificates:
    return Certificates(folder / "certificates")


@contextmanager
def _speaking_tls(folder: Path, certificates: Certificates, wants: str) -> Iterator[int]:
    port = free_port()
    options = (*certificates.of_server(port, wants=wants), "--requirepass", PASSWORD)
    with running(folder, *options, binary=REDIS, password=PASSWORD):
        yield port


@pytest.fixture(scope="module")
def tls(folder: Path, certificates: Certificates) -> Iterator[int]:
    """The port of a Redis that speaks TLS, and wants a password."""
    with _speaking_tls(folder / "tls", certificates, "optional") as port:
        yield port


@pytest.fixture(scope="module")
def strict(folder: Path, certificates: Certificates) -> Iterator[int]:
    """The port of one that wants a certificate of its clients, too."""
    with _speaking_tls(folder / "strict", certificates, "yes") as port:
        yield port


@pytest.fixture(scope="module")
def locked(folder: Path) -> Iterator[Server]:
    """A Valkey that wants a password."""
    with running(folder / "locked", "--requirepass", PASSWORD, password=PASSWORD) as server:
        yield server


# TLS


class OverTls(Started):
    """Every kind of process of a project at work, over a wire that is watched."""

    wire: Wire


@pytest.fixture(scope="module")
def over_tls(folder: Path, tls: int, certificates: Certificates) -> Iterator[OverTls]:
    with relay(tls) as wire:
        url = f"rediss://{login()}127.0.0.1:{wire.port}/0"
        trusted = {"SSL_CERT_FILE": str(certificates.authority)}
        with OverTls(folder / "over-tls", url, **trusted) as project:
            project.wire = wire
            with project.at_work(*WORKERS):
                yield project


def assert_sealed(project: Started, wire: Wire) -> None:
    """That nothing went over the wire in clear so far, and that no output tells a secret."""
    assert sum(map(bool, wire.sent)) > len(project.started)
    assert not wire.in_clear()
    assert not leaks(project.output)


@pytest.mark.parametrize("how", WORKERS)
def test_a_worker_runs_tasks_over_tls_however_it_is_started(over_tls: OverTls, how: str) -> None:
    """Seen before: Celery read BROKER_URL again, each worker sent the password in clear, and none
    became ready.
    """
    assert finished(over_tls.send(how)) == (0, f"ran in {how}\n")
    assert_sealed(over_tls, over_tls.wire)


def test_beat_sends_over_tls(over_tls: OverTls) -> None:
    """Seen before: as the workers."""
    assert over_tls.beats()
    assert_sealed(over_tls, over_tls.wire)


def test_commands_and_remote_control_work_over_tls(over_tls: OverTls) -> None:
    """Seen before: `status` spoke TLS, Celery's own command the password in clear."""
    ping = over_tls.celery("inspect", "ping", "--timeout", "2")
    status = over_tls.run("status", "--json")
    assert (status.returncode, status.stderr) == (0, "")
    assert workers_of(status.stdout) == dict.fromkeys(WORKERS, 1)
    code, answer = finished(ping)
    assert (code, answer.count("pong")) == (0, len(WORKERS)), answer
    assert_sealed(over_tls, over_tls.wire)


def test_a_server_may_want_a_certificate_of_its_clients(
    folder: Path, strict: int, certificates: Certificates
) -> None:
    with relay(strict) as wire:
        url = f"rediss://{login()}127.0.0.1:{wire.port}/0?{certificates.of_client}"
        with Started(folder / "certified", url) as project, project.at_work("own"):
            assert finished(project.send()) == (0, "ran in own\n")
            assert_sealed(project, wire)
        url = f"rediss://{login()}127.0.0.1:{wire.port}/0?ssl_ca_certs={certificates.authority}"
        status = Started(folder / "uncertified", url).run("status")
    assert (status.returncode, status.stderr) == (1, line_of(url, UNCERTIFIED))


# A Unix socket


def test_a_lane_behind_a_unix_socket_works_and_survives_an_outage(folder: Path) -> None:
    """Seen before: kombu's own transport, and the worker ended at its first message."""
    path = folder / "s"  # a socket's path has at most 107 characters
    options = ("--unixsocket", str(path), "--requirepass", PASSWORD)
    with ExitStack() as stack:
        server = stack.enter_context(running(folder / "socket", *options, password=PASSWORD))
        url = f"redis+socket://{login()}{path}"
        project = stack.enter_context(Started(folder / "by-socket", url))
        workers = stack.enter_context(project.at_work("own", "plain"))
        for how in workers:
            assert finished(project.send(how)) == (0, f"ran in {how}\n")
        server.restart(away=1.0)
        for how, process in workers.items():
            assert finished(project.send(how)) == (0, f"ran in {how}\n")
            assert alive(process), process.log
            assert process.log.count("trying until it answers") <= 2, process.log
    assert not leaks(project.output)


# One rule for what the environment says


def _connections(server: Server) -> int:
    return int(server.redis.info("stats")["total_connections_received"])


def test_a_credential_is_what_every_process_goes_by(folder: Path, locked: Server) -> None:
    """Whatever other variables, and Celery's own options, say.

    Seen before: sender and `status` went by the file, and every worker by the variable.
    """
    credentials = folder / "credentials"
    credentials.mkdir()
    (credentials / "BROKER_URL").write_text(f"redis://{login()}127.0.0.1:{locked.port}/0\n")
    with ExitStack() as stack:
        other = stack.enter_context(running(folder / "other"))
        names = ("BROKER_URL", "CELERY_BROKER_URL", "CELERY_BROKER_READ_URL")
        names += ("CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND")
        variables = dict.fromkeys(names, other.url)
        folder /= "by-credential"
        project = stack.enter_context(Started(folder, other.url, **variables))
        project.environment["CREDENTIALS_DIRECTORY"] = str(credentials)
        before = _connections(other)
        workers = stack.enter_context(
            project.at_work(*WORKERS, options=("-b", f"{other.url[:-1]}7"))
        )
        senders = {how: project.send(how) for how in WORKERS}
        for how, sender in senders.items():
            assert finished(sender) == (0, f"ran in {how}\n")
        assert project.beats()
        status = project.run("status", "--json")
        assert workers_of(status.stdout) == dict.fromkeys(WORKERS, 1)
        assert _connections(other) == before
        assert (
            "plain | --broker and CELERY_BROKER_URL are not used: BROKER_URL says where the broker "
            f"is, redis://:***@127.0.0.1:{locked.port}/0\n"
        ) in workers["plain"].log
    assert not leaks(project.output)


# Sentinels


def test_sentinels_and_servers_with_passwords_and_tls_can_be_used(
    folder: Path, certificates: Certificates, strict: int
) -> None:
    """Seen before: "No master found", whatever was set."""
    port = free_port()
    (folder / "sentinel").mkdir()
    (folder / "sentinel" / "sentinel.conf").write_text(
        f"sentinel monitor mymaster 127.0.0.1 {strict} 1\n"
        f'sentinel auth-pass mymaster "{PASSWORD}"\nrequirepass "{SENTINEL_PASSWORD}"\n'
    )
    options = ("sentinel.conf", "--sentinel", *certificates.of_server(port, wants="yes"))
    with ExitStack() as stack:
        stack.enter_context(
            running(folder / "sentinel", *options, binary=REDIS, password=SENTINEL_PASSWORD)
        )
        url = f"sentinel://{login()}127.0.0.1:{port}/0?ssl=true&{certificates.of_client}"
        refusal = "the Sentinels refuse SENTINEL_PASSWORD; correct it"
        with Started(folder / "refused", url, SENTINEL_PASSWORD=WRONG_PASSWORD) as project:
            assert_refused_at_once(project, line_of(url, refusal))
        project = stack.enter_context(
            Started(folder / "by-sentinel", url, SENTINEL_PASSWORD=SENTINEL_PASSWORD)
        )
        stack.enter_context(project.at_work("own"))
        assert finished(project.send()) == (0, "ran in own\n")
    assert not leaks(project.output)


# What cannot be used


def assert_refused_at_once(project: Started, line: str) -> None:
    """That sender, worker and command end, with this line and no other."""
    started = {"": project.send(), "own | ": project.start(*project.command("own"))}
    status = project.run("status")
    assert (status.returncode, status.stdout, status.stderr) == (1, "", line)
    for lane, process in started.items():
        assert finished(process) == (1, f"{lane}{line}")
    assert not leaks(project.output + status.stderr)


def assert_waited_for(project: Started, line: str) -> None:
    """That sender and command end with this line, and the worker says it once and waits."""
    worker, sender = project.start(*project.command("own")), project.send()
    status = project.run("status")
    assert (status.returncode, status.stdout, status.stderr) == (1, "", line)
    assert finished(sender) == (1, line)
    worker.await_log(line.rstrip())
    time.sleep(1.2)  # in which it is tried twice, at the least
    assert alive(worker), worker.log
    (said,) = [each for each in worker.log.splitlines() if "BROKER_URL" in each]
    assert said.startswith("own | ")
    assert said.endswith(f"{line.rstrip()}; trying until it answers")
    assert "Traceback" not in worker.log
    assert not leaks(project.output + status.stderr)


#: URL, and what is said of it.
FINAL = {
    "wrong password": (
        f"redis://{login(WRONG_PASSWORD)}127.0.0.1:{{locked}}/0",
        "the server refuses the password; correct it",
    ),
    "no password": (
        "redis://127.0.0.1:{locked}/0",
        "the server wants a password; write it as in redis://:password@host:6379/0",
    ),
    "no such database": (
        f"redis://{login()}127.0.0.1:{{locked}}/99",
        "there is no database 99; take a lower number, or raise `databases`",
    ),
    "a Cluster": ("redis://127.0.0.1:{cluster}/0", CLUSTER),
}
PASSING = {
    "nothing listens": (
        "redis://127.0.0.1:{free}/0",
        "nothing listens there; start the server, or correct the URL",
    ),
    "plain to a TLS port": (
        f"redis://{login()}127.0.0.1:{{tls}}/0",
        "the server ends the connection; if it speaks TLS, write rediss://, and else see its log",
    ),
    "an unknown authority": (f"rediss://{login()}127.0.0.1:{{tls}}/0", UNTRUSTED),
}


def line_of(url: str, what: str) -> str:
    """What every process says of a URL."""
    shown = re.sub("//.*@", "//:***@", url).partition("?")[0]
    return f"BROKER_URL ({shown}): {what}\n"


@pytest.fixture
def places(locked: Server, tls: int) -> dict[str, int]:
    """The ports that the URLs of the cases name."""
    return {"locked": locked.port, "tls": tls, "free": free_port()}


@pytest.mark.parametrize("case", FINAL, ids=[name.replace(" ", "-") for name in FINAL])
def test_what_waiting_does_not_mend_ends_each_process_with_one_line(
    places: dict[str, int], case: str, tmp_path: Path
) -> None:
    """Seen before: three lines a second from the worker, for ever, and tracebacks from senders."""
    url, what = FINAL[case]
    with ExitStack() as stack:
        if case == "a Cluster":
            server = stack.enter_context(running(tmp_path / "c", "--cluster-enabled", "yes"))
            places["cluster"] = server.port
        url = url.format(**places)
        project = stack.enter_context(Started(tmp_path / "project", url, RESULT_URL=""))
        assert_refused_at_once(project, line_of(url, what))


@pytest.mark.parametrize("case", PASSING, ids=[name.replace(" ", "-") for name in PASSING])
def test_what_may_pass_is_waited_for_by_a_worker_in_one_line(
    places: dict[str, int], case: str, tmp_path: Path
) -> None:
    """Seen before: a line each second."""
    url, what = PASSING[case]
    url = url.format(**places)
    with Started(tmp_path / "project", url, RESULT_URL="") as project:
        assert_waited_for(project, line_of(url, what))


# Two workers of one name


def test_a_worker_takes_nothing_from_a_living_one_of_its_name(folder: Path, locked: Server) -> None:
    """Where it may not ask who is connected, too, as with managed servers.

    Seen before: it took a running task from the other, and ran it a second time.
    """
    locked.redis.flushall()
    user = ("tenant", "on", f">{PASSWORD}", "~*", "&*", "+@all", "-client|list")
    locked.redis.execute_command("ACL", "SETUSER", *user)
    url = f"redis://{login(user='tenant')}127.0.0.1:{locked.port}/0"
    begun, go = folder / "begun", folder / "go"
    with ExitStack() as stack:
        project = stack.enter_context(Started(folder / "twins", url))
        first = stack.enter_context(project.at_work("own"))["own"]
        stack.callback(go.touch)
        arguments = [str(go), str(begun)]
        code = f"from {worker.PACKAGE}.tasks import hold_until as it; it.delay(*{arguments})"
        assert finished(project.start(sys.executable, "-c", code)) == (0, "")
        wait_until(begun.exists, "the first to run it")
        second = project.start(*project.command("own"))
        second.await_log(" ready.")
        # What it took at its start, it would have begun by now, with its one slot free.
        sender = project.send()
        wait_until(lambda: not alive(sender) or _lines(begun) > 1, "the second to run something")
        assert _lines(begun) == 1
        assert finished(sender) == (0, "ran in own\n")
        assert "another worker is called own-1@" in second.log
        assert locked.redis.hlen("lanes:own:leased") == 1
        go.touch()
        wait_until(lambda: not locked.redis.hlen("lanes:own:leased"), "it to end")
        assert alive(first), first.log
    assert _lines(begun) == 1
