"""End with the process that started this one, which may be killed and not say so.

`workers` starts the broker and every lane; killed, it would leave them running, where nobody looks.
"""

import os
import threading
import time
from collections.abc import Callable

_VARIABLE = "LANES_PARENT"  # of whom it was started by, for these processes alone
_LOOK = 1.0  # seconds between two looks


def name_it() -> None:
    """Have what this process starts end with it."""
    os.environ[_VARIABLE] = str(os.getpid())


def watch(is_gone: Callable[[], None]) -> None:
    """Call `is_gone` when the process has ended that `name_it` named; never, if there is none."""
    parent = os.environ.pop(_VARIABLE, None)
    if parent is not None:
        threading.Thread(target=_look, args=(int(parent), is_gone), daemon=True).start()


def _look(parent: int, is_gone: Callable[[], None]) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK)
    is_gone()
