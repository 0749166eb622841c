"""Import every module of a package of tasks: of a package, Celery imports `__init__.py` alone."""

import importlib
import importlib.util
import pkgutil
from typing import Any

from celery import Celery
from celery.signals import import_modules
from celery.utils.functional import maybe_list

from .worker import PACKAGE


def install(app: Celery) -> None:
    """Have a worker of `app` import all modules of each package in `include` that is ours.

    Others' are imported as Celery does it: their tests and migrations are among their modules.
    """

    def import_all(sender: Any, **_: Any) -> None:
        if sender is app:
            for name in (*maybe_list(app.conf.imports), *maybe_list(app.conf.include)):
                if name.startswith(f"{PACKAGE}."):
                    _import_with_all_in_it(name)

    import_modules.connect(import_all, weak=False)


def _import_with_all_in_it(name: str) -> None:
    importlib.import_module(name)
    spec = importlib.util.find_spec(name)
    folders = spec and spec.submodule_search_locations  # None: it is no package
    for found in pkgutil.walk_packages(folders or (), f"{name}."):
        if not found.name.endswith(".__main__"):
            importlib.import_module(found.name)
