import pytest
from harness import free_port, running_broker, something_else

from {{ cookiecutter.package_name }}.lanes.broker import is_missing
from {{ cookiecutter.package_name }}.lanes.errors import SettingsError


def refusal(url: str) -> str:
    with pytest.raises(SettingsError) as caught:
        is_missing(url)
    return str(caught.value)


def test_a_free_local_port_means_it_is_missing() -> None:
    assert is_missing(f"redis://localhost:{free_port()}/0")


def test_one_that_answers_is_not_missing() -> None:
    with running_broker() as broker:
        assert not is_missing(broker.url)


def test_one_that_wants_a_password_is_not_missing_either() -> None:
    with running_broker() as broker:
        broker.redis.config_set("requirepass", "secret")
        assert not is_missing(broker.url)


@pytest.mark.parametrize(
    "url", ["redis://broker.example/0", "rediss://localhost/0", "redis+socket:///run/v.sock"]
)
def test_one_that_is_not_local_or_not_plain_is_never_ours_to_start(url: str) -> None:
    assert not is_missing(url)


def test_a_port_that_something_else_has_taken_is_told() -> None:
    with something_else() as port:
        assert refusal(f"redis://127.0.0.1:{port}/0") == (
            f"BROKER_URL: port {port} on 127.0.0.1 is taken by something that is not Redis or "
            "Valkey; stop it, or set BROKER_URL to another port, such as "
            f"redis://localhost:{port + 1}/0"
        )


def test_ours_cannot_stand_in_for_one_with_a_password() -> None:
    port = free_port()
    assert refusal(f"redis://:secret@localhost:{port}/0") == (
        f"BROKER_URL: nothing answers at redis://:***@localhost:{port}/0, and the embedded "
        "Valkey has no password; start your own, or leave the password out"
    )
