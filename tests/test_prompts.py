"""The questions, asked in a terminal."""

import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import pexpect
import pytest
from processes import PATIENCE
from support import ROOT, contents

Terminal: TypeAlias = "pexpect.spawn[str]"

SCREEN = """\
  [1/8] Name of the project, for people (Acme Tasks):
  [2/8] Its folder, distribution and command (acme-tasks):
  [3/8] Its import name (acme_tasks):
  [4/8] What it does, in one sentence (Background work in lanes: a flood of slow
tasks never delays a quick one.):
  [5/8] Who owns it (Acme):
  [6/8] Its lanes: names with commas between them, each name or name:profile
(profiles: quick, standard, slow) (slow, quick):
  [7/8] What runs its workers on a server: names with commas between them, of
systemd, supervisor, compose (systemd, supervisor, compose):
  [8/8] Its licence
    1 - MIT
    2 - BSD 3-Clause
    3 - Apache 2.0
    4 - proprietary: all rights reserved
    Choose from [1/2/3/4] (1):
"""
NEXT_STEPS = """
acme-tasks/ is ready. Next:

  cd acme-tasks
  make workers    # a broker and every lane, in the foreground; Ctrl-C stops them
  make prove      # flood one lane and see that the other does not wait
"""


@pytest.fixture
def terminal(template: Path, env: dict[str, str], tmp_path: Path) -> Iterator[Terminal]:
    """Cookiecutter in a terminal of 80 columns without colours, in an empty folder."""
    terminal = pexpect.spawn(
        sys.executable,
        ["-m", "cookiecutter", str(template)],
        cwd=tmp_path,
        env=env | {"TERM": "dumb"},
        dimensions=(24, 80),
        encoding="utf-8",
        timeout=PATIENCE,
    )
    terminal.logfile_read = io.StringIO()
    yield terminal
    terminal.close(force=True)


def answer(terminal: Terminal, answers: list[str]) -> None:
    """Type each of `answers` when it is asked for."""
    for text in answers:
        terminal.expect(r"\): ")
        terminal.sendline(text)


def screen(terminal: Terminal) -> str:
    """All that is to be read once it has ended, without spaces at the ends of lines."""
    terminal.expect(pexpect.EOF)
    terminal.close()
    log = terminal.logfile_read
    assert isinstance(log, io.StringIO)
    read = log.getvalue().replace("\r\n", "\n")
    return re.sub(r" +$", "", read, flags=re.MULTILINE)


def asked(terminal: Terminal) -> list[str]:
    """Each question, on one line, with what was typed."""
    return [" ".join(text.split()) for text in screen(terminal).split("  [")[1:]]


def test_there_are_at_most_8_questions_each_with_a_text_for_people() -> None:
    document = json.loads((ROOT / "cookiecutter.json").read_text())
    questions = {name: value for name, value in document.items() if not name.startswith("_")}
    assert len(questions) <= 8
    assert list(document["__prompts__"]) == list(questions)
    for name, choices in questions.items():
        if isinstance(choices, list):
            assert list(document["__prompts__"][name]) == ["__prompt__", *choices]


def test_enter_all_the_way_through_takes_the_defaults(
    terminal: Terminal, tmp_path: Path, baked: Callable[[str], Path]
) -> None:
    answer(terminal, [""] * 8)
    assert screen(terminal) == SCREEN + NEXT_STEPS + "\n"
    assert terminal.exitstatus == 0
    assert [path.name for path in tmp_path.iterdir()] == ["acme-tasks"]
    assert contents(tmp_path / "acme-tasks") == contents(baked("default"))


def test_later_questions_follow_from_earlier_answers(terminal: Terminal, tmp_path: Path) -> None:
    answer(terminal, ["  Night Desk 2 ", "", "", "At night.", "Me", "a, b:slow", "", "4"])
    assert asked(terminal)[1:3] == [
        "2/8] Its folder, distribution and command (night-desk-2):",
        "3/8] Its import name (night_desk_2):",
    ]
    assert terminal.exitstatus == 0
    assert [path.name for path in tmp_path.iterdir()] == ["night-desk-2"]
    readme = (tmp_path / "night-desk-2/README.md").read_text()
    assert readme.startswith("# Night Desk 2\n\nAt night.\n")
    licence = (tmp_path / "night-desk-2/LICENSE").read_text()
    assert licence.startswith("Copyright Me\n\nAll rights reserved.")


@pytest.mark.slow
def test_a_name_without_letters_still_has_a_folder_to_suggest(
    terminal: Terminal, tmp_path: Path
) -> None:
    answer(terminal, ["🚀", *[""] * 7])
    assert asked(terminal)[1:3] == [
        "2/8] Its folder, distribution and command (my-tasks):",
        "3/8] Its import name (my_tasks):",
    ]
    assert terminal.exitstatus == 0
    assert [path.name for path in tmp_path.iterdir()] == ["my-tasks"]


def test_jinja_that_is_typed_is_text(terminal: Terminal, tmp_path: Path) -> None:
    typed = "{{ 7 * 7 }} {% raw %} {# x"
    answer(terminal, [typed, "typed", "", typed, typed, "", "", "1"])
    assert NEXT_STEPS.replace("acme-tasks", "typed") in screen(terminal)
    assert terminal.exitstatus == 0
    assert (tmp_path / "typed/README.md").read_text().startswith(f"# {typed}\n\n{typed}\n")
    assert f"Copyright (c) {typed}".encode() in contents(tmp_path / "typed")["LICENSE"]


@pytest.mark.slow
def test_a_choice_that_is_none_is_asked_for_again(terminal: Terminal, tmp_path: Path) -> None:
    answer(terminal, [*[""] * 6, "systemd", "5", "2"])
    again = "(1): 5\nPlease select one of the available options\n"
    assert again in screen(terminal)
    assert terminal.exitstatus == 0
    assert not (tmp_path / "acme-tasks/deploy/supervisor").exists()


def test_a_mistake_is_explained_before_the_traceback(terminal: Terminal, tmp_path: Path) -> None:
    answer(terminal, [*[""] * 5, "Slow Lane, quick:fast", "", ""])
    read = screen(terminal).replace("(slow, quick): Slow Lane, quick:fast", "(slow, quick):")
    # The terminal breaks long lines by itself; this is what was written.
    assert read.startswith(
        SCREEN + "These answers cannot be used; no file was written:\n"
        "  lanes: 'Slow Lane' (use up to 30 lower-case letters, digits and '_', with commas "
        "between lanes, such as 'slow_lane')\n"
        "  lanes: 'quick' has the profile 'fast' (use one of quick, standard, slow, such as "
        "'quick:standard')\n"
        "ERROR: Stopping generation because pre_gen_project hook script didn't exit successfully\n"
        "Traceback"
    )
    assert read.endswith("\nHook script failed (exit status: 1)\n")
    assert terminal.exitstatus == 1
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("key", ["c", "d"])
def test_ctrl_c_and_ctrl_d_at_a_question_leave_nothing(
    terminal: Terminal, tmp_path: Path, key: str
) -> None:
    answer(terminal, ["Night Desk", ""])
    terminal.expect_exact("(night_desk): ")
    terminal.sendcontrol(key)
    assert screen(terminal).rstrip().endswith("Aborted!")
    assert terminal.exitstatus == 1
    assert [*tmp_path.iterdir()] == []
