from dataclasses import replace
from pathlib import Path

import pytest

from acme_tasks.lanes.errors import SettingsError
from acme_tasks.lanes.settings import Log, Settings, load, load_log, parse


def test_an_empty_environment_means_a_local_broker() -> None:
    assert load({}) == Settings(
        broker=parse("BROKER_URL", "redis://localhost:6379/0"),
        results=parse("RESULT_URL", "redis://localhost:6379/1"),
        lanes_file=None,
    )


@pytest.mark.parametrize("url", ["", " \n"], ids=["empty", "blank"])
def test_an_empty_broker_url_means_the_local_one_too(url: str) -> None:
    assert load({"BROKER_URL": url}) == load({})


RESULTS = {
    "redis": ("redis://host:6380/5", "redis://host:6380/1"),
    "redis without a database": ("redis://host", "redis://host:6379/1"),
    "a password": ("redis://user:secret@host/0", "redis://user:***@host:6379/1"),
    "TLS": ("rediss://host/0?ssl_cert_reqs=none", "rediss://host:6379/1"),
    "a socket": (
        "redis+socket:///run/valkey.sock",
        "redis+socket:///run/valkey.sock?virtual_host=1",
    ),
    "a socket with a database": (
        "redis+socket:///run/valkey.sock?virtual_host=0",
        "redis+socket:///run/valkey.sock?virtual_host=1",
    ),
    "a Sentinel": ("sentinel://:secret@one:26379/3", "sentinel://:***@one:26379/1"),
    "Sentinels": (
        "sentinel://:secret@one:26379/0;sentinel://:secret@two:26379",
        "sentinel://:***@one:26379/1;sentinel://:***@two:26379/1",
    ),
}


@pytest.mark.parametrize(("broker", "results"), RESULTS.values(), ids=RESULTS)
def test_results_are_kept_in_the_brokers_database_1(broker: str, results: str) -> None:
    settings = load({"BROKER_URL": broker})
    assert settings.results == replace(settings.broker, variable="RESULT_URL", database=1)
    assert settings.results.shown == results


def test_results_can_be_kept_elsewhere() -> None:
    results = load({"RESULT_URL": "redis://other/3"}).results
    assert results == parse("RESULT_URL", "redis://other:6379/3")


@pytest.mark.parametrize("url", ["", "\n"], ids=["empty", "blank"])
def test_an_empty_result_url_turns_results_off(url: str) -> None:
    assert load({"RESULT_URL": url}).results is None


def test_a_lanes_file_can_be_named() -> None:
    assert load({"LANES_FILE": "/etc/lanes.toml"}).lanes_file == Path("/etc/lanes.toml")


def test_a_credential_file_comes_before_the_variable(tmp_path: Path) -> None:
    (tmp_path / "BROKER_URL").write_text("redis://:secret@host/0\n", encoding="utf-8")
    settings = load({"CREDENTIALS_DIRECTORY": str(tmp_path), "BROKER_URL": "redis://other/0"})
    assert settings.broker == parse("BROKER_URL", "redis://:secret@host/0")
    assert settings.results == parse("RESULT_URL", "redis://:secret@host/1")


def test_an_empty_credential_file_turns_results_off(tmp_path: Path) -> None:
    (tmp_path / "RESULT_URL").write_text("\n", encoding="utf-8")
    directory = {"CREDENTIALS_DIRECTORY": str(tmp_path), "BROKER_URL": "redis://host/0"}
    assert load(directory | {"RESULT_URL": "redis://other/0"}).results is None


@pytest.mark.parametrize("text", ["", "\n", None], ids=["empty", "a line end", "not there"])
@pytest.mark.parametrize("variable", [{}, {"BROKER_URL": ""}], ids=["unset", "empty variable"])
def test_where_credentials_are_used_no_broker_is_taken_for_granted(
    text: str | None, variable: dict[str, str], tmp_path: Path
) -> None:
    """Seen before: localhost:6379, in silence, and with it another's tasks."""
    path = tmp_path / "BROKER_URL"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load({"CREDENTIALS_DIRECTORY": str(tmp_path)} | variable)
    assert str(caught.value) == (
        f"BROKER_URL: {path} is empty or not there (expected the broker's URL in it, or in the "
        "variable: where credentials are used, there is no default)"
    )


@pytest.mark.parametrize("directory", ["", "nowhere"], ids=["of others", "that is not there"])
def test_a_directory_without_the_credential_leaves_the_variable(
    directory: str, tmp_path: Path
) -> None:
    (tmp_path / "SOMETHING").touch()
    settings = load(
        {"CREDENTIALS_DIRECTORY": str(tmp_path / directory), "BROKER_URL": "redis://other/0"}
    )
    assert settings.broker == parse("BROKER_URL", "redis://other/0")


def test_a_credential_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "BROKER_URL"
    path.write_bytes(b"redis://:s\xff@host/0")
    with pytest.raises(SettingsError) as caught:
        load({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert str(caught.value) == f"BROKER_URL: {path}: not UTF-8 text"


def test_a_credential_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "RESULT_URL"
    path.mkdir()  # a mode would not stop root
    with pytest.raises(SettingsError) as caught:
        load({"CREDENTIALS_DIRECTORY": str(tmp_path), "BROKER_URL": "redis://host/0"})
    assert str(caught.value) == f"RESULT_URL: {path}: Is a directory"


def test_what_sentinels_ask_for_comes_from_variables_of_its_own(tmp_path: Path) -> None:
    word = " p@ss/w#rd "
    (tmp_path / "SENTINEL_PASSWORD").write_text(f"{word}\n", encoding="utf-8")
    settings = load(
        {
            "CREDENTIALS_DIRECTORY": str(tmp_path),
            "BROKER_URL": "sentinel://app:secret@one/0",
            "SENTINEL_MASTER": "main",
            "SENTINEL_USERNAME": "watcher",
            "SENTINEL_PASSWORD": "other",
        }
    )
    broker = settings.broker
    assert (broker.username, broker.password) == ("app", "secret")
    assert (broker.master, broker.sentinel_username) == ("main", "watcher")
    assert broker.sentinel_password == word
    assert settings.results
    assert settings.results.sentinel_password == word


def test_a_user_of_the_sentinels_needs_a_password() -> None:
    with pytest.raises(SettingsError) as caught:
        load({"BROKER_URL": "sentinel://one/0", "SENTINEL_USERNAME": "watcher"})
    assert str(caught.value) == (
        "SENTINEL_USERNAME: a user needs a password; set SENTINEL_PASSWORD"
    )


def test_workers_log_from_info_on_and_as_text_unless_the_environment_says_otherwise() -> None:
    assert load({}).log == load({"LOG_LEVEL": " ", "LOG_FORMAT": ""}).log == Log("INFO", "text")


@pytest.mark.parametrize("level", ["DEBUG", "info", "Warning", "ERROR", "critical"])
@pytest.mark.parametrize("form", ["text", "JSON"])
def test_a_level_and_a_format_of_logs_may_be_in_any_case_of_letters(level: str, form: str) -> None:
    said = load_log({"LOG_LEVEL": level, "LOG_FORMAT": form})
    assert said == Log(level.upper(), form.lower())


LEVELS = "(expected DEBUG, INFO, WARNING, ERROR or CRITICAL; left out, it is INFO)"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"LOG_LEVEL": "loud"}, f"LOG_LEVEL: 'loud' {LEVELS}"),
        ({"LOG_LEVEL": "10", "LOG_FORMAT": "json"}, f"LOG_LEVEL: '10' {LEVELS}"),
        (
            {"LOG_FORMAT": "logfmt"},
            "LOG_FORMAT: 'logfmt' (expected text or json; left out, it is text)",
        ),
    ],
    ids=["a level", "a number", "a format"],
)
def test_another_level_or_format_is_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load(variables)
    assert str(refused.value) == message
