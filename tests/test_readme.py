"""What the READMEs tell a newcomer to type, typed: a clone, its demo, and the project at work."""

import io
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gethostname

import pexpect
import pytest
from processes import PATIENCE, Process, eventually, free_port
from support import PROJECT, ROOT, TEMPLATE, index, succeed

# They share one clone, and what its demo has set up; `--dist loadfile` gives them one process.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

QUICK_TASK = (
    '.venv/bin/python -c "from acme_tasks.tasks import quick_task; '
    'print(quick_task.delay(100).get(timeout=5))"'
)
FLOOD = "from acme_tasks.tasks import slow_task; [slow_task.delay(0.5) for _ in range(2500)]"

#: Every command that a README shows, and where it is run.
HERE = "in this file"
UPDATE = "from a clone with these versions, in test_update"
COMMANDS = {
    "README.md": {
        "cookiecutter gh:org/celery-lanes-template": "from a clone, in test_tooling",
        "cd acme-tasks && make workers": HERE,
        QUICK_TASK: HERE,
        "make status": HERE,
        "make demo": HERE,
        "cruft create https://github.com/org/celery-lanes-template --checkout v1.0.0": UPDATE,
        "cd acme-tasks && cruft update --checkout v1.1.0": UPDATE,
        "make test": "runs this",
        "make check": "what it runs, in test_tooling",
    },
    f"{PROJECT}/README.md": {
        "make workers": HERE,
        "make status": HERE,
        "make prove": "by `make demo`",
        "make units": UPDATE,
        "cruft update --checkout v1.1.0": UPDATE,
        "cruft link https://github.com/org/celery-lanes-template --checkout v1.0.0": UPDATE,
        "make test": HERE,
        "make check": HERE,
    },
}


def commands(readme: Path) -> list[str]:
    """Each line of its shell examples."""
    blocks = re.findall(
        r"^```(?:sh|console)\n(.*?)^```", readme.read_text(), re.DOTALL | re.MULTILINE
    )
    return [line for block in blocks for line in block.splitlines() if line]


@pytest.mark.parametrize("readme", COMMANDS)
def test_every_command_shown_is_one_that_is_run(readme: str) -> None:
    assert sorted(set(commands(ROOT / readme))) == sorted(COMMANDS[readme])


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git hands on of the template, as far as a demo needs it: no .venv, nothing baked."""
    folder = tmp_path_factory.mktemp("clone") / "celery-lanes-template"
    folder.mkdir()
    for part in (*TEMPLATE, "Makefile", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, folder / part)
    return folder


@pytest.fixture(scope="module")
def bare(env: dict[str, str]) -> dict[str, str]:
    """A `python3` with nothing installed, the way to the package index, a free port."""
    return env | index() | {"BROKER_URL": f"redis://localhost:{free_port()}/0"}


@pytest.fixture(scope="module")
def said(clone: Path, bare: dict[str, str]) -> str:
    """What `make demo` printed."""
    return succeed("make", "demo", cwd=clone, env=bare)


@pytest.fixture
def project(clone: Path, said: str) -> Path:
    assert said
    return clone / "build/demo/acme-tasks"


def test_the_demo_ends_with_a_table_and_where_the_plot_is(said: str, project: Path) -> None:
    row = r"^ (.+?)  +(\d+) +(.*)$"
    waited, _, in_time = said.partition("In time while 20,000 slow tasks wait")
    found = re.findall(row, waited, re.MULTILINE)
    rows = {label: (int(tasks), rest) for label, tasks, rest in found}
    assert list(rows) == [
        "one queue, 20,000 slow tasks ahead",
        "lanes, idle",
        "lanes, 20,000 slow tasks in slow",
    ]
    assert rows["one queue, 20,000 slow tasks ahead"][1].split() == [
        "not",
        "answered",
        "in",
        "10",
        "s",
    ]
    assert re.search(r"^ one queue: quick +1 s +0 +10 +100\.0 x, pages *$", in_time, re.MULTILINE)
    assert re.search(r"^ lanes: quick +1 s +600 +600 +0\.0 x *$", in_time, re.MULTILINE)
    assert "quick is not delayed by 20,000 slow tasks" in said
    plot = project / "prove.png"
    assert said.splitlines()[-1] == f"  {plot}"
    assert plot.read_bytes().startswith(b"\x89PNG")


def running(project: Path) -> list[str]:
    """Processes of the project: each was started from its own .venv."""
    listed = succeed("ps", "-A", "-ww", "-o", "args=", cwd=project, env=dict(os.environ))
    return [line for line in listed.splitlines() if str(project) in line]


def test_a_quick_task_answers_while_thousands_wait_and_ctrl_c_leaves_nothing_running(
    project: Path, bare: dict[str, str]
) -> None:
    assert running(project) == []
    workers = pexpect.spawn("make", ["workers"], cwd=project, env=bare, encoding="utf-8")
    workers.logfile_read = io.StringIO()
    for _ in ("quick", "slow"):
        # Within a line: to pexpect, a dot may end one, and one read may hold both lanes' lines.
        workers.expect(r"(quick|slow) \| [^\n]* (quick|slow)-1@\S+ ready\.", timeout=PATIENCE)
    # A terminal that nobody reads would soon hold the workers up.
    reader = threading.Thread(target=workers.expect, args=[pexpect.EOF], kwargs={"timeout": 600})
    reader.start()
    succeed(".venv/bin/python", "-c", FLOOD, cwd=project, env=bare)
    assert succeed("sh", "-c", QUICK_TASK, cwd=project, env=bare) == "100\n"
    status = succeed("make", "status", cwd=project, env=bare)
    waiting = dict(re.findall(r"^ (\w+) +([\d,]+) (?!%)", status, re.MULTILINE))
    assert waiting["quick"] == "0"
    assert int(waiting["slow"].replace(",", "")) > 2000
    workers.sendintr()
    reader.join()
    assert running(project) == []
    said = workers.logfile_read.getvalue()
    assert said.count("Warm shutdown") == 2
    assert said.rstrip().endswith("valkey | stopped")
    assert "Traceback" not in said


@contextmanager
def lanes_at_work(project: Path, bare: dict[str, str], *lanes: str) -> Iterator[Process]:
    """`make workers`, with these lanes consuming, until Ctrl-C."""
    workers = Process("workers", "make", "workers", cwd=project, env=bare)
    try:
        for lane in lanes:
            workers.await_log(f" {lane}-1@{gethostname()} ready.")
        yield workers
    finally:
        os.killpg(workers.process.pid, signal.SIGINT)
        workers.process.wait(PATIENCE)


def test_the_tutorial_does_what_it_says(project: Path, bare: dict[str, str]) -> None:
    """Each command of docs/tutorial.md, in its order; `make prove` has been run by the demo."""
    page = commands(project / "docs/tutorial.md")
    assert (page.count("make workers"), page.count("make prove")) == (2, 1)
    shell = iter([line for line in page if line not in ("make workers", "make prove")])

    def type_next() -> str:
        return succeed("sh", "-c", next(shell), cwd=project, env=bare)

    def slow_ones() -> int:
        """How many `make status` says that wait."""
        (waiting,) = re.findall(r"^ slow +([\d,]+) (?!%)", type_next(), re.MULTILINE)
        return int(waiting.replace(",", ""))

    with lanes_at_work(project, bare, "quick", "slow"):
        assert type_next() == ""  # 3,000 to slow
        assert type_next() == "1\n"
        assert slow_ones() > 2000
        type_next()  # the lane premium
        assert "wrote deploy/systemd/acme-tasks-premium@.service" in type_next()
        assert re.search(r"^ premium +premium_tasks ", type_next(), re.MULTILINE)

    with lanes_at_work(project, bare, "quick", "slow", "premium") as workers:
        assert type_next() == "1\n"
        type_next()  # kill -9
        ready = f" slow-1@{gethostname()} ready."
        eventually(lambda: workers.log.count(ready) == 2, "the killed worker is started again")
        assert slow_ones() > 2000
        type_next()  # a task with an argument too many
        listing = next(shell)

        def listed() -> str:
            return succeed("sh", "-c", listing, cwd=project, env=bare)

        eventually(lambda: "takes 1 positional argument" in listed(), "the dead letter")
        assert type_next() == "1 message deleted\n"
        assert re.search(r"^slow: deleted \d,\d{3} waiting, 0 delayed; ", type_next())
    assert next(shell, None) is None
    assert running(project) == []


def test_the_projects_own_checks_and_tests_run(project: Path, bare: dict[str, str]) -> None:
    succeed("make", "check", cwd=project, env=bare)
    printed = succeed("make", "test", cwd=project, env=bare)
    assert re.search(r"= \d+ passed in ", printed), printed
