"""For tests of how a server is reached: certificates, a wire that is watched, what is secret."""

import contextlib
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from redis import Redis
from support import Server

REDIS = shutil.which("redis-server")
OPENSSL = shutil.which("openssl")

NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")

#: With characters that must be escaped, and no four in a row that a log has by chance.
PASSWORD = "Zq7X/w9Kv@2Jt:5Yb#8Gm"  # noqa: S105 - what the tests look for
SENTINEL_PASSWORD = "Hx3W+p6Rn&4Vd?9Ls%7Cf"  # noqa: S105
WRONG_PASSWORD = "Tg8M/b2Xy@6Qh:3Nw#9Dk"  # noqa: S105


def login(password: str = PASSWORD, user: str = "") -> str:
    """What stands before the host in a URL."""
    return f"{user}:{quote(password, safe='')}@"


def leaks(text: str) -> list[str]:
    """The pieces of four characters of any password, plain or escaped, that are in `text`."""
    secrets = (PASSWORD, SENTINEL_PASSWORD, WRONG_PASSWORD)
    return [
        form[start : start + 4]
        for secret in secrets
        for form in (secret, quote(secret, safe=""))
        for start in range(len(form) - 3)
        if form[start : start + 4] in text
    ]


class Certificates:
    """An authority of the test's own, and what it has signed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.authority = folder / "ca.crt"
        self._run(
            *("req", "-x509", "-days", "2", "-nodes", "-subj", "/CN=authority", *NEW_KEY),
            *("-keyout", "ca.key", "-out", "ca.crt"),
        )
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
        for name in ("server", "client"):
            self._run(
                *f"req -new -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr".split(),
                *NEW_KEY,
            )
            self._run(
                *f"x509 -req -days 2 -in {name}.csr -CA ca.crt -CAkey ca.key".split(),
                *f"-CAcreateserial -extfile names -out {name}.crt".split(),
            )

    def _run(self, *arguments: str) -> None:
        subprocess.run([str(OPENSSL), *arguments], cwd=self.folder, check=True, capture_output=True)

    def of_server(self, port: int, *, wants: str) -> tuple[str, ...]:
        """Options of a server that speaks TLS at this port, to other servers, too.

        Args:
            wants: certificates of clients: "yes", "optional" or "no".
        """
        return (
            *("--tls-port", str(port), "--tls-auth-clients", wants, "--tls-replication", "yes"),
            *("--tls-cert-file", str(self.folder / "server.crt")),
            *("--tls-key-file", str(self.folder / "server.key")),
            *("--tls-ca-cert-file", str(self.authority)),
        )

    @property
    def of_client(self) -> str:
        """Options of a URL."""
        client = self.folder / "client"
        return f"ssl_ca_certs={self.authority}&ssl_certfile={client}.crt&ssl_keyfile={client}.key"


@contextmanager
def running(
    folder: Path, *options: str, binary: str | None = None, password: str | None = None
) -> Iterator[Server]:
    """A server with these options, for as long as the block."""
    server = Server(folder, binary and Path(binary), *options)
    server.redis = Redis(port=server.port, password=password)
    try:
        yield server.start()
    finally:
        server.close()


class Wire:
    """All that clients sent by way of a relay, by connection."""

    def __init__(self) -> None:
        self.port = 0
        self.sent: list[bytearray] = []
        #: Since when, in seconds since 1970, the relay's own end of a connection has had its port,
        #: by which the server knows it. The system gives a port again to who comes later.
        self.ports: list[tuple[float, int]] = []

    def in_clear(self) -> list[bytes]:
        """The begin of each connection that did not begin with a TLS handshake, or told a secret.

        A handshake's record is of type 22, of version 3.x.
        """
        secrets = [each.encode() for each in (PASSWORD, SENTINEL_PASSWORD)]
        return [
            bytes(sent[:40])
            for sent in self.sent
            if sent
            and (not sent.startswith(b"\x16\x03") or any(secret in sent for secret in secrets))
        ]


@contextmanager
def relay(port: int) -> Iterator[Wire]:
    """A TCP relay in front of a port of this machine, which keeps what clients send."""
    wire = Wire()

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            sent = bytearray()
            wire.sent.append(sent)
            with socket.create_connection(("127.0.0.1", port)) as server:
                wire.ports.append((time.time(), server.getsockname()[1]))
                back = threading.Thread(target=_pump, args=(server, self.request, bytearray()))
                back.start()
                _pump(self.request, server, sent)
                back.join()

    class Relay(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Relay(("127.0.0.1", 0), Connection) as server:
        wire.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}).start()
        try:
            yield wire
        finally:
            server.shutdown()


def _pump(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            kept += data
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
