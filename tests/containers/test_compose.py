"""A baked project in containers: its image built, its Compose file run, as its page says."""

import json
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from processes import eventually
from support import BIN, COMPOSE_SCHEMA, index, succeed
from systemd_container import LANES, adapted

from .podman import BASE, Podman, download_wheels, make_base, podman

#: The images are made in the first test that needs them.
pytestmark = pytest.mark.timeout(900)

YAML = "deploy/compose/compose.yaml"
SLUG = "acme-tasks"
WORKERS = {"quick": 2, "slow": 1}
CONTAINERS = ("quick_1", "quick_2", "slow_1")
BROKER = "message-broker_1"
DRAIN = 5  # seconds, for slow
HEARTBEAT = "/tmp/heartbeat"  # noqa: S108 - in a container
MAIN = "$(tr -d ' ' </proc/1/task/1/children)"  # the worker's main process, in its container


def commands(project: Path, heading: str) -> list[str]:
    """The blocks of commands in a section of docs/containers.md."""
    page = (project / "docs/containers.md").read_text()
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, flags=re.DOTALL | re.MULTILINE)
    assert blocks, f"no commands below {heading!r}"
    return blocks


def lock(project: Path, env: dict[str, str]) -> None:
    """The page's `make lock`, with a .venv that has what it calls."""
    (project / ".venv/bin").mkdir(parents=True)
    for program in ("python", "uv"):
        (project / ".venv/bin" / program).symlink_to(BIN / program)
    (project / ".venv/installed").write_text(f"{project}\n")
    (project / ".venv/lock").touch()  # uv is there
    [command] = commands(project, "Lock")
    succeed("sh", "-c", command, cwd=project, env=env | index())


@pytest.fixture(scope="module")
def project(template: Path, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with its locks, whose build gets nothing of its .venv."""
    lanes = LANES.replace('drain_timeout = "3s"', f'drain_timeout = "{DRAIN}s"')
    project = adapted(template, env, tmp_path_factory.mktemp("compose"), lanes=lanes)
    lock(project, env)
    return project


@pytest.fixture(scope="module")
def engine(
    project: Path, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Podman]:
    with podman(tmp_path_factory.mktemp("podman")) as engine:
        download_wheels(engine, project, make_base(engine), env)
        yield engine


class Lanes:
    """The project's containers."""

    def __init__(self, engine: Podman, project: Path) -> None:
        """Of `project`, where its page has its commands typed."""
        self.engine, self.folder = engine, project / "deploy/compose"

    def run(self, script: str, *, check: bool = True) -> str:
        """What `script`, typed in deploy/compose, printed."""
        return self.engine.run(script, check=check, cwd=self.folder)

    def inside(self, container: str, *words: str) -> str:
        """What a command printed in one of the containers."""
        return self.engine.run(shlex.join(["podman", "exec", f"{SLUG}_{container}", *words]))

    def shell(self, container: str, script: str) -> str:
        """What a shell printed in one of the containers."""
        return self.inside(container, "sh", "-c", script)

    def log(self, container: str) -> str:
        """What a worker said."""
        return self.engine.run(f"podman logs {SLUG}_{container}")

    def redis(self, *words: str) -> list[str]:
        """The broker's answer, by line."""
        return self.inside(BROKER, "valkey-cli", *words).splitlines()

    def records(self, key: str) -> list[str]:
        """The names of the tasks that `started` or `ended`, once for each run."""
        return self.redis("lrange", key, "0", "-1")

    def is_healthy(self, container: str) -> bool:
        """What the health check of a container says."""
        return self.engine.succeeds(f"podman healthcheck run {SLUG}_{container}")

    def send(self, lane: str, name: str, seconds: float = 0.0) -> None:
        """Send the task that records its runs, and return when it has started."""
        program = (
            "from acme_tasks.celery import app; "
            f"app.send_task('acme_tasks.tasks.work', ('{name}', {seconds}), queue='{lane}_tasks')"
        )
        self.engine.run(
            f"podman exec {SLUG}_slow_1 /opt/{SLUG}/bin/python -c {shlex.quote(program)}"
        )
        eventually(lambda: name in self.records("started"), f"{name} starts")

    def await_end(self, name: str) -> None:
        """Return when a task has ended."""
        eventually(lambda: name in self.records("ended"), f"{name} ends")

    def workers(self) -> dict[str, int]:
        """How many workers of each lane there are."""
        said = self.engine.run(f"podman exec {SLUG}_slow_1 {SLUG} status --json", check=False)
        states = json.loads(said) if said.startswith("[") else []
        return {state["lane"]: state["workers"] for state in states}

    def await_ready(self) -> None:
        """Return when every worker consumes."""
        try:
            eventually(lambda: self.workers() == WORKERS, "every worker is up")
        except AssertionError:
            print(self.engine.run("podman ps --all"), *map(self.log, CONTAINERS), sep="\n")
            raise


@pytest.fixture(scope="module")
def started(engine: Podman, project: Path) -> tuple[Lanes, str]:
    """Built and started as the page says, and what it printed when one looks."""
    lanes = Lanes(engine, project)
    [start], [look] = commands(project, "Start"), commands(project, "Look")
    lanes.run(start)
    lanes.await_ready()
    return lanes, lanes.run(look.replace("exec slow", "exec -T slow"))


def test_the_page_starts_them_and_says_how_they_are(started: tuple[Lanes, str]) -> None:
    lanes, look = started
    assert re.search(r"^ quick +0 +- +0 +0 +2 +0 ", look, re.MULTILINE), look
    assert "slow-1@" in look
    for lane in WORKERS:
        lanes.send(lane, f"{lane} first")
        lanes.await_end(f"{lane} first")
    assert all(map(lanes.is_healthy, [*CONTAINERS, BROKER]))


def test_a_worker_is_nobody_and_can_write_to_two_folders_alone(
    started: tuple[Lanes, str],
) -> None:
    lanes, _ = started
    # Process 1 hands signals on to what it started: the worker.
    assert lanes.inside("quick_1", "cat", "/proc/1/comm") == "podman-init"
    status = lanes.shell("quick_1", f"cat /proc/{MAIN}/status")
    facts = dict(re.findall(r"^(Uid|Gid|CapBnd|CapEff|NoNewPrivs):\s+(\w+)", status, re.MULTILINE))
    assert facts == {
        "Uid": "10001",
        "Gid": "10001",
        "CapBnd": "0" * 16,
        "CapEff": "0" * 16,
        "NoNewPrivs": "1",
    }
    folders = f". / /etc /home /opt/{SLUG} /srv /usr/local/bin"
    tried = f"for i in {folders}; do touch $i/x 2>/dev/null && echo $i; done; pwd"
    assert lanes.shell("quick_1", tried).split() == [".", f"/var/lib/{SLUG}"]
    assert lanes.is_healthy("quick_1"), "its heartbeat is in /tmp"
    installed = lanes.inside("quick_1", "ls", f"/opt/{SLUG}/bin").split()
    assert {"acme-tasks", "celery"} < set(installed)
    assert not {"pip", "supervisord", "hatchling", "pytest"} & set(installed)


def test_the_health_check_starts_no_python_and_does_not_ask_the_broker(
    started: tuple[Lanes, str], project: Path
) -> None:
    lanes, _ = started
    check = yaml.safe_load((project / YAML).read_text())["services"]["slow"]["healthcheck"]["test"]
    assert check == ["CMD-SHELL", "find /tmp/heartbeat -mmin -1 | grep -q ."]
    lanes.engine.run(f"podman stop {SLUG}_{BROKER}")
    try:
        eventually(lambda: "Connection to broker lost" in lanes.log("slow_1"), "an outage")
        for container in CONTAINERS:
            # As old as it would be, were it not touched again.
            lanes.inside(container, "touch", "-d", "2 minutes ago", HEARTBEAT)
            eventually(lambda c=container: lanes.is_healthy(c), "healthy")  # type: ignore[misc]
    finally:
        lanes.engine.run(f"podman start {SLUG}_{BROKER}")
        # Podman's network has the others look for the broker at its old place for half a minute.
        names = " ".join(f"{SLUG}_{container}" for container in CONTAINERS)
        lanes.engine.run(f"podman restart --time 0 {names}")
    lanes.await_ready()


def test_a_worker_that_hangs_is_unhealthy_and_a_restart_helps(started: tuple[Lanes, str]) -> None:
    lanes, _ = started
    lanes.shell("quick_2", f"kill -USR2 {MAIN}")

    def is_left_old() -> bool:
        """Whether nobody touches it for as long as three beats take."""
        lanes.inside("quick_2", "touch", "-d", "2 minutes ago", HEARTBEAT)
        time.sleep(3)
        return not lanes.is_healthy("quick_2")

    eventually(is_left_old, "unhealthy")
    lanes.engine.run(f"podman restart --time 1 {SLUG}_quick_2")
    lanes.await_ready()
    assert lanes.is_healthy("quick_2")


def test_what_a_killed_worker_ran_runs_again_in_its_restarted_container(
    started: tuple[Lanes, str],
) -> None:
    lanes, _ = started
    lanes.send("slow", "of the killed", 3)
    # Its container ends with it, and so may the shell that says so, before it has.
    kill = shlex.quote(f"kill -KILL {MAIN}")
    lanes.engine.run(f"podman exec {SLUG}_slow_1 sh -c {kill} || true")
    lanes.await_end("of the killed")
    assert lanes.records("started").count("of the killed") == 2
    lanes.await_ready()


def test_a_stop_lets_what_runs_finish_or_hands_it_back(
    started: tuple[Lanes, str], project: Path
) -> None:
    lanes, _ = started
    stop, start = commands(project, "Stop and start")
    lanes.send("quick", "quick long", DRAIN + 4)
    lanes.send("slow", "slow short", 2)
    lanes.send("slow", "slow long", 2 * DRAIN + 2)
    lanes.run(stop)
    lanes.run(start)
    lanes.await_ready()
    assert {"quick long", "slow short"} < set(lanes.records("ended"))
    assert lanes.records("started").count("quick long") == 1
    lanes.await_end("slow long")
    assert lanes.records("started").count("slow long") == 2


def test_a_worker_that_is_stopped_while_it_starts_stops_at_once(
    started: tuple[Lanes, str],
) -> None:
    """As process 1, it did not hear the SIGTERM, and was killed when its time was over."""
    lanes, _ = started
    lanes.engine.run(f"podman stop {SLUG}_quick_2 && podman start {SLUG}_quick_2")
    lanes.engine.run(f"podman stop --time 60 {SLUG}_quick_2")
    code = lanes.engine.run(f"podman inspect --format '{{{{.State.ExitCode}}}}' {SLUG}_quick_2")
    lanes.engine.run(f"podman start {SLUG}_quick_2")
    lanes.await_ready()
    assert int(code) != 137, "killed"


def test_an_upgrade_and_a_roll_back_change_the_image_and_lose_nothing(
    started: tuple[Lanes, str], project: Path
) -> None:
    lanes, _ = started
    upgrade, roll_back = commands(project, "Upgrade and roll back")
    lanes.send("slow", "over an upgrade", 2 * DRAIN + 2)
    for script, release in ((upgrade, "2"), (roll_back, "1")):
        lanes.run(script)
        lanes.await_ready()
        images = lanes.engine.run("podman ps --format '{{.Image}}'").split()
        of_release = images.count(f"localhost/{SLUG}:{release}")
        assert of_release == len(CONTAINERS) + 1, images  # the workers, and the exporter
    lanes.await_end("over an upgrade")


def test_a_build_without_a_lock_says_what_to_do(
    engine: Podman, baked: Callable[[str], Path]
) -> None:
    said = engine.run(f"podman build --build-arg BASE={BASE} {baked('default')}", check=False)
    assert "\nrequirements.lock is missing: run make lock\n" in said


def test_nothing_starts_without_the_file_of_the_brokers_url(
    engine: Podman, started: tuple[Lanes, str], project: Path, tmp_path: Path
) -> None:
    del started  # its images
    text = (project / YAML).read_text().replace(f'name: "{SLUG}"', 'name: "bare"')
    (tmp_path / "compose.yaml").write_text(text)
    up = "RELEASE=1 docker compose up -d --no-build"
    said = engine.run(up, check=False, cwd=tmp_path)
    running = engine.run("podman ps --format '{{.Names}}'").split()
    engine.run("docker compose down --volumes", check=False, cwd=tmp_path)
    assert "secrets/BROKER_URL" in said
    assert [name for name in running if name.startswith("bare_slow")] == []


def test_what_the_page_adds_by_an_override_is_added(
    engine: Podman, project: Path, env: dict[str, str], tmp_path: Path
) -> None:
    page = (project / "docs/containers.md").read_text()
    [override] = re.findall(r"^```yaml\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    (tmp_path / "compose.override.yaml").write_text(override)
    succeed(*COMPOSE_SCHEMA, "compose.override.yaml", cwd=tmp_path, env=env)
    shutil.copy(project / YAML, tmp_path)
    merged = yaml.safe_load(engine.run("docker compose config", cwd=tmp_path))
    slow, broker = merged["services"]["slow"], merged["services"]["message-broker"]
    assert slow["secrets"] == ["BROKER_URL", "RESULT_URL"]
    assert slow["volumes"] == ["/srv/files:/srv/files"]
    assert broker["ports"] == ["127.0.0.1:6379:6379"]


def test_a_lock_has_a_hash_for_each_version_and_stays_as_it_is(
    project: Path, env: dict[str, str]
) -> None:
    """And for every system: a package of Windows alone is in it."""
    names = ("requirements.lock", "requirements-build.lock")
    texts = [(project / name).read_text() for name in names]
    for text in texts:
        entries = re.split(r"\n(?=\w)", re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE).strip())
        assert all(re.match(r"[\w-]+==\S+( ; .*)? \\\n +--hash=sha256:", each) for each in entries)
    assert "\ntzdata==" in texts[0]
    assert "hatchling" not in texts[0]
    assert "\nhatchling==" in texts[1]
    [command] = commands(project, "Lock")
    succeed("sh", "-c", command, cwd=project, env=env | index())
    assert [(project / name).read_text() for name in names] == texts
