"""A project's pages agree with what they describe: keys, variables, commands, and each other."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import BAKES, succeed

Baked = Callable[[str], Path]

MULTILINE = re.DOTALL | re.MULTILINE

NONE = "\N{EN DASH}"  # no default of its own
SCHEMA = """
import json
from acme_tasks.lanes.schema import KEYS, PROFILES
print(json.dumps({
    key.name: [key.what, [key.default_in(profile) for profile in PROFILES]] for key in KEYS
}))
"""
ENTRY_KEYS = """
import json
from acme_tasks.lanes.schema import ENTRY_KEYS
print(json.dumps({key.name: [key.what, key.default] for key in ENTRY_KEYS}))
"""
COMMANDS = """
import click, json
from acme_tasks.lanes.cli import _main

def options(command, path):
    yield path, [text for each in command.params for text in (*each.opts, *each.secondary_opts)]
    for name, below in getattr(command, "commands", {}).items():
        yield from options(below, f"{path} {name}")

print(json.dumps(dict(options(_main, "acme-tasks"))))
"""


def ask(project: Path, env: dict[str, str], program: str) -> dict[str, list[object]]:
    """What a program prints as JSON that imports the project."""
    source = env | {"PYTHONPATH": str(project / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    printed = succeed(sys.executable, "-c", program, cwd=project, env=source)
    answer: dict[str, list[object]] = json.loads(printed)
    return answer


def pages(project: Path) -> list[Path]:
    return [project / "README.md", project / "deploy/README.md", *project.glob("docs/*.md")]


def rows(page: str, first_column: str) -> list[list[str]]:
    """The cells of the table whose first column is called so."""
    table = re.search(
        rf"^\| {re.escape(first_column)} \|.*?(?=\n\n|\Z)", page, re.DOTALL | re.MULTILINE
    )
    assert table, first_column
    lines = table[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


@pytest.fixture
def reference(baked: Baked) -> str:
    return (baked("default") / "docs/reference.md").read_text()


def test_the_table_of_keys_is_the_schema(baked: Baked, env: dict[str, str], reference: str) -> None:
    written = [["`profile`", rows(reference, "key")[0][1], NONE, NONE, NONE]]
    for name, (what, defaults) in ask(baked("default"), env, SCHEMA).items():
        assert isinstance(defaults, list)
        columns = [NONE if each is None else f"`{json.dumps(each)}`" for each in defaults]
        written.append([f"`{name}`", str(what), *columns])
    assert rows(reference, "key") == written


def test_the_table_of_keys_of_an_entry_is_the_schema(
    baked: Baked, env: dict[str, str], reference: str
) -> None:
    written = []
    for name, (what, default) in ask(baked("default"), env, ENTRY_KEYS).items():
        shown = NONE if default is None else f"`{json.dumps(default)}`"
        written.append([f"`{name}`", str(what), shown])
    assert rows(reference, "key of an entry") == written


@pytest.mark.parametrize("name", BAKES)
def test_what_lanes_toml_says_is_the_schema(baked: Baked, env: dict[str, str], name: str) -> None:
    """Its values are the defaults, so that a line can be left out; its comments the sentences."""
    keys = ask(baked("default"), env, SCHEMA)
    text = (baked(name) / f"src/{BAKES[name].package}/lanes.toml").read_text()
    profiles = list(BAKES[name].lanes.values())
    lanes = text.partition("[lanes.")[2].partition("\n# ")[0].split("\n[lanes.")
    assert len(lanes) == len(profiles)
    for lane, profile in zip(lanes, profiles, strict=True):
        lines = re.findall(r"^(\w+) = (\S+) *# (.*)$", lane, re.MULTILINE)
        assert len(lines) > 2
        for key, value, comment in lines:
            what, defaults = keys[key]
            assert isinstance(defaults, list)
            assert comment == str(what).replace("`", "")
            assert json.loads(value) == defaults[("quick", "standard", "slow").index(profile)]


def test_the_table_of_variables_is_env_example(baked: Baked, reference: str) -> None:
    example = (baked("default") / ".env.example").read_text()
    named = re.findall(r"^(?:# )?([A-Z_]+)=", example, re.MULTILINE)
    told = [name for row in rows(reference, "variable") for name in re.findall(r"`(\w+)`", row[0])]
    assert sorted(told) == sorted(named)


def test_every_command_is_in_the_table_of_commands(
    baked: Baked, env: dict[str, str], reference: str
) -> None:
    known = ask(baked("default"), env, COMMANDS)
    told = [shlex.split(row[0].strip("`")) for row in rows(reference, "command")]
    names = {" ".join(word for word in words if not word.isupper()) for words in told}
    groups = {path.rpartition(" ")[0] for path in known} - {"acme-tasks schedule"}  # shows it, too
    assert names == known.keys() - groups


def shown(text: str) -> Iterator[list[str]]:
    """Each command of the project that a page shows, in its words."""
    blocks = re.findall(r"^```(?:sh|console)\n(.*?)^```", text, MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(
        r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    )
    for line in lines:
        if found := re.search(r"(?:^|[/ ])(acme-tasks [a-z].*)$", line):
            yield shlex.split(found[1])


def test_every_command_that_a_page_shows_exists(baked: Baked, env: dict[str, str]) -> None:
    known = ask(baked("default"), env, COMMANDS)
    count = 0
    for page in pages(baked("default")):
        for words in shown(page.read_text()):
            path, rest = words[0], words[1:]
            while rest and f"{path} {rest[0]}" in known:
                path, rest = f"{path} {rest[0]}", rest[1:]
            named = [word.partition("=")[0] for word in rest if word.startswith("-")]
            assert set(named) <= {*known[path], "--help"}, (page.name, words)
            is_group = any(other.startswith(f"{path} ") for other in known)
            assert not is_group or not rest or named, (page.name, words)
            count += 1
    assert count > 30


def anchors(page: str) -> set[str]:
    """As GitHub makes them of the headings."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("name", ["default", "one"])
def test_every_link_leads_somewhere(baked: Baked, name: str) -> None:
    count = 0
    for page in pages(baked(name)):
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            linked = (page.parent / path) if path else page
            assert linked.is_file(), (page.name, target)
            assert not anchor or anchor in anchors(linked.read_text()), (page.name, target)
            count += 1
    assert count > 20


def test_every_page_is_in_the_readmes_list(baked: Baked) -> None:
    project = baked("default")
    readme = (project / "README.md").read_text().partition("## Documentation\n")[2]
    listed = set(re.findall(r"\]\(docs/([\w-]+\.md)\)", readme))
    assert listed == {page.name for page in project.glob("docs/*.md")}
