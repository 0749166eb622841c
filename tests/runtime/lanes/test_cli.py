import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result
from harness import Project

from acme_tasks import lanes
from acme_tasks.lanes import cli, deploy
from acme_tasks.lanes.worker import PACKAGE

LANES = """
default_lane = "quick"

[lanes.slow]
expires = "90m"
[lanes.quick]
latency_slo = "250ms"

[routes]
"reports.*" = "slow"
"""


@pytest.fixture(autouse=True)
def _lanes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lanes.toml").write_text(LANES, encoding="utf-8")
    monkeypatch.setenv("LANES_FILE", str(tmp_path / "lanes.toml"))
    monkeypatch.chdir(tmp_path)


def run(*arguments: str) -> Result:
    project = deploy.Project(slug="acme", package=PACKAGE, process_managers=("supervisor",))
    return CliRunner().invoke(cli._main, arguments, prog_name="acme", obj=project)


def test_help_mentions_every_command() -> None:
    told = run("--help")
    assert told.exit_code == 0
    listed = told.stdout.partition("Commands:\n")[2].splitlines()
    assert [line.split()[0] for line in listed] == sorted(cli._main.commands)
    assert set(cli._main.commands) == {
        *("lanes", "worker", "workers", "status", "metrics", "units", "prove"),
        *("pause", "resume", "dead", "doctor", "purge", "revoke", "advise", "schedule"),
    }


@pytest.mark.parametrize(
    "name",
    [
        *cli._main.commands,
        *(f"dead {name}" for name in cli.letters.dead.commands),
        *(f"schedule {name}" for name in cli.schedule.schedule.commands),
    ],
)
def test_every_command_has_help(name: str) -> None:
    told = run(*name.split(), "--help")
    assert told.exit_code == 0
    assert told.stdout.startswith(f"Usage: acme {name} ")


def test_version_names_what_an_advisory_may_name() -> None:
    told = run("--version")
    assert told.exit_code == 0
    assert re.fullmatch(
        rf"lanes {re.escape(lanes.__version__)}, celery 5\.\S+, kombu 5\.\S+, redis-py \S+, "
        r"Python 3\.\S+\n",
        told.stdout,
    )


def test_lanes_shows_them_as_declared() -> None:
    told = run("lanes")
    assert told.exit_code == 0
    rows = [line.split() for line in told.stdout.splitlines() if "_tasks" in line]
    assert rows == [
        ["slow", "slow_tasks", "prefork", "1", "2", "10", "min", "1", "h", "1.5", "h", "3"],
        ["quick", "quick_tasks", "prefork", "1", "4", "250", "ms", "30", "s", "10", "min", "3"],
    ]
    assert told.stdout.splitlines()[-2:] == [
        "reports.* goes to slow",
        "A task that names no lane goes to quick.",
    ]


def test_worker_can_show_its_command_line() -> None:
    told = run("worker", "quick", "--instance", "2", "--print")
    assert told.exit_code == 0
    assert told.stdout.startswith(
        f"{sys.executable} -m celery --quiet -A {PACKAGE} worker --hostname=quick-2@%h "
    )


def test_a_worker_of_an_unknown_lane_is_refused() -> None:
    told = run("worker", "nope")
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr == 'no lane is called "nope" (lanes: slow, quick)\n'


def test_an_unknown_command_is_exit_2() -> None:
    told = run("wrokers")
    assert told.exit_code == 2
    assert "No such command 'wrokers'" in told.stderr


def test_units_are_checked_then_written_then_good(tmp_path: Path) -> None:
    wrote = (
        "wrote deploy/grafana/acme.json\n"
        "wrote deploy/prometheus/acme.rules.yml\n"
        "wrote deploy/supervisor/acme.conf\n"
    )
    assert run("units").stdout == wrote
    good = run("units", "--check")
    assert (good.exit_code, good.output) == (0, "")

    with (tmp_path / "lanes.toml").open("a", encoding="utf-8") as file:
        file.write("[lanes.mail]\n")
    stale = run("units", "--check")
    assert stale.exit_code == 1
    assert stale.stderr == "deploy is out of date: run `acme units`\n"
    # The dashboard asks Prometheus which lanes there are.
    assert re.findall(r"^--- (.*)$", stale.stdout, re.MULTILINE) == [
        "deploy/prometheus/acme.rules.yml as it is",
        "deploy/supervisor/acme.conf as it is",
    ]
    assert "+++ deploy/supervisor/acme.conf as lanes.toml says\n" in stale.stdout
    assert '+  - name: "acme: lane mail"\n' in stale.stdout
    assert "+[program:acme-mail]\n" in stale.stdout
    assert "-programs=acme-slow,acme-quick\n" in stale.stdout

    assert run("units").stdout == wrote.replace("wrote deploy/grafana/acme.json\n", "")
    assert run("units", "--check").exit_code == 0


def test_units_are_those_of_the_process_manager(tmp_path: Path) -> None:
    project = deploy.Project(slug="acme", package=PACKAGE, process_managers=("systemd",))
    told = CliRunner().invoke(cli._main, ["units"], prog_name="acme", obj=project)
    assert told.stdout.splitlines() == [
        "wrote deploy/grafana/acme.json",
        "wrote deploy/prometheus/acme.rules.yml",
        "wrote deploy/systemd/acme-metrics.service",
        "wrote deploy/systemd/acme-quick@.service",
        "wrote deploy/systemd/acme-slow@.service",
        "wrote deploy/systemd/acme.sysusers.conf",
        "wrote deploy/systemd/acme.target",
    ]
    text = 'default_lane = "quick"\n[lanes.quick]\n'
    (tmp_path / "lanes.toml").write_text(text, encoding="utf-8")
    told = CliRunner().invoke(cli._main, ["units"], prog_name="acme", obj=project)
    assert told.stdout.splitlines() == [
        "wrote deploy/prometheus/acme.rules.yml",
        "removed deploy/systemd/acme-slow@.service",
        "wrote deploy/systemd/acme.target",
    ]


@pytest.fixture
def _app(
    broker: Any, bound: Callable[[str], Celery], monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """An app of the test's own; the command's is the owner's."""
    monkeypatch.setenv("BROKER_URL", broker.url)
    with bound(LANES) as app:
        monkeypatch.setattr(cli.context, "app", lambda: app)
        yield


@pytest.mark.usefixtures("_app")
def test_a_lane_is_paused_and_goes_on(broker: Any) -> None:
    for _ in range(2):  # it does not matter whether it was paused already
        told = run("pause", "slow")
        assert (told.exit_code, told.stderr) == (0, "")
        assert told.stdout == "slow is paused; what runs goes on, what comes waits\n"
        assert broker.redis.keys("*") == [b"lanes:slow:paused"]
    told = run("resume", "slow")
    assert (told.exit_code, told.stdout, told.stderr) == (0, "slow goes on\n", "")
    assert broker.redis.keys("*") == []


@pytest.mark.usefixtures("_app")
@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_an_unknown_lane_cannot_be_paused(broker: Any, verb: str) -> None:
    told = run(verb, "slwo")
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr == 'no lane is called "slwo"; did you mean "slow"? (lanes: slow, quick)\n'
    assert broker.redis.keys("*") == []


@pytest.mark.usefixtures("_app")
def test_status_shows_what_waits_and_what_is_kept(broker: Any) -> None:
    for _ in range(1234):
        broker.redis.lpush("quick_tasks", "{}")
    broker.redis.zadd("lanes:slow:delayed", {"a": 4e9, "b": 5e9})  # in a century or so
    broker.redis.zadd("lanes:quick:dead", {"1": 1})
    run("pause", "slow")
    told = run("status")
    assert (told.exit_code, told.stderr) == (0, "")
    head, _, *rows = told.stdout.strip().splitlines()
    columns = "lane waiting oldest delayed running workers dead starts in time"
    assert head.split() == columns.split()
    assert [row.split() for row in rows] == [
        ["slow", "0", "-", "2", "0", "0", "0", "paused,", "within", "10", "min"],
        ["quick", "1,234", "-", "0", "0", "0", "1", "yes,", "within", "250", "ms"],
    ]


def test_a_folder_that_cannot_be_made_is_one_line_and_exit_2(tmp_path: Path) -> None:
    """Seen before: a traceback."""
    (tmp_path / "file").touch()
    told = run("units", "--out", "file/deploy")
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr == "file/deploy/grafana: Not a directory\n"


def test_units_can_go_elsewhere(tmp_path: Path) -> None:
    assert run("units", "--out", "other").exit_code == 0
    assert (tmp_path / "other/supervisor/acme.conf").is_file()


def test_one_lane_leaves_prove_nothing_to_compare(tmp_path: Path) -> None:
    text = 'default_lane = "mail"\n[lanes.mail]\n'
    (tmp_path / "lanes.toml").write_text(text, encoding="utf-8")
    told = run("prove")
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr == (
        "prove floods one lane and measures another, and lanes.toml declares one lane; add one\n"
    )


def test_a_flood_of_one_key_does_not_burn() -> None:
    told = run("prove", "--keys", "--burn")
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr == ("--burn floods another lane, and --keys the same one: leave one out\n")


MISTAKES = "default_lane = 'fast'\n[lanes.slow]\nnice = 20\n"
TOLD = """\
lanes.toml: lanes.slow.nice: 20 (expected a whole number from 0 to 19)
lanes.toml: default_lane: "fast" (expected a declared lane: slow)
"""


@pytest.mark.parametrize("arguments", [["lanes"], ["status"]], ids=" ".join)
def test_mistakes_in_lanes_toml_are_lines_and_no_traceback(
    tmp_path: Path, arguments: list[str]
) -> None:
    project = Project(tmp_path, MISTAKES, "redis://localhost:1/0")
    told = project.run(*arguments)
    assert (told.returncode, told.stdout, told.stderr) == (2, "", TOLD)
