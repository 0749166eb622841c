import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Callable
from configparser import RawConfigParser
from pathlib import Path
from typing import Any, ClassVar

import pytest
from supervisor import options
from supervisor.datatypes import RestartUnconditionally

from acme_tasks.lanes import config, deploy
from acme_tasks.lanes.deploy import Project, supervisor, systemd

LANES = """
default_lane = "quick"

[lanes.slow]
time_limit = "2h"
drain_timeout = "45s"
memory_max = "512M"
[lanes.quick]
workers = 3
[lanes.endless]
time_limit = false
"""
MANAGERS = ("systemd", "supervisor", "compose")
PROJECT = Project(slug="acme", package="acme_package", process_managers=MANAGERS)


@pytest.fixture
def lanes(lanes_file: Callable[[str], Path]) -> config.Lanes:
    return config.load(lanes_file(LANES))


@pytest.fixture
def files(lanes: config.Lanes) -> dict[str, str]:
    return deploy.render(lanes, PROJECT)


@pytest.fixture
def foreground(lanes: config.Lanes, tmp_path: Path) -> str:
    return supervisor.foreground(
        lanes,
        command=["/a path/with 100%/python", "-m", "acme"],
        broker=["/a path/with 100%/python", "broker"],
        pidfile=str(tmp_path / "100%.pid"),
        output="/dev/fd/7",
        user="root",
    )


class Recorder(options.UnhosedConfigParser):
    """Supervisor's own parser, which keeps what supervisor asked it for."""

    asked: ClassVar[defaultdict[str, set[str]]]

    def saneget(self, section: str, option: str, *args: Any, **kwargs: Any) -> Any:
        self.asked[section].add(option)
        return super().saneget(section, option, *args, **kwargs)


def read(text: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What supervisor makes of a file, and, in `asked`, the keys that it looked for."""
    monkeypatch.setattr(Recorder, "asked", defaultdict(set), raising=False)
    monkeypatch.setattr(options, "UnhosedConfigParser", Recorder)
    monkeypatch.setattr(options, "name_to_uid", lambda _name: 0)  # users of other machines
    path.write_text(text, encoding="utf-8")
    server = options.ServerOptions()
    server.realize(["-c", str(path)])
    assert server.parse_warnings == []
    server.asked = Recorder.asked
    return server


def unknown_keys(text: str, asked: dict[str, set[str]]) -> dict[str, set[str]]:
    """By section: the keys that are written and that supervisor does not look for."""
    parser = RawConfigParser()
    parser.read_string(text)
    return {
        section: unknown
        for section in parser.sections()
        if (unknown := set(parser[section]) - asked[section])
    }


def test_supervisor_knows_every_key_of_the_installed_file(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file in conf.d is read beside the main one, and its folders may be another machine's.
    text = "[supervisord]\n" + files["supervisor/acme.conf"].replace("/var/log/acme", str(tmp_path))
    server = read(text, tmp_path / "main.conf", monkeypatch)
    assert unknown_keys(text, server.asked) == {}
    group, alone = sorted(server.process_group_configs, key=lambda each: str(each.name))
    assert (group.name, alone.name) == ("acme", "acme-metrics-exporter")
    assert [process.name for process in group.process_configs] == [
        "acme-slow-1",
        "acme-quick-1",
        "acme-quick-2",
        "acme-quick-3",
        "acme-endless-1",
    ]
    assert group.process_configs[2].command == (
        "/opt/acme/current/bin/acme worker quick --instance 2"
    )
    assert group.process_configs[2].stdout_logfile == f"{tmp_path}/quick-2.log"


def test_supervisor_knows_every_key_of_the_foreground_file(
    foreground: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = read(foreground, tmp_path / "supervisord.conf", monkeypatch)
    assert unknown_keys(foreground, server.asked) == {}
    assert server.nodaemon
    assert server.pidfile == str(tmp_path / "100%.pid")
    broker, lanes = server.process_group_configs
    assert (broker.priority, lanes.priority) == (1, 999)  # starts first and stops last
    assert broker.process_configs[0].command == "'/a path/with 100%/python' broker"
    assert lanes.process_configs[1].command == (
        "'/a path/with 100%/python' -m acme worker quick --instance 1"
    )


def test_the_check_of_keys_finds_one_that_supervisor_does_not_know(
    foreground: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistaken = foreground.replace("stopwaitsecs", "stopwaitsec")
    server = read(mistaken, tmp_path / "supervisord.conf", monkeypatch)
    assert unknown_keys(mistaken, server.asked)["program:slow"] == {"stopwaitsec"}


def test_a_lane_that_stops_has_time_for_its_longest_task_or_for_its_drain(
    foreground: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = read(foreground, tmp_path / "supervisord.conf", monkeypatch)
    waits = {p.name: p.stopwaitsecs for p in server.process_group_configs[1].process_configs}
    assert waits["slow-1"] == 45 + 30  # requeue
    assert waits["quick-1"] == 30 + 30
    assert waits["endless-1"] == 3600 + 30


def test_a_lane_that_ended_is_started_again_whatever_its_exit_code(
    foreground: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = read(foreground, tmp_path / "supervisord.conf", monkeypatch)
    for process in server.process_group_configs[1].process_configs:
        assert process.autostart
        assert process.autorestart is RestartUnconditionally


def test_a_stop_is_for_the_main_process_and_a_kill_for_all(
    foreground: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = read(foreground, tmp_path / "supervisord.conf", monkeypatch)
    for process in server.process_group_configs[1].process_configs:
        assert (process.stopasgroup, process.killasgroup) == (False, True)


EVERY = {"prometheus/acme.rules.yml", "grafana/acme.json"}
COMPOSE = {"compose/compose.yaml"}
SUPERVISOR = {"supervisor/acme.conf"}
SYSTEMD = {
    "systemd/acme-slow@.service",
    "systemd/acme-quick@.service",
    "systemd/acme-endless@.service",
    "systemd/acme-metrics.service",
    "systemd/acme.target",
    "systemd/acme.sysusers.conf",
}


@pytest.mark.parametrize(
    ("process_managers", "paths"),
    [
        (("supervisor",), SUPERVISOR),
        (("systemd",), SYSTEMD),
        (("compose",), COMPOSE),
        (MANAGERS, SUPERVISOR | SYSTEMD | COMPOSE),
    ],
    ids=["supervisor", "systemd", "compose", "all"],
)
def test_each_process_manager_has_its_files_and_no_other(
    lanes: config.Lanes, process_managers: tuple[str, ...], paths: set[str]
) -> None:
    project = Project(slug="acme", package="acme_package", process_managers=process_managers)
    assert deploy.render(lanes, project).keys() == paths | EVERY


def test_each_file_says_who_wrote_it(files: dict[str, str]) -> None:
    said = "Written by `acme units` from lanes.toml; change that, then run it again."
    for path, text in files.items():
        comment = ";" if path.startswith("supervisor") else "#"
        first = f'{{ "description": "{said}",' if path.endswith(".json") else f"{comment} {said}"
        assert text.splitlines()[0] == first


GOLDEN = """\
# Written by `acme units` from lanes.toml; change that, then run it again.

[Unit]
Description=acme: worker %i of the lane slow
PartOf=acme.target
Wants=network-online.target
After=network-online.target
# A broker outage of any length must not leave the lane dead.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=main
ExecStart=/opt/acme/current/bin/acme worker slow --instance %i
User=acme
SyslogIdentifier=%p-%i
StateDirectory=acme
RuntimeDirectory=%p-%i
WorkingDirectory=%S/acme
EnvironmentFile=-/etc/acme/environment
# By its path: without the file, the unit does not start, and uses no other broker.
LoadCredential=BROKER_URL:/etc/credstore/acme.BROKER_URL
# By its name: left out where there is none.
LoadCredential=RESULT_URL:acme.RESULT_URL

# Ready when it consumes; while the broker is away it asks for more time by itself.
TimeoutStartSec=60
WatchdogSec=30
Restart=always
RestartSec=2
# SIGTERM to the main process alone: to the group, it would end running tasks (celery #6541).
KillMode=mixed
# drain_timeout, then running tasks are handed back, and 30 s to do so.
TimeoutStopSec=75

# One task's child that runs out of memory does not end the lane.
OOMPolicy=continue
OOMScoreAdjust=200
Nice=10
CPUWeight=11
MemoryMax=536870912

"""


def test_a_unit_is_this_text(files: dict[str, str]) -> None:
    assert files["systemd/acme-slow@.service"] == GOLDEN + systemd._SANDBOX


def test_another_lanes_unit_differs_where_the_lane_does(files: dict[str, str]) -> None:
    text = files["systemd/acme-slow@.service"]
    for old, new in {
        "slow": "quick",
        "drain_timeout, then running tasks are handed back, and 30 s to do so.": (
            "The longest that a running task may take, and 30 s to clean up."
        ),
        "TimeoutStopSec=75": "TimeoutStopSec=60",
        "OOMScoreAdjust=200": "OOMScoreAdjust=0",
        "Nice=10": "Nice=0",
        "CPUWeight=11": "CPUWeight=100",
        "MemoryMax=536870912\n": "",
    }.items():
        assert old in text
        text = text.replace(old, new)
    assert files["systemd/acme-quick@.service"] == text
    # An hour stands for a task without a limit.
    assert "\nTimeoutStopSec=3630\n" in files["systemd/acme-endless@.service"]


@pytest.mark.parametrize(("nice", "weight"), [(0, 100), (5, 33), (10, 11), (19, 1)])
def test_a_step_of_nice_is_a_factor_of_1_25_in_weight(
    lanes_file: Callable[[str], Path], nice: int, weight: int
) -> None:
    path = lanes_file(f'default_lane = "a"\n[lanes.a]\nnice = {nice}')
    text = deploy.render(config.load(path), PROJECT)["systemd/acme-a@.service"]
    assert f"\nNice={nice}\nCPUWeight={weight}\n" in text


def test_the_target_starts_each_worker_of_each_lane(files: dict[str, str]) -> None:
    assert files["systemd/acme.target"] == (
        "# Written by `acme units` from lanes.toml; change that, then run it again.\n"
        "\n"
        "[Unit]\n"
        "Description=acme: every lane\n"
        "Wants=acme-slow@1.service\n"
        "Wants=acme-quick@1.service\n"
        "Wants=acme-quick@2.service\n"
        "Wants=acme-quick@3.service\n"
        "Wants=acme-endless@1.service\n"
        "Wants=acme-metrics.service\n"
        "\n"
        "[Install]\n"
        "WantedBy=multi-user.target\n"
    )


def test_what_tells_prometheus_starts_with_the_lanes_and_no_worker_waits_for_it(
    files: dict[str, str],
) -> None:
    unit = files["systemd/acme-metrics.service"]
    assert "\nPartOf=acme.target\n" in unit
    assert "\nExecStart=/opt/acme/current/bin/acme metrics\n" in unit
    workers = [text for path, text in files.items() if path.endswith("@.service")]
    assert len(workers) == 3
    assert not any("metrics" in text for text in workers)
    programs = files["supervisor/acme.conf"]
    assert (
        "[program:acme-metrics-exporter]\ncommand=/opt/acme/current/bin/acme metrics\n" in programs
    )
    assert "[group:acme]\nprograms=acme-slow,acme-quick,acme-endless\n" in programs


def test_the_workers_have_a_user_of_their_own(files: dict[str, str]) -> None:
    assert files["systemd/acme.sysusers.conf"].splitlines()[2:] == ['u acme - "acme" /var/lib/acme']


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`systemd-analyze arguments`; skips the test where there is none, or it is too old."""
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not here")
    told = subprocess.run([tool, "--version"], capture_output=True, text=True, check=True).stdout
    if int(re.search(r"\d+", told)[0]) < 250:
        pytest.skip("systemd-analyze is older than 250, as the units are not for it")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def units(files: dict[str, str], tmp_path: Path) -> list[str]:
    """Paths of copies of the units, whose program is there."""
    paths = []
    for name, text in files.items():
        if name.endswith((".service", ".target")):
            path = tmp_path / Path(name).name
            there = re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE)
            path.write_text(there, encoding="utf-8")
            paths.append(str(path))
    assert len(paths) == 5
    return paths


def test_systemd_has_nothing_to_say_against_the_units(units: list[str]) -> None:
    told = analyze("verify", "--man=no", *units)
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def test_the_check_of_units_finds_a_key_that_systemd_does_not_know(units: list[str]) -> None:
    path = Path(units[0])
    text = path.read_text(encoding="utf-8").replace("WatchdogSec=", "WatchdogSeconds=")
    path.write_text(text, encoding="utf-8")
    assert "'WatchdogSeconds'" in analyze("verify", "--man=no", *units).stderr


def test_the_exposure_of_each_unit_is_1_2_at_most(units: list[str]) -> None:
    for unit in units:
        if unit.endswith(".service"):
            told = analyze("security", "--offline=true", "--threshold=12", unit)
            assert told.returncode == 0, told.stdout + told.stderr


SERVICES = """\
  "slow":
    <<: *worker
    command: [worker, "slow"]
    scale: 1
    stop_grace_period: 75s
    cpu_shares: 110
    mem_limit: 536870912

  "quick":
    <<: *worker
    command: [worker, "quick"]
    scale: 3
    stop_grace_period: 60s
    cpu_shares: 1024

  "endless":
    <<: *worker
    command: [worker, "endless"]
    scale: 1
    stop_grace_period: 3630s
    cpu_shares: 1024

"""


def test_each_lane_is_a_service_with_time_to_stop_and_its_share_of_the_machine(
    files: dict[str, str],
) -> None:
    text = files["compose/compose.yaml"]
    assert text[text.index('  "slow":') :].startswith(SERVICES)


def test_write_writes_what_is_stale_and_nothing_else(tmp_path: Path) -> None:
    files = {"a/x.conf": f"; {deploy.MARK}\nx", "y.conf": f"; {deploy.MARK}\ny"}
    assert deploy.write(files, tmp_path) == [tmp_path / "a/x.conf", tmp_path / "y.conf"]
    assert deploy.write(files, tmp_path) == []
    (tmp_path / "y.conf").write_text("changed by hand", encoding="utf-8")
    assert deploy.stale(files, tmp_path) == [
        (tmp_path / "y.conf", "changed by hand", files["y.conf"])
    ]
    assert deploy.write(files, tmp_path) == [tmp_path / "y.conf"]
    assert (tmp_path / "y.conf").read_text(encoding="utf-8") == files["y.conf"]


def test_write_removes_its_own_old_files_and_leaves_the_owners(tmp_path: Path) -> None:
    ours, owners = tmp_path / "old.conf", tmp_path / "owners.conf"
    ours.write_text(f"; {deploy.MARK}\nold", encoding="utf-8")
    owners.write_text(f"mine\n; {deploy.MARK}\n", encoding="utf-8")
    (tmp_path / "owners.bin").write_bytes(b"\xff\xfe")
    assert deploy.stale({}, tmp_path) == [(ours, f"; {deploy.MARK}\nold", None)]
    assert deploy.write({}, tmp_path) == [ours]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["owners.bin", "owners.conf"]


def test_a_missing_folder_is_stale(tmp_path: Path) -> None:
    missing = tmp_path / "deploy"
    assert deploy.stale({"x": "text"}, missing) == [(missing / "x", None, "text")]
