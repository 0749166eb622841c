"""Have a worker's children share its memory, which a fork copies page by page as it is written to.

A collection of garbage writes to each object that it looks at. Celery has the worker collect before
each fork, and each child does it by itself: both copy nearly all that was imported, once a child.
"""

import gc
from typing import Any

from celery.signals import worker_before_create_process


def install() -> None:
    """Have no collection look at what this process holds when its first child is about to begin.

    What becomes garbage of that later is freed as ever, but for what is in a cycle. A child that
    takes another's place shares it, too.
    """

    def freeze(**_: Any) -> None:
        worker_before_create_process.disconnect(freeze)
        gc.collect()  # or garbage would be kept for ever
        gc.freeze()

    worker_before_create_process.connect(freeze, weak=False)
