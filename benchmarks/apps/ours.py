"""The tasks in a generated project, its lanes as they are generated."""

from acme_tasks.celery import app
from work import record, spin


@app.task(lane="quick", ignore_result=True)
def nothing(number: int) -> None:
    """Be run."""


@app.task(lane="quick", ignore_result=True)
def waited(sent_at: float) -> None:
    """Tell how long it waited."""
    record(sent_at)


@app.task(lane="slow", ignore_result=True)
def burn(seconds: float) -> None:
    """Keep a processor busy."""
    spin(seconds)


SEND = {"nothing": nothing.delay, "waited": waited.delay, "burn": burn.delay}


def send_many(count: int) -> None:
    """Send `nothing` this often."""
    nothing.send_many((number,) for number in range(count))
