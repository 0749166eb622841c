"""The fixtures of lanes/testing.py, in tests as an owner writes them."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from harness import PATIENCE, Project

LANES = """
default_lane = "quick"
[lanes.quick]
concurrency = 1
[lanes.slow]
concurrency = 1
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Its lanes.toml lies in the package, where an owner's is."""
    project = Project(tmp_path, LANES, "redis://of.the.environment:1/0")
    project.lanes_file.rename(tmp_path / "acme_tasks" / "lanes.toml")
    del project.variables["LANES_FILE"]
    return project


def outcome(project: Project, tests: str, conftest: str = "") -> subprocess.CompletedProcess[str]:
    """What pytest says of `tests`, with the conftest.py of a project."""
    plugin = 'pytest_plugins = ["acme_tasks.lanes.testing"]\n'
    files = {"conftest.py": conftest + plugin, "test_it.py": textwrap.dedent(tests)}
    for name, text in files.items():
        (project.folder / name).write_text(text, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "error", "test_it.py"],
        cwd=project.folder,
        env=os.environ | project.variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def assert_passes(project: Project, tests: str) -> None:
    done = outcome(project, tests)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_worker_of_a_lane_runs_what_is_sent_and_the_next_one_finds_nothing_of_it(
    project: Project,
) -> None:
    assert_passes(
        project,
        """
        from acme_tasks.lanes.testing import wait_until
        from acme_tasks.tasks import echo, hold


        def test_it_runs(lanes_worker):
            with lanes_worker("slow") as worker:
                assert echo.apply_async(("answer",), lane="slow").get(timeout=60) == "answer"
                for countdown in (None, 3600):
                    echo.apply_async(("late",), lane="quick", countdown=countdown)
            assert worker.process.returncode == 0


        def test_what_was_left_in_its_lane_is_gone(lanes_worker, lanes_broker):
            assert lanes_broker.redis.llen("quick_tasks") == 1
            with lanes_worker("quick") as worker:
                worker.await_log("echo[")
                worker.end()
                echo.apply_async(("late",), lane="quick")
            assert not lanes_broker.redis.llen("quick_tasks")
            assert not lanes_broker.redis.zcard("lanes:quick:delayed")
        """,
    )


def test_a_worker_that_was_killed_is_started_again_and_goes_on_with_its_task(
    project: Project, tmp_path: Path
) -> None:
    assert_passes(
        project,
        f"""
        from pathlib import Path
        from acme_tasks.lanes.testing import wait_until
        from acme_tasks.tasks import hold_until

        go, seen = Path({str(tmp_path / "go")!r}), Path({str(tmp_path / "seen")!r})


        def test_it(lanes_worker):
            with lanes_worker("quick") as worker:
                sent = hold_until.delay(str(go), str(seen))
                wait_until(seen.exists, "the task to begin")
                worker.kill()
                go.touch()
                worker.restart()
                assert sent.get(timeout=60) == "held"
            assert len(seen.read_text().splitlines()) == 2
        """,
    )


def test_eager_mode_keeps_the_rules_on_lanes_and_ends_with_the_test(project: Project) -> None:
    assert_passes(
        project,
        """
        import pytest
        from acme_tasks.lanes.errors import RoutingError
        from acme_tasks.tasks import app, echo, fail


        def test_it(lanes_eager):
            assert lanes_eager is app
            assert echo.apply_async(("answer",), lane="slow").get() == "answer"
            with pytest.raises(RoutingError, match='no lane is called "bulk"'):
                echo.apply_async(("answer",), lane="bulk")
            with pytest.raises(TypeError):
                echo.delay()


        def test_it_is_over():
            assert not app.conf.task_always_eager
            assert not app.conf.task_eager_propagates
        """,
    )


def test_nothing_of_the_environment_is_reached(project: Project) -> None:
    project.variables |= {"LANES_FILE": "elsewhere.toml", "RESULT_URL": "", "NOTIFY_SOCKET": "/no"}
    assert_passes(
        project,
        """
        import os
        import pytest
        from acme_tasks.tasks import app, echo
        from kombu.exceptions import OperationalError


        def test_it():
            assert app.server.endpoint.shown.startswith("redis://127.0.0.1:")
            with pytest.raises(OperationalError, match="nothing listens there"):
                echo.delay("no broker")
            assert not {"LANES_FILE", "RESULT_URL", "NOTIFY_SOCKET"} & os.environ.keys()
        """,
    )


def test_an_app_that_was_imported_first_is_refused(project: Project) -> None:
    """Its broker is the environment's, which may be anyone's."""
    tests = "def test_it(lanes_broker): raise NotImplementedError\n"
    done = outcome(project, tests, "import acme_tasks.tasks\n")
    assert done.returncode == 1
    assert (
        "the app was imported before the plugin lanes.testing: in conftest.py, import it, and the "
        "tasks, within fixtures"
    ) in done.stdout
