"""A project as a package: what its wheel and its sdist hold, and that they work elsewhere."""

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from processes import broker
from support import BIN, ROOT, bake, contents, install, run, succeed

Baked = Callable[[str], Path]

WHEEL = "acme_tasks-0.1.0-py3-none-any.whl"
SDIST = "acme_tasks-0.1.0"
#: What may lie in a checkout, and is nobody else's business.
LITTER = (
    *(".env", ".env.production", "notes.txt", ".lanes/valkey/dump.rdb", ".cruft.json"),
    *("deploy/compose/environment", "deploy/compose/secrets/BROKER_URL"),
)


def test_every_dependency_has_a_lower_and_an_upper_bound(baked: Baked) -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    output = tomllib.loads((baked("default") / "pyproject.toml").read_text())
    project = output["project"]
    lists = [*groups.values(), output["build-system"]["requires"], project["dependencies"]]
    texts = [text for each in [*lists, *project["optional-dependencies"].values()] for text in each]
    for requirement in (Requirement(text) for text in texts if isinstance(text, str)):
        if requirement.name != project["name"]:
            bounds = sorted(specifier.operator for specifier in requirement.specifier)
            assert bounds in (["<", ">="], ["=="]), requirement


def build(project: Path, into: str, env: dict[str, str], *only: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", into, *only]
    succeed(*command, cwd=project, env=env)


@pytest.fixture(scope="module")
def project(template: Path, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project, built into its dist/ while an owner's own files lie about."""
    into = tmp_path_factory.mktemp("package")
    assert bake(template, into, {}, env).returncode == 0
    project = into / "acme-tasks"
    for path in map(project.joinpath, LITTER):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("secret")
    build(project, "dist", env)
    assert {path.name for path in (project / "dist").iterdir()} == {WHEEL, f"{SDIST}.tar.gz"}
    return project


@pytest.fixture(scope="module")
def wheel(project: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(project / "dist" / WHEEL) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def unpacked(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist's files."""
    into = tmp_path_factory.mktemp("sdist")
    with tarfile.open(project / f"dist/{SDIST}.tar.gz") as archive:
        archive.extractall(into, filter="data")
    return into / SDIST


def test_the_wheel_holds_the_package_alone(baked: Baked, wheel: dict[str, bytes]) -> None:
    metadata = {name for name in wheel if name.startswith(f"{SDIST}.dist-info/")}
    source = contents(baked("default") / "src")
    assert {name: data for name, data in wheel.items() if name not in metadata} == source
    assert {name.partition("/")[2] for name in metadata} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }
    # What is read at run time, beside the modules.
    assert {Path(name).suffix for name in source} == {".lua", ".py", ".pyi", ".toml", ".typed"}


def test_the_sdist_holds_the_project_and_nothing_that_lies_about(
    baked: Baked, unpacked: Path
) -> None:
    files = contents(unpacked)
    del files["PKG-INFO"]
    workflows = ".github/"
    assert files == {
        path: data
        for path, data in contents(baked("default")).items()
        if not path.startswith(workflows)
    }


def test_the_sdist_makes_the_same_wheel_as_the_project(
    project: Path, env: dict[str, str], wheel: dict[str, bytes]
) -> None:
    # That in dist/ was made from the sdist; this one is not.
    build(project, "direct", env, "--wheel")
    with zipfile.ZipFile(project / "direct" / WHEEL) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == wheel


def test_the_sdist_passes_its_own_tests(unpacked: Path, env: dict[str, str]) -> None:
    some = ["tests/test_tasks.py", "tests/test_lanes.py"]
    quiet = env | {"PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *some]
    assert " passed in " in succeed(*command, cwd=unpacked, env=quiet)


def test_the_metadata_is_valid_and_says_what_pyproject_says(
    project: Path, wheel: dict[str, bytes]
) -> None:
    metadata = Metadata.from_email(wheel[f"{SDIST}.dist-info/METADATA"])  # checks each field
    declared = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    assert (metadata.name, str(metadata.version)) == (declared["name"], declared["version"])
    assert metadata.summary == declared["description"]
    assert str(metadata.requires_python) == ">=3.11"
    assert (metadata.license_expression, metadata.license_files) == ("MIT", ["LICENSE"])
    assert metadata.description == (project / "README.md").read_text()
    assert metadata.description_content_type == "text/markdown"
    assert metadata.provides_extra == sorted(declared["optional-dependencies"])
    always = {each for each in metadata.requires_dist or [] if each.marker is None}
    assert always == set(map(Requirement, declared["dependencies"]))


def test_a_proprietary_project_says_so_in_valid_metadata(
    template: Path, env: dict[str, str], tmp_path: Path
) -> None:
    assert bake(template, tmp_path, {"license": "proprietary"}, env).returncode == 0
    build(tmp_path / "acme-tasks", "dist", env, "--wheel")
    with zipfile.ZipFile(tmp_path / "acme-tasks/dist" / WHEEL) as archive:
        metadata = Metadata.from_email(archive.read(f"{SDIST}.dist-info/METADATA"))
    assert metadata.license_expression == "LicenseRef-Proprietary"


@pytest.fixture(scope="module")
def installed(project: Path, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ of a virtual environment that has the wheel, what that asks for, and no more."""
    folder = tmp_path_factory.mktemp("installed")
    return install(folder / "venv", project / "dist" / WHEEL, env=env)


@pytest.mark.slow
def test_the_command_works_from_the_wheel_in_any_folder(
    baked: Baked, installed: Path, env: dict[str, str], tmp_path: Path
) -> None:
    command = installed / "acme-tasks"
    check = ("pip", "check", "--python", installed / "python")
    succeed(BIN / "uv", *check, cwd=tmp_path, env=env)
    assert "Usage: acme-tasks" in succeed(command, "--help", cwd=tmp_path, env=env)
    assert "quick_tasks" in succeed(command, "lanes", cwd=tmp_path, env=env)
    assert run(command, "units", "--check", cwd=tmp_path, env=env).returncode == 1
    succeed(command, "units", cwd=tmp_path, env=env)
    assert succeed(command, "units", "--check", cwd=tmp_path, env=env) == ""
    rendered = contents(baked("default") / "deploy")
    del rendered["README.md"]
    assert contents(tmp_path / "deploy") == rendered


@pytest.mark.slow
def test_what_only_a_checkout_has_is_an_error_that_names_it(
    installed: Path, env: dict[str, str], tmp_path: Path
) -> None:
    result = run(installed / "acme-tasks", "workers", cwd=tmp_path, env=env)
    assert result.returncode == 2
    assert result.stderr == (
        "workers needs supervisor, which is not installed: pip install -e '.[local]'\n"
    )


@pytest.mark.slow
def test_a_worker_from_the_wheel_runs_a_task(
    installed: Path, env: dict[str, str], tmp_path: Path
) -> None:
    send = "from acme_tasks.tasks import quick_task; print(quick_task.delay(7).get(timeout=60))"
    with broker() as (url, _), (tmp_path / "log").open("w") as log:
        there = env | {"BROKER_URL": url}
        command = [str(installed / "acme-tasks"), "worker", "quick"]
        with subprocess.Popen(command, cwd=tmp_path, env=there, stdout=log, stderr=log) as worker:
            try:
                answer = succeed(installed / "python", "-c", send, cwd=tmp_path, env=there)
            finally:
                worker.terminate()
        assert (answer, worker.returncode) == ("7\n", 0), (tmp_path / "log").read_text()


@pytest.mark.slow
def test_who_imports_the_tasks_gets_their_types(
    installed: Path, env: dict[str, str], tmp_path: Path
) -> None:
    sender = "from acme_tasks.tasks import quick_task\n\nquick_task.delay(7)\n"
    (tmp_path / "sender.py").write_text(sender)
    strict = ["--strict", f"--cache-dir={env['HOME']}/mypy"]
    command = [sys.executable, "-m", "mypy", *strict, "--python-executable", installed / "python"]
    succeed(*command, "sender.py", cwd=tmp_path, env=env)
