"""Connections to one Redis: made from its `Endpoint` alone, each wait with an end.

Redis, Valkey, TLS, a Unix socket, or whichever server its Sentinels call the master.
"""

import functools
import os
from collections.abc import Callable
from time import monotonic
from typing import Any

import redis
from redis import exceptions
from redis.connection import Connection, SSLConnection, UnixDomainSocketConnection

from ..endpoint import Endpoint
from ..timeouts import CLOCK, CONNECT, HEALTH, KEEPALIVE, REPLY, SILENT
from .clock import Clock
from .refusals import check, explain
from .sentinel import Sentinels

_MOST = 10_000  # connections of one pool: a web server's threads, each with its own


class Server:
    """One Redis, as this process uses it: its connections, its clock, its Sentinels."""

    def __init__(
        self, endpoint: Endpoint, *, connect: float = CONNECT, reply: float = REPLY
    ) -> None:
        """`connect` and `reply` are the seconds of the two waits; see timeouts.py."""
        self._kept: list[Any] = []  # connections that nobody uses, for `call`
        self.endpoint = endpoint
        self._connect, self._reply = connect, reply
        self._stopping = False
        self._silent_until = 0.0  # monotonic seconds; what a process that stops goes by
        self.sentinels: Sentinels | None = None
        if endpoint.scheme == "sentinel":
            login = {
                "username": endpoint.sentinel_username,
                "password": endpoint.sentinel_password,
                "ssl": bool(endpoint.sentinel_tls),
                **endpoint.sentinel_tls,
            }
            self.sentinels = Sentinels(endpoint.hosts, endpoint.master, login)
        self.clock = Clock(self._time)

    def __repr__(self) -> str:
        return f"<{self.endpoint.shown}>"

    def __json__(self) -> str:
        """Called by kombu for what a worker tells of its connection: `inspect stats`."""
        return str(self.endpoint.shown)

    def pool(
        self, *, on_disconnect: Callable[[Any], None] | None = None, reply: float | None = None
    ) -> redis.ConnectionPool:
        """A pool of connections, none of them open yet.

        Args:
            on_disconnect: told of each connection that an event loop polls, when it closes: such a
                one is not opened anew behind the loop's back.
            reply: seconds to wait for a reply, if not the usual.
        """
        endpoint = self.endpoint
        base: Any = _Socket if endpoint.path else _Tls if endpoint.tls else _Plain
        options: dict[str, Any] = {
            "db": endpoint.database,
            "username": endpoint.username,
            "password": endpoint.password,
            "socket_timeout": reply or self._reply,
            "health_check_interval": HEALTH,
            "max_connections": _MOST,
            "server": self,
            "on_disconnect": on_disconnect,
        }
        if endpoint.path:
            options["path"] = endpoint.path
        else:
            options["socket_connect_timeout"] = self._connect
            options["socket_keepalive"] = True
            options["socket_keepalive_options"] = KEEPALIVE
            options |= endpoint.tls
        return redis.ConnectionPool(connection_class=base, **options)

    @functools.cached_property
    def client(self) -> Any:
        """The client that all of this process share; it returns bytes."""
        return redis.Redis(connection_pool=self.pool())

    def call(self, *command: Any) -> Any:
        """Run one command on a kept connection, for a sender: the client's way takes twice as long.

        It is not tried again, and a connection that the server has closed meanwhile is an error.

        Returns:
            The reply, as the server said it.

        Raises:
            RedisError: when it failed or was refused; OSError likewise.
        """
        try:
            connection = self._kept.pop()
        except IndexError:
            connection = None
        if connection is None or connection.pid != os.getpid():  # its parent's, after a fork
            connection = self.client.connection_pool.make_connection()
        try:
            connection.send_command(*command)
            return connection.read_response()
        except exceptions.ResponseError:
            raise
        except BaseException:
            connection.disconnect()  # a reply that was not read may still come
            raise
        finally:
            self._kept.append(connection)

    def explain(self, error: BaseException) -> str:
        """Why it cannot be used, in one line without secrets; `error` as it was raised."""
        return explain(error, self.endpoint, within=self._reply)

    def check(self) -> None:
        """Ask it once whether it can be used.

        Raises:
            BrokerError: when it cannot, now or ever.
        """
        check(self.client, self.endpoint)

    def stop(self) -> None:
        """Note that this process was told to stop; safe in a signal's handler."""
        self._stopping = True

    def failed(self, error: Exception) -> None:
        """Note what it failed with: whether a wait has ended without a reply."""
        if isinstance(error, exceptions.TimeoutError):
            self._silent_until = monotonic() + SILENT

    def await_turn(self) -> None:
        """Wait while a fail-over is under way.

        Raises:
            ConnectionError: when that takes too long; or when this process stops, and the server
                was silent a moment ago: a stop has many steps, and waits for that once.
        """
        if self._stopping and monotonic() < self._silent_until:
            raise exceptions.ConnectionError("the server was silent a moment ago")
        if self.sentinels:
            self.sentinels.wait()

    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Where to connect to, in the order in which to try; only the master, behind Sentinels."""
        return (self.sentinels.address(),) if self.sentinels else self.endpoint.hosts

    @functools.cached_property
    def _asking(self) -> Any:
        return redis.Redis(connection_pool=self.pool(reply=CLOCK))

    def _time(self) -> float:
        seconds, microseconds = self._asking.time()
        return float(seconds + microseconds / 1e6)


class _Placed:
    """Mixin for redis-py's connections: to the first server that lets it, or to the master."""

    _sock: Any

    def __init__(
        self, *, server: Server, on_disconnect: Callable[[Any], None] | None, **options: Any
    ) -> None:
        super().__init__(**options)
        self._server, self._told = server, on_disconnect
        self._generation = -1  # of the master that it is connected to
        self._greeting = False  # within its first exchange with the server
        # What redis-py would say of itself, by CLIENT SETINFO: a right more, and two round trips.
        vars(self).update(dict.fromkeys(("lib_name", "lib_version", "driver_info")))

    def connect_check_health(self, *args: Any, **options: Any) -> None:
        """Called by redis-py whenever there is no connection yet."""
        if self._sock:
            return
        connection: Any = self  # one of redis-py's
        self._server.await_turn()
        sentinels = self._server.sentinels
        hosts = self._server.addresses() or ((None, 0),)
        for number, (host, port) in enumerate(hosts, 1):
            if host:
                connection.host, connection.port = host, port
            if sentinels:
                self._generation = sentinels.generation
            self._greeting = True
            try:
                super().connect_check_health(*args, **options)  # type: ignore[misc]
            except exceptions.AuthenticationError:
                raise
            except (exceptions.ConnectionError, exceptions.TimeoutError) as error:
                # Here, and not after the loop, where the error would lose what it came from.
                if number == len(hosts):
                    self._server.failed(error)
                    raise
            else:
                return
            finally:
                self._greeting = False

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Held during a fail-over; never sent to a server that was the master before."""
        sentinels = self._server.sentinels
        if not self._greeting:
            self._server.await_turn()
            if sentinels and self._sock and self._generation != sentinels.generation:
                self.disconnect()
                if self._told:
                    raise exceptions.ConnectionError("the master is another server now")
        super().send_packed_command(command, check_health)  # type: ignore[misc]

    def read_response(self, *args: Any, **options: Any) -> Any:
        """A server that has become a replica is not the one that was meant."""
        try:
            return super().read_response(*args, **options)  # type: ignore[misc]
        except exceptions.ReadOnlyError as error:
            self.disconnect()
            raise exceptions.ConnectionError(f"the server is a replica: {error}") from None
        except exceptions.TimeoutError as error:
            if not self._greeting:  # else the next host may answer
                self._server.failed(error)
            raise

    def disconnect(self, *args: Any, **options: Any) -> None:
        """Tells the event loop that polls it."""
        super().disconnect(*args, **options)  # type: ignore[misc]
        if self._told:
            self._told(self)


class _Plain(_Placed, Connection):
    pass


class _Tls(_Placed, SSLConnection):
    pass


class _Socket(_Placed, UnixDomainSocketConnection):
    pass
