"""What the commands work on: the project's app and lanes."""

import importlib
from typing import Any

from .. import config, settings, worker
from ..config import Lanes


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
