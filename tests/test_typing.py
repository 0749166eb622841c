"""What mypy and pyright see of a task, of the runtime and of every page: the same, and no error."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import PROJECT, ROOT, run

pytestmark = pytest.mark.slow

TYPING = Path(__file__).parent / "typing"
PAGES = [
    f"docs/{path.name}"
    for path in sorted((ROOT / PROJECT / "docs").glob("*.md"))
    if "```python\n" in path.read_text()
]
FENCE = re.DOTALL | re.MULTILINE
BLOCK = re.compile(r"^```python\n(?:# (\S+\.py)(?:, at the end)?\n)?(.*?)^```", FENCE)
PROGRAM = re.compile(r'python .*?-c "(.*?)"')
#: What fragments of the pages take for granted, by how they begin.
PRELUDES = {
    "app.conf.task_routes": "from proj.celery import app",
    "app.conf.beat_schedule": "from acme_tasks.celery import app",
    'INSTALLED_APPS += ["orders"]': "INSTALLED_APPS: list[str] = []",
    '@app.task(lane="slow")\ndef slow_task': "from acme_tasks.celery import app",
    "slow_task.send_many": "from acme_tasks.tasks import slow_task",
    '@app.task(lane="quick", key=': "from acme_tasks.celery import app",
}
#: docs/moving-in.md moves another project in.
OTHER_PROJECT = """
```python
# proj/celery.py
from celery import Celery

app = Celery("proj")
```
"""

Baked = Callable[[str], Path]
Complaints = set[tuple[str, int]]  # file and line


def mypy(folder: Path, env: dict[str, str], *files: str) -> Complaints:
    """Where mypy finds errors, in `files` or where the project says."""
    cache = f"--cache-dir={env['HOME']}/mypy"  # of what is installed, for all tests
    command = [sys.executable, "-m", "mypy", "--strict", "--output=json", cache]
    done = run(*command, *files, cwd=folder, env=env)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(each["file"], each["line"]) for each in found if each["severity"] == "error"}


def pyright(folder: Path, env: dict[str, str], *files: str) -> Complaints:
    """Where pyright finds errors or has warnings, likewise."""
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    done = run(*command, *files, cwd=folder, env=env)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = json.loads(done.stdout)["generalDiagnostics"]
    return {
        (str(Path(each["file"]).relative_to(folder.resolve())), each["range"]["start"]["line"] + 1)
        for each in found
        if each["severity"] in ("error", "warning")
    }


CHECKERS = pytest.mark.parametrize("checker", [mypy, pyright], ids=["mypy", "pyright"])


@pytest.fixture
def project(baked: Baked, tmp_path: Path) -> Path:
    """What the checkers read of a bake, to add files to."""
    folder = tmp_path / "project"
    shutil.copytree(baked("default") / "src", folder / "src")
    shutil.copy(baked("default") / "pyproject.toml", folder)
    return folder


@CHECKERS
def test_the_owners_page_and_the_runtime_have_no_error(
    project: Path, env: dict[str, str], checker: Callable[..., Complaints]
) -> None:
    assert checker(project, env) == set()


@CHECKERS
@pytest.mark.parametrize("name", ["passes.py", "fails.py"])
def test_the_lines_that_must_fail_do_and_no_others(
    project: Path, env: dict[str, str], checker: Callable[..., Complaints], name: str
) -> None:
    lines = (TYPING / name).read_text().splitlines()
    wanted = {(name, number) for number, line in enumerate(lines, 1) if line.endswith("# error")}
    assert bool(wanted) == (name == "fails.py")
    shutil.copy(TYPING / name, project)
    assert checker(project, env, name) == wanted


def place(page: str, folder: Path) -> list[str]:
    """Write the code of a page to files, and return their names.

    A block that names its file in its first line is that file, or its end.
    """
    blocks = BLOCK.findall(page) + [("", code) for code in PROGRAM.findall(page)]
    for number, (path, code) in enumerate(blocks):
        prelude = [text for begins, text in PRELUDES.items() if code.startswith(begins)]
        name = re.sub(r"^\.\./acme-tasks/", "", path) or f"block_{number}.py"
        if code.startswith("from .celery import app"):
            name = "src/acme_tasks/tasks.py"
        file = folder / name
        if not file.parent.exists():
            file.parent.mkdir()
            (file.parent / "__init__.py").touch()
            # docs/tasks.md moves tasks.py there.
            if (module := file.parent.with_suffix(".py")).exists():
                module.replace(file.parent / "__init__.py")
        before = file.read_text() if file.exists() and not code.startswith("from .") else ""
        file.write_text("\n".join([before, *prelude, code]))
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))


@CHECKERS
@pytest.mark.parametrize("page", ["README.md", f"{PROJECT}/README.md", *PAGES])
def test_what_the_pages_show_has_no_error(
    project: Path,
    baked: Baked,
    env: dict[str, str],
    checker: Callable[..., Complaints],
    page: str,
) -> None:
    of_template = page == "README.md"
    text = (ROOT if of_template else baked("default")) / page.removeprefix(f"{PROJECT}/")
    files = place(text.read_text() + OTHER_PROJECT, project)
    if checker is mypy:  # which would need the plugin of django-stubs for the fields of a model
        files.append("--disable-error-code=var-annotated")
    assert checker(project, env, *files) == set()


def test_the_pages_have_code_to_check(baked: Baked) -> None:
    texts = [(baked("default") / page).read_text() for page in PAGES]
    shown = sum(text.count("```python") for text in texts)
    assert shown == sum(len(BLOCK.findall(text)) for text in texts) > 15
