"""What the commands work on: the project's app and lanes."""

import importlib
from collections.abc import Callable
from typing import Any

import click

from .. import config, settings, worker
from ..config import Lanes
from ..keyed import text_of


def app() -> Any:
    """The Celery app."""
    return importlib.import_module(f"{worker.PACKAGE}.celery").app


def loaded_app() -> Any:
    """The Celery app, with its tasks, and with the entries that they add to the schedule."""
    loaded = app()
    loaded.loader.import_default_modules()
    loaded.finalize()
    return loaded


def lanes() -> Lanes:
    """Those that are declared."""
    return config.load(settings.load().lanes_file)


def key_option(what: str) -> Callable[[Any], Any]:
    """The option `--key`, which is a key as a sender may say it; `what` is its help.

    Raises:
        RoutingError: when the command is given what can be no key.
    """

    def checked(_ctx: click.Context, _option: click.Parameter, key: str | None) -> str | None:
        return None if key is None else text_of(key, "--key")

    return click.option("--key", callback=checked, help=what)
