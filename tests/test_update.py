"""A project that its owner has changed takes later versions of the template, with cruft."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
from support import BIN, PROJECT, ROOT, clone, commit, git, index, install, run, succeed, units

CRUFT = BIN / "cruft"
#: `both` was a choice of two process managers, until there was a third; those who chose it go on.
ANSWERS = {"license": "Apache-2.0", "process_manager": "both"}
QUESTION = '"process_manager": "systemd, supervisor, compose",'
CHOICE = '"process_manager": ["both", "systemd", "supervisor"],'
PACKAGE = "src/acme_tasks"
TASKS, LANES = f"{PACKAGE}/tasks.py", f"{PACKAGE}/lanes.toml"

Edits = dict[str, list[tuple[str, str]]]  # path -> what is replaced, by what

NEW_TASK = '''

@app.task(lane="premium")
def invoice_task(number: int) -> int:
    """Write an invoice."""
    return number
'''
NEW_LANE = """
[lanes.premium]
profile = "quick"
concurrency = 8
time_limit = "20s"
"""
#: What an owner does to a project; an empty text stands for the end of the file.
OWNER: Edits = {
    TASKS: [("", NEW_TASK)],
    LANES: [("nice = 10 ", "nice = 7 "), ("\n# By task name", f"{NEW_LANE}\n# By task name")],
}
#: What a later version of the template has done; the new line stands beside the owner's `nice`.
RELEASE: Edits = {
    "README.md": [("", "\nIts second version.\n")],
    "docs/second.md": [("", "# New in the second version\n")],
    f"{PACKAGE}/lanes/deploy/systemd.py": [("\nNice=", "\nIOWeight=50\nNice=")],
    LANES: [("# The lanes:", "# The lanes of this project:")],
    TASKS: [("Your tasks.", "The tasks are yours.")],
}
UNRELEASED: Edits = {"README.md": [("", "\nNot released.\n")]}


def edit(folder: Path, edits: Edits, *, package: str = "acme_tasks") -> None:
    for name, changes in edits.items():
        path = folder / name.replace("acme_tasks", package)
        text = path.read_text() if path.exists() else ""
        for old, new in changes:
            assert old in text, f"{path}: {old!r}"
            text = text.replace(old, new, 1) if old else text + new
        path.write_text(text)


def update(project: Path, version: str, env: dict[str, str]) -> None:
    succeed(CRUFT, "update", "--skip-apply-ask", "--checkout", version, cwd=project, env=env)


def changed(project: Path, env: dict[str, str]) -> dict[str, str]:
    """Files that differ from the last commit, with git's letter for what has become of each."""
    listed = git("status", "--porcelain", "--untracked-files=all", cwd=project, env=env)
    return {path: letters.strip() for letters, path in re.findall(r"(..) (.+)\n", listed)}


@pytest.fixture(scope="module")
def template_repository(env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template with two versions, v1.0.0 and v1.1.0, and a commit that is in neither."""
    folder = tmp_path_factory.mktemp("git") / "celery-lanes-template"
    clone(folder, env)
    edit(folder, {"cookiecutter.json": [(QUESTION, CHOICE)]})
    commit(folder, "the choice of old", env)
    git("tag", "v1.0.0", cwd=folder, env=env)
    edit(folder, {"cookiecutter.json": [(CHOICE, QUESTION)]})
    for edits, tag in ((RELEASE, "v1.1.0"), (UNRELEASED, "main-as-it-is")):
        edit(folder / PROJECT, edits, package="{{cookiecutter.package_name}}")
        commit(folder, tag, env)
        git("tag", tag, cwd=folder, env=env)
    return folder


@pytest.fixture(scope="module")
def first(
    template_repository: Path, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A project made with cruft from v1.0.0, as it comes: no repository yet."""
    into = tmp_path_factory.mktemp("first")
    answers = ["--no-input", "--extra-context", json.dumps(ANSWERS)]
    source = f"file://{template_repository}"
    succeed(CRUFT, "create", source, "--checkout", "v1.0.0", *answers, cwd=into, env=env)
    return into / "acme-tasks"


@pytest.fixture(scope="module")
def owned(first: Path, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with two commits: as it came, and with the owner's edits."""
    project = tmp_path_factory.mktemp("owned") / "acme-tasks"
    shutil.copytree(first, project)
    commit(project, "as it came", env)
    edit(project, OWNER)
    units(project, env)
    commit(project, "the owner's edits", env)
    return project


@pytest.fixture
def project(owned: Path, tmp_path: Path) -> Path:
    return shutil.copytree(owned, tmp_path / "acme-tasks")


def test_an_update_brings_what_is_new_and_an_edit_survives_it(
    project: Path, env: dict[str, str]
) -> None:
    edited = {path: (project / path).read_text() for path in (TASKS, LANES)}
    update(project, "v1.1.0", env)
    assert changed(project, env) == {
        ".cruft.json": "M",
        "README.md": "M",
        "docs/second.md": "A",
        f"{PACKAGE}/lanes/deploy/systemd.py": "M",
        LANES: "M",
        TASKS: "M",
    }
    for path, text in edited.items():
        old, new = RELEASE[path][0]
        assert (project / path).read_text() == text.replace(old, new, 1)
    assert (project / "README.md").read_text().endswith("\n\nIts second version.\n")


def test_an_update_leaves_rendered_files_to_the_owners_lanes(
    project: Path, env: dict[str, str]
) -> None:
    """They follow from a lanes.toml that the template does not know: merged, they would clash."""
    update(project, "v1.1.0", env)
    assert not [path for path in changed(project, env) if path.startswith("deploy/")]
    lanes = ("premium", "quick", "slow")
    written = [f"wrote deploy/systemd/acme-tasks-{lane}@.service" for lane in lanes]
    assert units(project, env).splitlines() == written
    slow = (project / "deploy/systemd/acme-tasks-slow@.service").read_text()
    assert "\nIOWeight=50\nNice=7\n" in slow


@pytest.mark.slow
@pytest.mark.parametrize("version", ["v1.0.0", "v1.1.0"])
def test_the_difference_to_the_template_is_what_the_owner_edited(
    project: Path, env: dict[str, str], version: str
) -> None:
    if version != "v1.0.0":
        update(project, version, env)
        units(project, env)
    said = succeed(CRUFT, "diff", cwd=project, env=env)
    # From the project to the template: what the owner has added is what is missing there.
    lines = re.findall(r"^([-+])(?!-- |\+\+ )(.*)", said, re.MULTILINE)
    theirs = [line for sign, line in lines if sign == "+"]
    owners = [line for sign, line in lines if sign == "-"]
    assert [line.partition("#")[0].rstrip() for line in theirs] == ["nice = 10"]
    assert re.findall(r"^diff --git \S+?/(\S+)", said, re.MULTILINE) == [LANES, TASKS]
    nice, rest = owners[0], owners[1:]
    assert nice.startswith("nice = 7 ")
    assert sorted(rest) == sorted((NEW_LANE + NEW_TASK).splitlines())


@pytest.mark.slow
def test_check_says_whether_a_project_has_a_version(project: Path, env: dict[str, str]) -> None:
    check = [CRUFT, "check", "--checkout"]
    assert run(*check, "v1.1.0", cwd=project, env=env).returncode == 1
    update(project, "v1.1.0", env)
    assert run(*check, "v1.1.0", cwd=project, env=env).returncode == 0
    # Without a version, it is the newest commit, released or not.
    assert run(CRUFT, "check", cwd=project, env=env).returncode == 1


def test_the_answers_and_the_version_are_kept_in_git(project: Path, env: dict[str, str]) -> None:
    update(project, "v1.1.0", env)
    assert ".cruft.json" in git("ls-files", cwd=project, env=env).splitlines()
    kept = json.loads((project / ".cruft.json").read_text())
    assert kept["checkout"] == "v1.1.0"
    answers = kept["context"]["cookiecutter"]
    assert {name: answers[name] for name in ANSWERS} == ANSWERS
    assert "LICENSE" not in changed(project, env)


def test_who_chose_both_process_managers_goes_on_with_these_two(
    project: Path, env: dict[str, str]
) -> None:
    update(project, "v1.1.0", env)
    folders = {path.name for path in (project / "deploy").iterdir() if path.is_dir()}
    assert folders == {"grafana", "prometheus", "supervisor", "systemd"}
    assert not (project / "Dockerfile").exists()
    assert (
        'process_managers=("systemd", "supervisor"),'
        in (project / f"{PACKAGE}/__main__.py").read_text()
    )


CLASH: Edits = {LANES: [("# The lanes:", "# Our lanes:")]}


@pytest.mark.slow
def test_a_line_that_both_have_changed_is_marked_in_its_file(
    project: Path, env: dict[str, str]
) -> None:
    edit(project, CLASH)
    commit(project, "a line that the template changes too", env)
    update(project, "v1.1.0", env)
    assert {path for path, letters in changed(project, env).items() if letters == "UU"} == {LANES}
    marked = (project / LANES).read_text()
    both = r"<<<<<<< ours\n# Our lanes:.*\n=======\n# The lanes of this project:.*\n>>>>>>> theirs"
    conflict = re.search(both, marked)
    assert conflict, marked
    # All the rest has come.
    assert (project / "docs/second.md").exists()
    ours = conflict[0].splitlines()[1]
    (project / LANES).write_text(marked.replace(conflict[0], ours))
    commit(project, "update to v1.1.0", env)
    assert run(CRUFT, "check", "--checkout", "v1.1.0", cwd=project, env=env).returncode == 0
    assert units(project, env) != ""


def test_where_git_never_saw_the_file_as_it_came_a_clash_is_left_beside_it(
    first: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    project = shutil.copytree(first, tmp_path / "acme-tasks")
    edit(project, CLASH)
    commit(project, "the first one, with an edit in it", env)
    update(project, "v1.1.0", env)
    assert changed(project, env)[f"{LANES}.rej"] == "??"
    assert "\n+# The lanes of this project:" in (project / f"{LANES}.rej").read_text()
    assert (project / LANES).read_text().startswith("# Our lanes:")
    assert (project / "docs/second.md").exists()


def test_an_update_begins_from_a_clean_checkout_only(project: Path, env: dict[str, str]) -> None:
    (project / "notes.txt").write_text("not committed\n")
    result = run(CRUFT, "update", "-y", "--checkout", "v1.1.0", cwd=project, env=env)
    assert "unclean git project" in result.stdout + result.stderr
    assert changed(project, env) == {"notes.txt": "??"}


@pytest.mark.slow
def test_a_project_made_without_cruft_is_linked_and_updated(
    template_repository: Path, owned: Path, tmp_path: Path, env: dict[str, str]
) -> None:
    source = f"file://{template_repository}"
    words = [f"{name}={value}" for name, value in ANSWERS.items()]
    bake = [sys.executable, "-m", "cookiecutter", source, "--checkout", "v1.0.0", "--no-input"]
    succeed(*bake, *words, cwd=tmp_path, env=env)
    project = tmp_path / "acme-tasks"
    commit(project, "as it came", env)
    edit(project, OWNER)
    units(project, env)
    answers = ["--no-input", "--extra-context", json.dumps(ANSWERS)]
    succeed(CRUFT, "link", source, "--checkout", "v1.0.0", *answers, cwd=project, env=env)
    commit(project, "linked", env)
    assert (project / ".cruft.json").read_text() == (owned / ".cruft.json").read_text()
    update(project, "v1.1.0", env)
    assert set(changed(project, env).values()) == {"A", "M"}
    assert NEW_TASK in (project / TASKS).read_text()


def test_an_old_python_is_told_where_cruft_asks_nothing(
    env: dict[str, str], tmp_path: Path
) -> None:
    """Cruft runs no pre_prompt hook."""
    hook = ROOT / "hooks/pre_gen_project.py"
    program = (
        f"import sys; sys.version_info = (3, 10, 4, 'final', 0); exec(open({str(hook)!r}).read())"
    )
    result = run(sys.executable, "-c", program, cwd=tmp_path, env=env)
    assert (result.returncode, result.stderr) == (
        1,
        "celery-lanes-template needs Python 3.11 or later, and this is 3.10.4. Install cruft with "
        "a newer one, for example: pipx install --python python3.13 cruft\n",
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_updated_project_passes_its_checks_and_tests(project: Path, env: dict[str, str]) -> None:
    """All of its tests: of the default lanes and one more, they are the ones that run in full."""
    update(project, "v1.1.0", env)
    install(project / ".venv", "--editable", f"{project}[dev]", env=env)
    (project / ".venv/installed").write_text(f"{project}\n")  # as `make install` leaves it
    bare = env | index()
    succeed("make", "units", cwd=project, env=bare)
    succeed("make", "check", cwd=project, env=bare)
    printed = succeed("make", "test", cwd=project, env=bare)
    # No test is skipped, expected to fail, or warned about.
    assert re.fullmatch(r"=+ \d{2,} passed in .*=", printed.splitlines()[-1]), printed
