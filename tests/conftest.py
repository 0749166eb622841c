"""A copy of the template to bake from, bakes made once a run, and no skips where none may be."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import support

NO_SKIPS = "LANES_NO_SKIPS"  # 1 where every server is there (.ci/run): a skipped test fails the run


# A shell, or nohup, has what runs in the background ignore these. Whatever the tests start would
# inherit that, and not a handler.
for ignored in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(ignored) is signal.SIG_IGN:
        signal.signal(ignored, lambda *_: None)

#: Run on a bake, by test_runtime.py and test_faults.py; and named by `make test-containers`.
collect_ignore = ["runtime", "containers"]

#: Files that take minutes, the longest first: begun last, one would run alone in the end.
LONGEST = (
    *("runtime", "faults", "systemd", "supervisord", "readme", "links", "vanish", "failover"),
    *(
        "tox",
        "rules",
        "update",
        "output",
        "moving_in",
        "bench",
        "frozen",
        "clocks",
        "package",
        "bake",
        "tooling",
    ),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    begun = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: begun.get(item.path.name, len(begun)))


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The template alone: Cookiecutter copies all that lies beside it, such as .venv."""
    copy = tmp_path_factory.mktemp("template") / "celery-lanes-template"
    copy.mkdir()
    caches = shutil.ignore_patterns("__pycache__", ".*_cache")
    for part in map(support.ROOT.joinpath, support.TEMPLATE):
        if part.is_dir():
            shutil.copytree(part, copy / part.name, ignore=caches)
        else:
            shutil.copy(part, copy)
    return copy


@pytest.fixture(scope="session")
def env(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return support.environment(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def baked(
    template: Path, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The project of one of `support.BAKES`, by name. Tests leave it as it is."""
    done: dict[str, Path] = {}

    def project(name: str) -> Path:
        if name not in done:
            into = tmp_path_factory.mktemp(name)
            result = support.bake(template, into, support.BAKES[name].answers, env)
            assert result.returncode == 0, result.stderr
            done[name] = into / support.BAKES[name].slug
        return done[name]

    return project


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in _forbidden_skips(terminalreporter.config):
        terminalreporter.write_line(f"{NO_SKIPS}: skipped, which counts as failed: {report.nodeid}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _forbidden_skips(session.config):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _forbidden_skips(config: pytest.Config) -> list[pytest.TestReport]:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get(NO_SKIPS) != "1" or reporter is None:
        return []
    skips: list[pytest.TestReport] = reporter.stats.get("skipped", [])
    return skips
