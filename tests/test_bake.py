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
    ".dockerignore",
    ".env.example",
    ".github/workflows/ci.yml",
    ".gitignore",
    "CHANGELOG.md",
    "Dockerfile",
    "LICENSE",
    "Makefile",
    "README.md",
    "deploy/README.md",
    "deploy/compose/compose.yaml",
    "deploy/grafana/acme-tasks.json",
    "deploy/prometheus/acme-tasks.rules.yml",
    "deploy/supervisor/acme-tasks.conf",
    "deploy/systemd/acme-tasks-metrics.service",
    "deploy/systemd/acme-tasks-quick@.service",
    "deploy/systemd/acme-tasks-slow@.service",
    "deploy/systemd/acme-tasks.sysusers.conf",
    "deploy/systemd/acme-tasks.target",
    "docs/access.md",
    "docs/advice.md",
    "docs/alerts.md",
    "docs/containers.md",
    "docs/delivery.md",
    "docs/django.md",
    "docs/fastapi.md",
    "docs/glossary.md",
    "docs/keys.md",
    "docs/logs.md",
    "docs/metrics.md",
    "docs/moving-in.md",
    "docs/opentelemetry.md",
    "docs/reference.md",
    "docs/schedule.md",
    "docs/sentry.md",
    "docs/tasks.md",
    "docs/troubleshooting.md",
    "docs/tutorial.md",
    "docs/types.md",
    "pyproject.toml",
    "src/acme_tasks/__init__.py",
    "src/acme_tasks/__main__.py",
    "src/acme_tasks/celery.py",
    "src/acme_tasks/lanes.toml",
    "src/acme_tasks/lanes/__init__.py",
    "src/acme_tasks/lanes/advise/__init__.py",
    "src/acme_tasks/lanes/advise/advice.py",
    "src/acme_tasks/lanes/advise/keys.py",
    "src/acme_tasks/lanes/advise/limits.py",
    "src/acme_tasks/lanes/advise/place.py",
    "src/acme_tasks/lanes/advise/seen.py",
    "src/acme_tasks/lanes/advise/slots.py",
    "src/acme_tasks/lanes/beat.py",
    "src/acme_tasks/lanes/bind.py",
    "src/acme_tasks/lanes/broker.py",
    "src/acme_tasks/lanes/capacity.py",
    "src/acme_tasks/lanes/cli/__init__.py",
    "src/acme_tasks/lanes/cli/advise.py",
    "src/acme_tasks/lanes/cli/context.py",
    "src/acme_tasks/lanes/cli/letters.py",
    "src/acme_tasks/lanes/cli/operate.py",
    "src/acme_tasks/lanes/cli/overview.py",
    "src/acme_tasks/lanes/cli/schedule.py",
    "src/acme_tasks/lanes/cli/show.py",
    "src/acme_tasks/lanes/config.py",
    "src/acme_tasks/lanes/consumer.py",
    "src/acme_tasks/lanes/contract.py",
    "src/acme_tasks/lanes/counting.py",
    "src/acme_tasks/lanes/deadletters.py",
    "src/acme_tasks/lanes/deploy/__init__.py",
    "src/acme_tasks/lanes/deploy/compose.py",
    "src/acme_tasks/lanes/deploy/grafana.py",
    "src/acme_tasks/lanes/deploy/prometheus.py",
    "src/acme_tasks/lanes/deploy/supervisor.py",
    "src/acme_tasks/lanes/deploy/systemd.py",
    "src/acme_tasks/lanes/descriptors.py",
    "src/acme_tasks/lanes/direct.py",
    "src/acme_tasks/lanes/discovery.py",
    "src/acme_tasks/lanes/doctor/__init__.py",
    "src/acme_tasks/lanes/doctor/finding.py",
    "src/acme_tasks/lanes/doctor/machine.py",
    "src/acme_tasks/lanes/doctor/schedule.py",
    "src/acme_tasks/lanes/doctor/server.py",
    "src/acme_tasks/lanes/doctor/versions.py",
    "src/acme_tasks/lanes/doctor/work.py",
    "src/acme_tasks/lanes/drain.py",
    "src/acme_tasks/lanes/endpoint.py",
    "src/acme_tasks/lanes/envelope.py",
    "src/acme_tasks/lanes/envfile.py",
    "src/acme_tasks/lanes/errors.py",
    "src/acme_tasks/lanes/excerpt.py",
    "src/acme_tasks/lanes/groups.py",
    "src/acme_tasks/lanes/keeper.py",
    "src/acme_tasks/lanes/keyed.py",
    "src/acme_tasks/lanes/logs/__init__.py",
    "src/acme_tasks/lanes/logs/about.py",
    "src/acme_tasks/lanes/logs/lines.py",
    "src/acme_tasks/lanes/many.py",
    "src/acme_tasks/lanes/metrics.py",
    "src/acme_tasks/lanes/notify.py",
    "src/acme_tasks/lanes/once.py",
    "src/acme_tasks/lanes/parent.py",
    "src/acme_tasks/lanes/planned.py",
    "src/acme_tasks/lanes/pool.py",
    "src/acme_tasks/lanes/protocol.py",
    "src/acme_tasks/lanes/prove/__init__.py",
    "src/acme_tasks/lanes/prove/control.py",
    "src/acme_tasks/lanes/prove/experiment.py",
    "src/acme_tasks/lanes/prove/keys.py",
    "src/acme_tasks/lanes/prove/plot.py",
    "src/acme_tasks/lanes/prove/report.py",
    "src/acme_tasks/lanes/prove/tasks.py",
    "src/acme_tasks/lanes/pulse.py",
    "src/acme_tasks/lanes/redis/__init__.py",
    "src/acme_tasks/lanes/redis/batch.py",
    "src/acme_tasks/lanes/redis/causes.py",
    "src/acme_tasks/lanes/redis/clock.py",
    "src/acme_tasks/lanes/redis/connect.py",
    "src/acme_tasks/lanes/redis/counters.py",
    "src/acme_tasks/lanes/redis/fetch.py",
    "src/acme_tasks/lanes/redis/identity.py",
    "src/acme_tasks/lanes/redis/leases.py",
    "src/acme_tasks/lanes/redis/refusals.py",
    "src/acme_tasks/lanes/redis/revocations.py",
    "src/acme_tasks/lanes/redis/schedule.py",
    "src/acme_tasks/lanes/redis/scripts/await_release.lua",
    "src/acme_tasks/lanes/redis/scripts/claim.lua",
    "src/acme_tasks/lanes/redis/scripts/count.lua",
    "src/acme_tasks/lanes/redis/scripts/exchange.lua",
    "src/acme_tasks/lanes/redis/scripts/give_back.lua",
    "src/acme_tasks/lanes/redis/scripts/hand_back.lua",
    "src/acme_tasks/lanes/redis/scripts/keep.lua",
    "src/acme_tasks/lanes/redis/scripts/parts/lane.lua",
    "src/acme_tasks/lanes/redis/scripts/parts/letters.lua",
    "src/acme_tasks/lanes/redis/scripts/parts/send.lua",
    "src/acme_tasks/lanes/redis/scripts/parts/turns.lua",
    "src/acme_tasks/lanes/redis/scripts/postpone.lua",
    "src/acme_tasks/lanes/redis/scripts/promote.lua",
    "src/acme_tasks/lanes/redis/scripts/purge.lua",
    "src/acme_tasks/lanes/redis/scripts/renew.lua",
    "src/acme_tasks/lanes/redis/scripts/rescue.lua",
    "src/acme_tasks/lanes/redis/scripts/revoke.lua",
    "src/acme_tasks/lanes/redis/scripts/send.lua",
    "src/acme_tasks/lanes/redis/scripts/send_keyed.lua",
    "src/acme_tasks/lanes/redis/scripts/sent.lua",
    "src/acme_tasks/lanes/redis/scripts/set_aside.lua",
    "src/acme_tasks/lanes/redis/scripts/take.lua",
    "src/acme_tasks/lanes/redis/scripts/take_dead.lua",
    "src/acme_tasks/lanes/redis/sentinel.py",
    "src/acme_tasks/lanes/redis/store.py",
    "src/acme_tasks/lanes/redis/transport.py",
    "src/acme_tasks/lanes/remote.py",
    "src/acme_tasks/lanes/results.py",
    "src/acme_tasks/lanes/routing.py",
    "src/acme_tasks/lanes/schedule.py",
    "src/acme_tasks/lanes/schema.py",
    "src/acme_tasks/lanes/serving.py",
    "src/acme_tasks/lanes/settings.py",
    "src/acme_tasks/lanes/sharing.py",
    "src/acme_tasks/lanes/status.py",
    "src/acme_tasks/lanes/task.py",
    "src/acme_tasks/lanes/testing.py",
    "src/acme_tasks/lanes/timeouts.py",
    "src/acme_tasks/lanes/timetable.py",
    "src/acme_tasks/lanes/typed.pyi",
    "src/acme_tasks/lanes/urloptions.py",
    "src/acme_tasks/lanes/values.py",
    "src/acme_tasks/lanes/worker.py",
    "src/acme_tasks/lanes/workers.py",
    "src/acme_tasks/py.typed",
    "src/acme_tasks/tasks.py",
    "tests/conftest.py",
    "tests/test_lanes.py",
    "tests/test_promises.py",
    "tests/test_tasks.py",
    "tox.ini",
]


def texts(project: Path) -> Iterator[tuple[str, str]]:
    return ((path, data.decode("utf-8")) for path, data in contents(project).items())


def test_the_defaults_make_exactly_these_files(baked: Baked) -> None:
    assert sorted(contents(baked("default"))) == FILES


#: What a project has for one process manager alone.
OWN = {
    "systemd": ("deploy/systemd/",),
    "supervisor": ("deploy/supervisor/",),
    "compose": ("deploy/compose/", "docs/containers.md", "Dockerfile", ".dockerignore"),
}


@every_bake
def test_other_answers_make_the_same_files_under_their_own_names(baked: Baked, name: str) -> None:
    slug, package, managers = BAKES[name].slug, BAKES[name].package, BAKES[name].process_managers
    renamed = [
        path.replace("acme-tasks", slug).replace("acme_tasks", package)
        for path in FILES
        if not path.endswith("@.service")
    ]
    units = [f"deploy/systemd/{slug}-{lane}@.service" for lane in BAKES[name].lanes]
    left_out = tuple(path for other in OWN.keys() - managers for path in OWN[other])
    wanted = [path for path in [*renamed, *units] if not path.startswith(left_out)]
    assert sorted(contents(baked(name))) == sorted(wanted)
    headings = re.findall(
        r"^## (\w+)$", (baked(name) / "deploy/README.md").read_text(), re.MULTILINE
    )
    assert headings == [each for each in OWN if each in managers]


def test_every_licence_and_process_manager_is_baked_with_others_and_alone() -> None:
    licenses = json.loads((ROOT / "cookiecutter.json").read_text())["license"]
    assert {bake.answers.get("license", licenses[0]) for bake in BAKES.values()} == set(licenses)
    managers = [bake.process_managers for bake in BAKES.values()]
    assert [each for each in OWN if [each] not in managers] == []
    assert max(map(len, managers)) == len(OWN)


@every_bake
def test_no_jinja_is_left_over(baked: Baked, name: str) -> None:
    for path, text in texts(baked(name)):
        # Some files have something to fill in when they are used.
        is_workflow = path.startswith(".github/workflows/")
        is_monitor = path.startswith(("deploy/grafana/", "deploy/prometheus/"))
        filled = r"\{\{( \$\w.*? |\w+)\}\}" if is_monitor else r"\$\{\{.*?\}\}"
        searched = re.sub(filled, "", text) if is_workflow or is_monitor else text
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
