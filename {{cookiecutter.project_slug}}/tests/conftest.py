"""Fixtures for all tests: `lanes_app`, `lanes_broker`, `lanes_worker` and `lanes_eager`."""

pytest_plugins = ["{{ cookiecutter.package_name }}.lanes.testing"]
