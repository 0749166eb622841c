"""What is generated, across answers: which files, how they are written, and that they check."""

import json
import re
import stat
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import BAKES, BIN, ROOT, bake, contents, succeed

Baked = Callable[[str], Path]

every_bake = pytest.mark.parametrize("name", BAKES)

FILES = [
    ".env.example",
    ".github/workflows/ci.yml",
    ".gitignore",
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "deploy/README.md",
    "deploy/supervisor/acme-tasks.conf",
    "deploy/systemd/acme-tasks-quick@.service",
    "deploy/systemd/acme-tasks-slow@.service",
    "deploy/systemd/acme-tasks.sysusers.conf",
    "deploy/systemd/acme-tasks.target",
    "docs/access.md",
    "docs/delivery.md",
    "docs/django.md",
    "docs/fastapi.md",
    "docs/moving-in.md",
    "pyproject.toml",
    "src/acme_tasks/__init__.py",
    "src/acme_tasks/__main__.py",
    "src/acme_tasks/celery.py",
    "src/acme_tasks/lanes.toml",
    "src/acme_tasks/lanes/__init__.py",
    "src/acme_tasks/lanes/bind.py",
    "src/acme_tasks/lanes/broker.py",
    "src/acme_tasks/lanes/cli.py",
    "src/acme_tasks/lanes/config.py",
    "src/acme_tasks/lanes/consumer.py",
    "src/acme_tasks/lanes/contract.py",
    "src/acme_tasks/lanes/deadletters.py",
    "src/acme_tasks/lanes/deploy/__init__.py",
    "src/acme_tasks/lanes/deploy/supervisor.py",
    "src/acme_tasks/lanes/deploy/systemd.py",
    "src/acme_tasks/lanes/drain.py",
    "src/acme_tasks/lanes/endpoint.py",
    "src/acme_tasks/lanes/errors.py",
    "src/acme_tasks/lanes/notify.py",
    "src/acme_tasks/lanes/prove/__init__.py",
    "src/acme_tasks/lanes/prove/control.py",
    "src/acme_tasks/lanes/prove/experiment.py",
    "src/acme_tasks/lanes/prove/plot.py",
    "src/acme_tasks/lanes/prove/tasks.py",
    "src/acme_tasks/lanes/redis/__init__.py",
    "src/acme_tasks/lanes/redis/causes.py",
    "src/acme_tasks/lanes/redis/clock.py",
    "src/acme_tasks/lanes/redis/connect.py",
    "src/acme_tasks/lanes/redis/fetch.py",
    "src/acme_tasks/lanes/redis/identity.py",
    "src/acme_tasks/lanes/redis/leases.py",
    "src/acme_tasks/lanes/redis/refusals.py",
    "src/acme_tasks/lanes/redis/scripts/exchange.lua",
    "src/acme_tasks/lanes/redis/scripts/hand_back.lua",
    "src/acme_tasks/lanes/redis/scripts/postpone.lua",
    "src/acme_tasks/lanes/redis/scripts/renew.lua",
    "src/acme_tasks/lanes/redis/scripts/rescue.lua",
    "src/acme_tasks/lanes/redis/scripts/retry.lua",
    "src/acme_tasks/lanes/redis/scripts/set_aside.lua",
    "src/acme_tasks/lanes/redis/sentinel.py",
    "src/acme_tasks/lanes/redis/store.py",
    "src/acme_tasks/lanes/redis/transport.py",
    "src/acme_tasks/lanes/remote.py",
    "src/acme_tasks/lanes/results.py",
    "src/acme_tasks/lanes/routing.py",
    "src/acme_tasks/lanes/settings.py",
    "src/acme_tasks/lanes/status.py",
    "src/acme_tasks/lanes/task.py",
    "src/acme_tasks/lanes/timeouts.py",
    "src/acme_tasks/lanes/urloptions.py",
    "src/acme_tasks/lanes/worker.py",
    "src/acme_tasks/lanes/workers.py",
    "src/acme_tasks/py.typed",
    "src/acme_tasks/tasks.py",
    "tests/conftest.py",
    "tests/faults/conftest.py",
    "tests/faults/payloads.py",
    "tests/faults/project/tasks.py",
    "tests/faults/stock/celery.py",
    "tests/faults/support.py",
    "tests/faults/test_dead.py",
    "tests/faults/test_delayed.py",
    "tests/faults/test_kills.py",
    "tests/faults/test_leases.py",
    "tests/faults/test_malformed.py",
    "tests/faults/test_neighbours.py",
    "tests/faults/test_outages.py",
    "tests/faults/test_sending.py",
    "tests/faults/test_servers.py",
    "tests/harness.py",
    "tests/lanes/test_bind.py",
    "tests/lanes/test_broker.py",
    "tests/lanes/test_cli.py",
    "tests/lanes/test_clock.py",
    "tests/lanes/test_config.py",
    "tests/lanes/test_connect.py",
    "tests/lanes/test_consumer.py",
    "tests/lanes/test_deadletters.py",
    "tests/lanes/test_deploy.py",
    "tests/lanes/test_drain.py",
    "tests/lanes/test_endpoint.py",
    "tests/lanes/test_fetch.py",
    "tests/lanes/test_identity.py",
    "tests/lanes/test_notify.py",
    "tests/lanes/test_order.py",
    "tests/lanes/test_prove.py",
    "tests/lanes/test_redis.py",
    "tests/lanes/test_redis_leases.py",
    "tests/lanes/test_redis_transport.py",
    "tests/lanes/test_results.py",
    "tests/lanes/test_routing.py",
    "tests/lanes/test_running.py",
    "tests/lanes/test_settings.py",
    "tests/lanes/test_status.py",
    "tests/lanes/test_task.py",
    "tests/lanes/test_worker.py",
    "tests/lanes/test_workers.py",
    "tests/project/__init__.py",
    "tests/project/__main__.py",
    "tests/project/celery.py",
    "tests/project/tasks.py",
    "tests/test_lanes.py",
    "tests/test_tasks.py",
    "tox.ini",
]


def texts(project: Path) -> Iterator[tuple[str, str]]:
    return ((path, data.decode("utf-8")) for path, data in contents(project).items())


def test_the_defaults_make_exactly_these_files(baked: Baked) -> None:
    assert sorted(contents(baked("default"))) == FILES


@every_bake
def test_other_answers_make_the_same_files_under_their_own_names(baked: Baked, name: str) -> None:
    slug, package, manager = BAKES[name].slug, BAKES[name].package, BAKES[name].process_manager
    renamed = [
        path.replace("acme-tasks", slug).replace("acme_tasks", package)
        for path in FILES
        if not path.endswith("@.service")
    ]
    units = [f"deploy/systemd/{slug}-{lane}@.service" for lane in BAKES[name].lanes]
    left_out = {"both": "-", "systemd": "deploy/supervisor", "supervisor": "deploy/systemd"}[
        manager
    ]
    wanted = [path for path in [*renamed, *units] if not path.startswith(left_out)]
    assert sorted(contents(baked(name))) == sorted(wanted)
    headings = re.findall(
        r"^## (s\w+)$", (baked(name) / "deploy/README.md").read_text(), re.MULTILINE
    )
    assert headings == (["systemd", "supervisor"] if manager == "both" else [manager])


@pytest.mark.parametrize("question", ["process_manager", "license"])
def test_every_choice_is_baked(question: str) -> None:
    choices = json.loads((ROOT / "cookiecutter.json").read_text())[question]
    baked = {wanted.answers.get(question, choices[0]) for wanted in BAKES.values()}
    assert baked == set(choices)


@every_bake
def test_no_jinja_is_left_over(baked: Baked, name: str) -> None:
    for path, text in texts(baked(name)):
        is_workflow = path.startswith(".github/workflows/")
        searched = re.sub(r"\$\{\{.*?\}\}", "", text) if is_workflow else text
        found = re.findall(r"\{\{|\{%|\{#|%\}|cookiecutter\.\w+", searched)
        assert found == [], path


@every_bake
def test_text_has_no_litter(baked: Baked, name: str) -> None:
    for path, text in texts(baked(name)):
        assert not re.search(r"[ \t\r]$", text, re.MULTILINE), f"{path}: trailing white space"
        assert text == "" or re.fullmatch(r"\S.*\S\n|\s{9}.*\S\n", text, re.DOTALL), f"{path}: ends"
        # The formatter answers for Python's blank lines; the Apache licence has its own.
        if not path.endswith((".py", "LICENSE")):
            prose = re.sub(r"^```python\n.*?^```", "code", text, flags=re.DOTALL | re.MULTILINE)
            assert "\n\n\n" not in prose, f"{path}: blank lines"


@every_bake
def test_recipes_begin_with_a_tab(baked: Baked, name: str) -> None:
    makefile = (baked(name) / "Makefile").read_text()
    assert re.findall(r"^ +.*", makefile, re.MULTILINE) == []
    assert makefile.count("\n\t") > 10


@every_bake
def test_no_file_is_executable(baked: Baked, name: str) -> None:
    modes = {path: path.stat().st_mode for path in baked(name).rglob("*") if path.is_file()}
    assert [path for path, mode in modes.items() if mode & stat.S_IXUSR] == []


@every_bake
def test_ruff_is_content(baked: Baked, env: dict[str, str], name: str) -> None:
    succeed(BIN / "ruff", "check", "--no-cache", cwd=baked(name), env=env)
    succeed(BIN / "ruff", "format", "--no-cache", "--diff", cwd=baked(name), env=env)


@every_bake
def test_mypy_is_content(
    baked: Baked, env: dict[str, str], name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # One cache for all bakes of this process: what is slow is reading the libraries.
    cache = tmp_path_factory.getbasetemp() / "mypy"
    command = [sys.executable, "-m", "mypy", "--cache-dir", cache]
    succeed(*command, cwd=baked(name), env=env)


@every_bake
def test_lanes_toml_declares_the_lanes_asked_for(
    baked: Baked, env: dict[str, str], name: str
) -> None:
    wanted, project = BAKES[name], baked(name)
    path = project / "src" / wanted.package / "lanes.toml"
    document = tomllib.loads(path.read_text())
    profiles = {
        lane: table.get("profile", lane if lane in ("quick", "slow") else "standard")
        for lane, table in document["lanes"].items()
    }
    assert list(profiles.items()) == list(wanted.lanes.items())
    assert document["default_lane"] == wanted.default_lane
    program = (
        f"import json; from {wanted.package}.lanes.config import load; lanes = load(); "
        "print(json.dumps([lanes.default.name, [lane.queue for lane in lanes]]))"
    )
    source = env | {"PYTHONPATH": "src", "PYTHONDONTWRITEBYTECODE": "1"}
    printed = succeed(sys.executable, "-c", program, cwd=project, env=source)
    assert json.loads(printed) == [wanted.default_lane, [f"{lane}_tasks" for lane in wanted.lanes]]


@every_bake
def test_each_lane_has_a_task(baked: Baked, name: str) -> None:
    tasks = (baked(name) / "src" / BAKES[name].package / "tasks.py").read_text()
    assert re.findall(r'lane="(\w+)"\)\ndef (\w+)_task\(', tasks) == [
        (lane, lane) for lane in BAKES[name].lanes
    ]


@every_bake
def test_the_pages_name_lanes_tasks_and_commands_that_there_are(baked: Baked, name: str) -> None:
    wanted, project = BAKES[name], baked(name)
    for page in ("django", "fastapi"):
        text = (project / f"docs/{page}.md").read_text()
        assert set(re.findall(r"\b(\w+)_task\b", text)) - {"shared"} <= set(wanted.lanes), page
        assert set(re.findall(r'lane="(\w+)"', text)) <= set(wanted.lanes), page
        assert set(re.findall(r"(?:from|-A) (\w+)(?:\.tasks|\.celery| inspect)", text)) - {
            "orders"
        } == {wanted.package}, page
        assert f"{wanted.slug} workers" in text, page
        assert ("## A flood" in text) == (page == "django" and len(wanted.lanes) > 1), page


@every_bake
def test_deploy_is_up_to_date(baked: Baked, env: dict[str, str], name: str) -> None:
    source = env | {"PYTHONPATH": "src", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", BAKES[name].package, "units", "--check"]
    assert succeed(*command, cwd=baked(name), env=source) == ""


LICENSES = {
    "MIT": ("MIT", "MIT License\n\nCopyright (c) {author}\n\nPermission is hereby granted"),
    "BSD-3-Clause": (
        "BSD-3-Clause",
        "BSD 3-Clause License\n\nCopyright (c) {author}\n\nRedistribution and use",
    ),
    "Apache-2.0": (
        "Apache-2.0",
        f"{' ' * 33}Apache License\n{' ' * 27}Version 2.0, January 2004\n",
    ),
    "proprietary": (
        "LicenseRef-Proprietary",
        "Copyright {author}\n\nAll rights reserved. No one may",
    ),
}


@every_bake
def test_every_licence_is_whole_and_without_a_year(baked: Baked, name: str) -> None:
    answers = BAKES[name].answers
    spdx, beginning = LICENSES[answers.get("license", "MIT")]
    text = (baked(name) / "LICENSE").read_text()
    assert text.startswith(beginning.format(author=answers.get("author", "Acme")))
    assert text.endswith((".\n", "limitations under the License.\n"))
    assert set(re.findall(r"\b(?:19|20)\d\d\b", text)) <= {"2004"}  # the Apache licence's own
    project = tomllib.loads((baked(name) / "pyproject.toml").read_text())["project"]
    assert (project["license"], project["license-files"]) == (spdx, ["LICENSE"])


def test_generation_opens_no_socket_and_starts_nothing_but_its_hooks(
    template: Path, env: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "events"
    log.touch()
    watch = (
        "import sys\n"
        "def watch(event, arguments):\n"
        "    if event in {"
        "'socket.connect', 'socket.sendto', 'socket.getaddrinfo', 'socket.gethostbyname', "
        "'os.exec', 'os.fork', 'os.posix_spawn', 'os.system', 'subprocess.Popen'}:\n"
        f"        with open({str(log)!r}, 'a') as log:\n"
        "            print(event, *map(str, arguments[:2]), file=log)\n"
        "sys.addaudithook(watch)\n"
    )
    (tmp_path / "sitecustomize.py").write_text(watch)
    result = bake(template, tmp_path / "out", {}, env | {"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    python = re.escape(sys.executable)
    hook = re.compile(rf"subprocess\.Popen {python} \['{python}', '\S+\.py'\]")
    events = log.read_text().splitlines()
    assert len(events) == 3, events
    assert all(map(hook.fullmatch, events)), events
