"""A project's dashboard, by the types that Grafana publishes of one, for its version 10.1.

Its foundation SDK is made from Grafana's own schema of dashboards, panels and queries. It keeps
what it knows of what it reads: what it does not give back, Grafana has no name for. Its
constructors say of which type each value is, and typeguard has them checked.
"""

import enum
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typeguard
from support import BAKES


def named(origin: object, _args: object, _extras: object) -> Callable[..., None] | None:
    """The check of an enumeration for typeguard: the SDK leaves its values as JSON has them."""

    def check(value: object, origin: type[enum.Enum], *_more: object) -> None:
        if value not in [member.value for member in origin]:
            raise typeguard.TypeCheckError(f"is none of {origin.__name__}: {value!r}")

    return check if isinstance(origin, enum.EnumMeta) else None


typeguard.checker_lookup_functions.insert(0, named)
typeguard.config.collection_check_strategy = typeguard.CollectionCheckStrategy.ALL_ITEMS
with typeguard.install_import_hook("grafana_foundation_sdk"):
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

register_default_plugins()

Baked = Callable[[str], Path]

every_bake = pytest.mark.parametrize("name", BAKES)


def path(project: Path) -> Path:
    return project / f"deploy/grafana/{project.name}.json"


def unknown(given: object, kept: object, where: str = "dashboard") -> Iterator[str]:
    """What of `given` is not in `kept`, which may have defaults beside it."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key in kept:
                yield from unknown(value, kept[key], f"{where}.{key}")
            else:
                yield f"{where}.{key}"
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for number, (value, other) in enumerate(zip(given, kept, strict=True)):
            yield from unknown(value, other, f"{where}[{number}]")
    elif given != kept:
        yield where


def refused(document: dict[str, Any]) -> list[str]:
    """Each place of `document` that Grafana's types have no name for.

    Raises:
        typeguard.TypeCheckError: when a value is not of the type that they give it.
    """
    read = Dashboard.from_json(document)
    return list(unknown(document, json.loads(json.dumps(read, cls=JSONEncoder))))


@every_bake
def test_grafana_has_a_name_and_the_type_for_all_of_it(baked: Baked, name: str) -> None:
    assert refused(json.loads(path(baked(name)).read_text())) == []


def spoiled(text: str, old: str, new: str) -> dict[str, Any]:
    assert old in text
    document: dict[str, Any] = json.loads(text.replace(old, new))
    return document


def test_the_check_finds_a_name_that_grafana_does_not_know(baked: Baked) -> None:
    text = path(baked("default")).read_text()
    for name in ("legendFormat", "gridPos", "includeAll", "fieldConfig", "refresh", "unit"):
        assert refused(spoiled(text, f'"{name}"', f'"{name}s"')), name


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"schemaVersion": 38', '"schemaVersion": "38"'),
        ('"w": 24', '"w": "24"'),
        ('"unit": "s"', '"unit": 1'),
        ('"multi": true', '"multi": "yes"'),
        ('"type": "query"', '"type": "queries"'),
        ('"expr": "', '"expr": 1, "other": "'),
    ],
)
def test_the_check_finds_a_value_of_another_type(baked: Baked, old: str, new: str) -> None:
    with pytest.raises(typeguard.TypeCheckError):
        refused(spoiled(path(baked("default")).read_text(), old, new))


@every_bake
def test_its_parts_are_apart_and_fill_their_lines(baked: Baked, name: str) -> None:
    document = json.loads(path(baked(name)).read_text())
    assert (document["uid"], document["title"]) == (BAKES[name].slug, f"{BAKES[name].slug}: lanes")
    assert len(document["uid"]) <= 40
    panels = document["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = [
        (x, y)
        for panel in panels
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert sorted(taken) == [(x, y) for x in range(24) for y in range(17)]


@every_bake
def test_a_row_is_repeated_for_each_lane_that_is_chosen(baked: Baked, name: str) -> None:
    document = json.loads(path(baked(name)).read_text())
    row, *panels = document["panels"]
    assert (row["type"], row["repeat"], row["title"]) == ("row", "lane", "$lane")
    variables = {each["name"]: each for each in document["templating"]["list"]}
    assert variables["lane"]["query"]["query"] == (
        f'label_values(lanes_waiting{{job="{BAKES[name].slug}"}}, lane)'
    )
    assert variables["datasource"]["query"] == "prometheus"
    queries = [target["expr"] for panel in panels for target in panel["targets"]]
    for query in queries:
        where = re.findall(r"\{.*?\}", query)
        assert set(where) == {f'{{job="{BAKES[name].slug}", lane=~"$lane"}}'}, query
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
