"""The project under test, and scenes that are played side by side."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from .cast import Project

BAKE = "LANES_BAKE"  # a folder that is baked already, to try it without baking


@pytest.fixture(scope="session")
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The default project, or the one that LANES_BAKE names, with the tasks of these tests."""
    given = os.environ.get(BAKE)
    bake = Path(given) if given else request.getfixturevalue("baked")("default")
    return Project.of(bake, tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="module")
def scenes(
    request: pytest.FixtureRequest, project: Project, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Any]]]:
    """The module's SCENES that the chosen tests are about, all begun at once.

    They wait for most of their time, and have brokers, workers and networks of their own.
    """
    played: dict[str, Callable[[Path, Project], Any]] = request.module.SCENES
    wanted = {
        str(item.callspec.params["scene"]): None
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.module is request.module
        and "scene" in item.fixturenames
    }
    folder = tmp_path_factory.mktemp("scenes")
    with ThreadPoolExecutor(max(1, len(wanted))) as threads:
        yield {
            name: threads.submit(played[name], folder / name.replace(" ", "-"), project)
            for name in wanted
        }


@pytest.fixture
def scene(request: pytest.FixtureRequest, scenes: dict[str, Future[Any]]) -> object:
    """What became of the scene that the test is about; see `about`."""
    return scenes[request.param].result()
