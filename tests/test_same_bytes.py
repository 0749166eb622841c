"""Generation is a function of the answers: the same ones make the same bytes, always."""

import json
import os
import sys
from pathlib import Path

import pytest
from support import POOR_LOCALE, bake, contents, environment, run

ANSWERS = {
    "project_name": 'Nacht & Nebel "GmbH"',
    "project_slug": "night-desk",
    "package_name": "desk",
    "description": "Antwortet nachts \\ 東京.",
    "author": "Café 'Ü' 🚀",
    "lanes": "exports:slow, alarms:quick, rest",
    "process_manager": "compose, systemd",
    "license": "BSD-3-Clause",
}
#: What a user's own settings may hold: other answers, wrong ones, and Jinja.
SETTINGS = {
    "default_context": dict.fromkeys(ANSWERS, "{{ 1/0 }} Other") | {"author": None},
    "abbreviations": {"gh": "https://localhost/{0}"},
}
#: Another clock for Cookiecutter and its hooks, with a line from each that has it.
CLOCK = """\
import os, time, time_machine
time_machine.travel("2031-12-31T23:59:59+00:00", tick=True).start()
with open(os.environ["CLOCK_LOG"], "a") as log:
    print(time.strftime("%Y-%m-%d"), file=log)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("first")


@pytest.fixture(scope="module")
def first(template: Path, home: Path) -> dict[str, bytes]:
    """The files of the first bake, which the others are held against."""
    result = bake(template, home / "out", ANSWERS, environment(home))
    assert result.returncode == 0, result.stderr
    return contents(home / "out/night-desk")


def again(template: Path, into: Path, **more: str) -> Path:
    result = bake(template, into / "out", ANSWERS, environment(into, **more))
    assert result.returncode == 0, result.stderr
    return into / "out/night-desk"


def test_in_another_zone_locale_and_home_without_any_program(
    template: Path, tmp_path: Path, first: dict[str, bytes]
) -> None:
    # The zones here are POSIX's, for machines without a list of those with names.
    elsewhere = {"TZ": "CHA-12:45", "LC_ALL": "C", "PYTHONHASHSEED": "7"}
    project = again(template, tmp_path, **elsewhere, PATH="/nonexistent")
    assert contents(project) == first


def test_in_a_locale_that_knows_ascii_alone(template: Path, tmp_path: Path) -> None:
    """With answers that it can write; of others it is told."""
    made = []
    for name, locale in {"poor": POOR_LOCALE, "usual": {}}.items():
        result = bake(template, tmp_path / name, {}, environment(tmp_path, **locale))
        assert result.returncode == 0, result.stderr
        made.append(contents(tmp_path / name / "acme-tasks"))
    assert made[0] == made[1]


def test_in_another_year(template: Path, tmp_path: Path, first: dict[str, bytes]) -> None:
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    log = tmp_path / "log"
    clock = {"PYTHONPATH": str(tmp_path), "CLOCK_LOG": str(log), "TZ": "KIR-14"}
    project = again(template, tmp_path, **clock)
    # Cookiecutter and three hooks; in that zone it is the next year.
    assert log.read_text().splitlines() == ["2032-01-01"] * 4
    assert contents(project) == first


@pytest.mark.slow
@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o000, 0o666)], ids=["077", "000"])
def test_under_another_umask_and_no_file_is_executable(
    template: Path, tmp_path: Path, first: dict[str, bytes], umask: int, mode: int
) -> None:
    before = os.umask(umask)
    try:
        project = again(template, tmp_path)
    finally:
        os.umask(before)
    assert contents(project) == first
    modes = {path: path.stat().st_mode & 0o777 for path in project.rglob("*") if path.is_file()}
    assert [path for path, each in modes.items() if each & 0o111] == []
    # What a hook writes has the user's mode, and the rest that of the template's files.
    assert modes[project / "deploy/systemd/night-desk.target"] == mode


def test_whatever_the_users_own_settings_are(
    template: Path, tmp_path: Path, first: dict[str, bytes]
) -> None:
    (tmp_path / ".cookiecutterrc").write_text(json.dumps(SETTINGS))
    assert contents(again(template, tmp_path)) == first


@pytest.mark.slow
def test_into_a_folder_with_an_odd_name(
    template: Path, tmp_path: Path, first: dict[str, bytes]
) -> None:
    odd = tmp_path / """a "b" '''c''' \\ $(touch canary) 東京 \udcff"""
    assert contents(again(template, odd)) == first
    assert [*tmp_path.rglob("*canary")] == []


@pytest.mark.slow
@pytest.mark.parametrize("how", ["replay-file", "replay"])
def test_when_replayed(
    template: Path, home: Path, tmp_path: Path, first: dict[str, bytes], how: str
) -> None:
    """Cookiecutter keeps the answers of the last bake of each template in the user's home."""
    assert first
    kept = home / ".cookiecutter_replay/celery-lanes-template.json"
    words = ["--replay-file", kept] if how == "replay-file" else ["--replay"]
    command = [sys.executable, "-m", "cookiecutter", template, *words, "-o", tmp_path]
    result = run(*command, cwd=tmp_path, env=environment(home))
    assert result.returncode == 0, result.stderr
    assert contents(tmp_path / "night-desk") == first


@pytest.mark.slow
def test_over_what_was_there(template: Path, tmp_path: Path, first: dict[str, bytes]) -> None:
    project = again(template, tmp_path)
    (project / "README.md").write_text("mine")
    (project / "deploy/systemd/night-desk-old@.service").write_text("mine")
    words = [f"{key}={value}" for key, value in ANSWERS.items()]
    command = [sys.executable, "-m", "cookiecutter", template, "--no-input", "-f", *words]
    result = run(*command, cwd=tmp_path / "out", env=environment(tmp_path))
    assert result.returncode == 0, result.stderr
    # Which removes nothing: a unit without our mark is its owner's.
    assert contents(project) == first | {"deploy/systemd/night-desk-old@.service": b"mine"}
