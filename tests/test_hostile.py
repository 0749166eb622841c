"""Answers are data: whatever the text, it is refused in a line of its own or arrives unchanged."""

import json
import os
import tempfile
import tomllib
from importlib.metadata import PathDistribution
from pathlib import Path

import hatchling.build
import pytest
from cookiecutter.exceptions import FailedHookException
from hostile import CONTROL, EMPTY, LOCALE, VALUES, Value
from support import BIN, ROOT, contents, replay, succeed

QUESTIONS = [
    name for name in json.loads((ROOT / "cookiecutter.json").read_text()) if name[0] != "_"
]
LINES = {"project_name": "Acme Tasks", "description": "Sends the mail.", "author": "Acme"}
#: Where these arrive; all else must be the same whatever they are.
DOCUMENTS = ("CHANGELOG.md", "LICENSE", "README.md", "deploy/README.md")
ACCEPTED = {name: value.text for name, value in VALUES.items() if value.rule is None}
LICENSES = ("MIT", "BSD-3-Clause", "Apache-2.0", "proprietary")
PROCESS_MANAGERS = ("both", "systemd", "supervisor,compose", "systemd, supervisor, compose")


@pytest.fixture(autouse=True)
def temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cookiecutter leaves some behind when a hook fails."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path)


def shown(text: str) -> str:
    written = repr(text)
    return written if len(written) <= 80 else f"{written[:60]}... ({len(text):,} characters)"


def is_one_folder(text: str) -> bool:
    """Whether the hook gets to see it as a slug; test_answers.py has those that it does not."""
    named = text not in {"", ".", ".."} and "/" not in text and "\0" not in text
    return named and len(os.fsencode(text)) < 256


def line_problem(question: str, value: Value) -> str | None:
    """What is said of `value` as the name, description or author."""
    if value.rule is None:
        return None
    way_out = {
        EMPTY: f"(give one line of text, such as {LINES[question]!r})",
        LOCALE: "(set LC_ALL=C.UTF-8, and answer again)",
        CONTROL: f"(use one line of text, such as {LINES[question]!r})",
    }.get(value.rule, f"(leave it out, as in {value.text.strip()!r})")
    return f"{question}: {shown(value.text)} {value.rule} {way_out}"


def problems(value: Value) -> list[str]:
    """What is said when `value` is the answer to every question."""
    text = value.text
    lanes = ["empty (name at least one, such as 'slow, quick')"]
    if text.strip():
        items = [item.partition(":")[0].strip() for item in text.split(",")]
        assert len(items) == len(value.lanes)
        lanes = [
            f"{shown(item)} (use up to 30 lower-case letters, digits and '_', with commas between "
            f"lanes, such as {lane!r})"
            for item, lane in zip(items, value.lanes, strict=True)
        ]
    managers = ["empty (name at least one, such as 'systemd, supervisor')"]
    if text.strip():
        managers = [
            f"{shown(item.strip())} (use systemd, supervisor, compose, with commas between them, "
            "such as 'systemd, supervisor')"
            for item in text.split(",")
        ]
    slug = (
        f"project_slug: {shown(text)} (use up to 40 lower-case letters and digits, in words with "
        "'-' between them, such as 'acme-tasks')"
    )
    said = [
        line_problem("project_name", value),
        slug if is_one_folder(text) else None,
        f"package_name: {shown(text)} (use up to 40 lower-case letters, digits and '_', such as "
        "'acme_tasks')",
        line_problem("description", value),
        line_problem("author", value),
        *(f"lanes: {line}" for line in lanes),
        *(f"process_manager: {line}" for line in managers),
        f"license: {shown(text)} (use one of MIT, BSD-3-Clause, Apache-2.0, proprietary)",
    ]
    return [line for line in said if line is not None]


def nothing_was_run(*folders: Path) -> bool:
    return not [path for folder in folders for path in folder.rglob("*canary*")]


def test_the_table_is_long() -> None:
    assert len({value.text for value in VALUES.values()}) == len(VALUES)
    assert len(VALUES) * len(QUESTIONS) >= 800
    assert len(ACCEPTED) >= 70


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
def test_each_question_has_its_line_about_it(
    template: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], value: Value
) -> None:
    answers: dict[str, object] = dict.fromkeys(QUESTIONS, value.text)
    answers["project_slug"] = value.text if is_one_folder(value.text) else "fine"
    with pytest.raises(FailedHookException, match=r"^Hook script failed \(exit status: 1\)$"):
        replay(template, tmp_path / "out", answers)
    lines = ["These answers cannot be used; no file was written:"]
    lines += [f"  {problem}" for problem in problems(value)]
    assert capfd.readouterr().err.splitlines() == lines
    assert [*(tmp_path / "out").iterdir()] == []
    assert nothing_was_run(tmp_path, template)


def bake(template: Path, into: Path, number: int, name: str, what: str, who: str) -> Path:
    """A project with these three texts, and a licence and process manager by `number`."""
    answers: dict[str, object] = {
        "project_name": name,
        "project_slug": "odd",
        "package_name": "odd",
        "description": what,
        "author": who,
        "lanes": "slow, quick",
        "process_manager": PROCESS_MANAGERS[number % 4],
        "license": LICENSES[number % 4],
    }
    replay(template, into, answers)
    return into / "odd"


@pytest.fixture(scope="module")
def references(template: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Projects with a mark in the place of each text, one for each licence."""
    folder = tmp_path_factory.mktemp("references")
    marks = ("<the name>", "<what it does>", "<its owner>")
    projects = [bake(template, folder / str(i) / "out", i, *marks) for i in range(len(LICENSES))]
    return [{path: data.decode() for path, data in contents(each).items()} for each in projects]


def arrives(
    template: Path, folder: Path, reference: dict[str, str], number: int, texts: list[str]
) -> Path:
    """Bake `texts`; each byte is as in the reference, with them in the place of its marks."""
    name, what, who = texts
    project = bake(template, folder / str(number) / "out", number, name, what, who)
    files = {path: data.decode() for path, data in contents(project).items()}
    expected = dict(reference)
    for path in DOCUMENTS:
        expected[path] = (
            expected[path]
            .replace("<the name>", name)
            .replace("<what it does>", what)
            .replace("<its owner>", who)
        )
    written = tomllib.loads(files.pop("pyproject.toml"))
    wanted = tomllib.loads(expected.pop("pyproject.toml"))
    wanted["project"] |= {"description": what, "authors": [{"name": who}]}
    assert written == wanted
    assert sorted(files) == sorted(expected)
    for path, text in files.items():
        assert text == expected[path], path
    assert [
        path for path in project.rglob("*") if path.is_file() and os.access(path, os.X_OK)
    ] == []
    assert nothing_was_run(folder, template)
    return project


def packs(shift: int) -> list[list[str]]:
    """Each accepted text once, three at a time: as a name, a description or an author."""
    texts = [*ACCEPTED.values()]
    texts += texts[: -len(texts) % 3]
    threes = [texts[i : i + 3] for i in range(0, len(texts), 3)]
    return [three[shift:] + three[:shift] for three in threes]


@pytest.mark.parametrize("number", range(0, len(packs(0)), 4))
def test_what_is_accepted_arrives_as_it_is(
    template: Path, references: list[dict[str, str]], tmp_path: Path, number: int
) -> None:
    texts = packs(number % 3)[number]
    arrives(template, tmp_path, references[number % 4], number, texts)


@pytest.mark.slow
@pytest.mark.parametrize("shift", [0, 1, 2], ids=["first", "second", "third"])
def test_all_that_is_accepted_arrives_in_every_place_and_the_project_checks(
    template: Path,
    env: dict[str, str],
    references: list[dict[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    shift: int,
) -> None:
    projects = []
    for number, texts in enumerate(packs(shift)):
        project = arrives(template, tmp_path, references[number % 4], number, texts)
        # What an installed project says of itself, by the build backend's own code.
        monkeypatch.chdir(project)
        info = hatchling.build.prepare_metadata_for_build_wheel(str(project.parent))
        metadata = PathDistribution(project.parent / info).metadata
        assert [metadata["Summary"], metadata["Author"]] == texts[1:]
        assert metadata["Description"] == (project / "README.md").read_text()
        projects.append(project)
    succeed(BIN / "ruff", "check", "--no-cache", *projects, cwd=tmp_path, env=env)
    succeed(BIN / "ruff", "format", "--no-cache", "--diff", *projects, cwd=tmp_path, env=env)
