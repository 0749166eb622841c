from pathlib import Path

import pytest

from {{ cookiecutter.package_name }}.lanes.errors import SettingsError
from {{ cookiecutter.package_name }}.lanes.settings import Settings, load, redacted


def test_an_empty_environment_means_a_local_broker() -> None:
    assert load({}) == Settings(
        broker_url="redis://localhost:6379/0",
        result_url="redis://localhost:6379/1",
        lanes_file=None,
        sentinel_master="mymaster",
    )


def test_an_empty_broker_url_means_the_local_one_too() -> None:
    assert load({"BROKER_URL": ""}) == load({})


RESULTS = {
    "redis": ("redis://host:6380/5", "redis://host:6380/1"),
    "redis without a database": ("redis://host", "redis://host/1"),
    "a password": ("redis://user:secret@host/0", "redis://user:secret@host/1"),
    "TLS": (
        "rediss://host/0?ssl_cert_reqs=none",
        "rediss://host/1?ssl_cert_reqs=none",
    ),
    "TLS that does not say": (
        "rediss://host/0",
        "rediss://host/1?ssl_cert_reqs=required",
    ),
    "a socket": (
        "redis+socket:///run/valkey.sock",
        "redis+socket:///run/valkey.sock?virtual_host=1",
    ),
    "a socket with a database": (
        "redis+socket:///run/valkey.sock?virtual_host=0",
        "redis+socket:///run/valkey.sock?virtual_host=1",
    ),
    "a Sentinel": ("sentinel://:secret@one:26379/3", "sentinel://:secret@one:26379/1"),
    "Sentinels": (
        "sentinel://:secret@one:26379/0;sentinel://:secret@two:26379",
        "sentinel://:secret@one:26379/1;sentinel://:secret@two:26379/1",
    ),
}


@pytest.mark.parametrize(("broker", "results"), RESULTS.values(), ids=RESULTS)
def test_results_are_kept_in_the_brokers_database_1(broker: str, results: str) -> None:
    assert load({"BROKER_URL": broker}).result_url == results


def test_results_can_be_kept_elsewhere() -> None:
    assert load({"RESULT_URL": "redis://other/3"}).result_url == "redis://other/3"


def test_an_empty_result_url_turns_results_off() -> None:
    assert load({"RESULT_URL": ""}).result_url is None


@pytest.mark.parametrize("name", ["BROKER_URL", "RESULT_URL"])
def test_tls_checks_certificates_unless_told_otherwise(name: str) -> None:
    settings = load({name: "rediss://host/0?socket_timeout=5"})
    url = settings.broker_url if name == "BROKER_URL" else settings.result_url
    assert url == "rediss://host/0?socket_timeout=5&ssl_cert_reqs=required"


def test_a_credential_file_comes_before_the_variable(tmp_path: Path) -> None:
    (tmp_path / "BROKER_URL").write_text("redis://:secret@host/0\n", encoding="utf-8")
    settings = load({"CREDENTIALS_DIRECTORY": str(tmp_path), "BROKER_URL": "redis://other/0"})
    assert settings.broker_url == "redis://:secret@host/0"
    assert settings.result_url == "redis://:secret@host/1"


def test_a_directory_without_the_credential_leaves_the_variable(tmp_path: Path) -> None:
    settings = load({"CREDENTIALS_DIRECTORY": str(tmp_path), "BROKER_URL": "redis://other/0"})
    assert settings.broker_url == "redis://other/0"


def test_a_lanes_file_can_be_named() -> None:
    assert load({"LANES_FILE": "/etc/lanes.toml"}).lanes_file == Path("/etc/lanes.toml")


def test_sentinels_may_know_the_server_by_another_name() -> None:
    assert load({"SENTINEL_MASTER": "main"}).sentinel_master == "main"
    assert load({"SENTINEL_MASTER": ""}).sentinel_master == "mymaster"


UNUSABLE = {
    "one of several": (
        "sentinel://one:26379;two:26379",
        "two://... (expected one of redis://, rediss://, redis+socket://, sentinel://)",
    ),
    "another broker": (
        "amqp://user:secret@host//",
        "amqp://... (expected one of redis://, rediss://, redis+socket://, sentinel://)",
    ),
    "no scheme": (
        "localhost",
        "no scheme (expected one of redis://, rediss://, redis+socket://, sentinel://)",
    ),
    "a host for a scheme": (
        "localhost:6379",
        "localhost://... (expected one of redis://, rediss://, redis+socket://, sentinel://)",
    ),
    "a port that is no number": (
        "redis://:secret@host:six/0",
        (
            "not a URL (Port could not be cast to integer value as 'six'; "
            "expected redis://localhost:6379/0)"
        ),
    ),
    # Seen before: a traceback of kombu's.
    "a database that is no number": (
        "redis://:secret@host/tasks",
        "database 'tasks' (expected a number, as in /0)",
    ),
    "a port out of range": (
        "redis://host:99999/0",
        "not a URL (Port out of range 0-65535; expected redis://localhost:6379/0)",
    ),
}


@pytest.mark.parametrize("name", ["BROKER_URL", "RESULT_URL"])
@pytest.mark.parametrize(("url", "said"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_url_that_cannot_be_used_is_told_without_its_password(
    name: str, url: str, said: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        load({name: url})
    assert str(caught.value) == f"{name}: {said}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:secret@host:6379/0", "redis://user:***@host:6379/0"),
        ("redis://:secret@host/0", "redis://:***@host/0"),
        ("redis://:se@cret@host/0", "redis://:***@host/0"),
        ("redis://host/0", "redis://host/0"),
        (
            "sentinel://:secret@one:26379;sentinel://two:26379;sentinel://user:secret@three:26379",
            "sentinel://:***@one:26379;sentinel://two:26379;sentinel://user:***@three:26379",
        ),
    ],
    ids=["user and password", "password", "password with @", "none", "several"],
)
def test_a_shown_url_has_no_password(url: str, shown: str) -> None:
    assert redacted(url) == shown
