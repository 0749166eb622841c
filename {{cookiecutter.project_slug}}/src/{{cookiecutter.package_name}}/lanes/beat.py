"""`celery beat` beside workers that keep the schedule: nothing is to run twice.

What workers keep is hidden from it. Its own schedulers have nothing else to run, and are refused;
one with entries of its own, such as django-celery-beat's in a database, goes on to work.
"""

import logging
import sys
from typing import Any, NoReturn

import celery.apps.beat
import celery.beat
from celery.signals import beat_init
from celery.utils.imports import load_extension_class_names, symbol_by_name

from . import logs
from .errors import ConfigError, UsageError
from .schedule import entries

_ALIASES = "celery.beat_schedulers"  # entry points, where Celery finds names such as "django"
_OWN = (celery.beat.Scheduler, celery.beat.PersistentScheduler)


def install(app: Any) -> None:
    """Have `celery beat` of this app be ours."""
    app.Beat = app.subclass_with_self(Beat)


class Beat(celery.apps.beat.Beat):
    """`celery beat`."""

    app: Any
    scheduler_cls: Any

    def start_scheduler(self) -> Any:
        """As Celery's, without what workers keep; ends with a line when that is all there is."""
        aliases: Any = load_extension_class_names(_ALIASES)
        if symbol_by_name(self.scheduler_cls, aliases=dict(aliases)) in _OWN:
            _refuse(
                "celery beat: not needed, and it would run things twice: the lanes' workers keep "
                "the schedule, beat_schedule and add_periodic_task included; do not start it"
            )
        try:
            kept = {entry.name for entry in entries(self.app)}
        except ConfigError as error:
            _refuse(str(error))

        def compare(*, sender: Any, **_: Any) -> None:
            if both := sorted(kept & sender.scheduler.schedule.keys()):
                _refuse(
                    f"celery beat: {', '.join(both)}: kept by the lanes' workers, and by "
                    f"{type(sender.scheduler).__name__} as well; delete it in one of them"
                )

        beat_init.connect(compare, weak=False)
        self.app.conf.beat_schedule = {}
        return super().start_scheduler()


def _refuse(what: str) -> NoReturn:
    # Not what Celery has put in its place by now, for the log.
    logs.say(what, level=logging.ERROR, file=sys.__stderr__)
    raise SystemExit(UsageError.exit_code)
