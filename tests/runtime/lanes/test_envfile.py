from pathlib import Path
from typing import Any

import pytest
from harness import Project

from acme_tasks.lanes import envfile
from acme_tasks.lanes.errors import UsageError

RULE = "(expected NAME=value, in characters that the locale has)"
LANES = 'default_lane = "quick"\n[lanes.quick]\n'


def write(folder: Path, text: str) -> Path:
    path = folder / ".env"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_not_set_is_read(tmp_path: Path) -> None:
    text = '# ours\nA=1\nexport B="two words" # more\nC=\n\nD\nE=${A}#2\n'
    environ: dict[str, str] = {}
    assert envfile.read(write(tmp_path, text), environ) == ["A", "B", "C", "E"]
    assert environ == {"A": "1", "B": "two words", "C": "", "E": "${A}#2"}


def test_what_is_set_stays_as_it_is(tmp_path: Path) -> None:
    environ = {"A": "0", "B": ""}
    assert envfile.read(write(tmp_path, "A=1\nB=2\nC=3\n"), environ) == ["C"]
    assert environ == {"A": "0", "B": "", "C": "3"}


def test_no_file_says_nothing(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    assert envfile.read(tmp_path / ".env", environ) == []
    assert environ == {}


def test_a_line_that_cannot_be_read_is_named_and_not_repeated(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    path = write(tmp_path, "A=1\n\nBROKER_URL redis://:secret@host\n")
    with pytest.raises(UsageError) as caught:
        envfile.read(path, environ)
    assert str(caught.value) == f"{path}: line 3 cannot be read {RULE}"
    assert environ == {}


def test_text_that_is_not_utf_8_is_told(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes("NAME=schön\n".encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        envfile.read(path, {})
    assert str(caught.value) == f"{path}: not UTF-8 text: invalid start byte; save it as UTF-8"


@pytest.mark.parametrize("text", ["A=b\0c", "'a=b'=c"], ids=["a NUL byte", "a name with ="])
def test_what_no_environment_takes_is_told(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen before: a traceback."""
    monkeypatch.delenv("A", raising=False)
    path = write(tmp_path, f"\n{text}\n")
    with pytest.raises(UsageError) as caught:
        envfile.read(path)
    assert str(caught.value) == f"{path}: line 2 cannot be set {RULE}"


def test_a_character_that_the_locale_lacks_is_told(tmp_path: Path, broker: Any) -> None:
    project = Project(tmp_path, LANES, broker.url)
    project.environment |= {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    write(tmp_path, "NAME=schön\n")
    told = project.run("lanes")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == f".env: line 1 cannot be set {RULE}\n"


def test_a_mark_at_the_beginning_is_no_part_of_a_name(tmp_path: Path) -> None:
    environ: dict[str, str] = {}
    assert envfile.read(write(tmp_path, "\ufeffA=1\n"), environ) == ["A"]


def test_the_command_goes_by_it_and_says_so(tmp_path: Path, broker: Any) -> None:
    project = Project(tmp_path, LANES, broker.url)
    del project.environment["BROKER_URL"]
    write(tmp_path, f"BROKER_URL={broker.url}\nLANES_FILE=/nowhere\n")
    broker.redis.lpush("quick_tasks", "a message")
    told = project.run("status", "--json")
    assert (told.returncode, told.stderr) == (0, "read from .env: BROKER_URL\n")
    assert '"waiting": 1' in told.stdout


def test_a_worker_goes_by_it(tmp_path: Path, broker: Any) -> None:
    project = Project(tmp_path, LANES, broker.url)
    del project.environment["BROKER_URL"]
    write(tmp_path, f"BROKER_URL={broker.url}\n")
    with project.workers("quick") as workers:
        assert f"Connected to {broker.url}" in workers["quick"].log


def test_a_mistake_in_it_ends_the_command_in_one_line(tmp_path: Path, broker: Any) -> None:
    project = Project(tmp_path, LANES, broker.url)
    write(tmp_path, "what is this\n")
    told = project.run("lanes")
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr == f".env: line 1 cannot be read {RULE}\n"
