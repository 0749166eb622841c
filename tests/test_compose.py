"""What Compose's own schema and hadolint say of a baked project; `containers/` runs it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from support import BAKES, BIN, COMPOSE_SCHEMA, bake, run, succeed

COMPOSED = [name for name, bake in BAKES.items() if "compose" in bake.process_managers]
HADOLINT = (BIN / "hadolint", "--failure-threshold", "style", "--disable-ignore-pragma")
YAML = "deploy/compose/compose.yaml"

every_composed = pytest.mark.parametrize("name", COMPOSED)


@every_composed
def test_hadolint_has_nothing_to_say_against_the_dockerfile(
    baked: Callable[[str], Path], env: dict[str, str], name: str
) -> None:
    assert succeed(*HADOLINT, "Dockerfile", cwd=baked(name), env=env) == ""


@every_composed
def test_compose_knows_every_key_and_each_lane_has_its_service(
    baked: Callable[[str], Path], env: dict[str, str], name: str
) -> None:
    succeed(*COMPOSE_SCHEMA, YAML, cwd=baked(name), env=env)
    services = yaml.safe_load((baked(name) / YAML).read_text())["services"]
    assert [*services] == ["message-broker", *BAKES[name].lanes, "metrics-exporter"]


def test_the_checks_find_what_is_wrong(
    baked: Callable[[str], Path], env: dict[str, str], tmp_path: Path
) -> None:
    project = baked("default")
    wrong = (project / YAML).read_text().replace("stop_grace_period", "stop_grace_time")
    (tmp_path / "compose.yaml").write_text(wrong)
    result = run(*COMPOSE_SCHEMA, "compose.yaml", cwd=tmp_path, env=env)
    assert result.returncode == 1
    assert "'stop_grace_time' was unexpected" in result.stdout
    with_root = (project / "Dockerfile").read_text().replace("USER 10001:10001", "USER root")
    (tmp_path / "Dockerfile").write_text(with_root)
    result = run(*HADOLINT, "Dockerfile", cwd=tmp_path, env=env)
    assert (result.returncode, "DL3002" in result.stdout) == (1, True)


def test_a_lane_may_be_called_what_yaml_takes_for_something_else(
    template: Path, env: dict[str, str], tmp_path: Path
) -> None:
    words = ["on", "no", "yes", "null", "true", "y"]
    answers = {"lanes": ",".join(words), "project_slug": "off", "process_manager": "compose"}
    assert bake(template, tmp_path, answers, env).returncode == 0
    succeed(*COMPOSE_SCHEMA, YAML, cwd=tmp_path / "off", env=env)
    written = yaml.safe_load((tmp_path / "off" / YAML).read_text())
    assert written["name"] == "off"
    assert [*written["services"]] == ["message-broker", *words, "metrics-exporter"]
    commands = [service["command"] for service in written["services"].values()][1:-1]
    assert commands == [["worker", word] for word in words]
