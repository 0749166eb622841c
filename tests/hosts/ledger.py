"""What was sent and what ran, counted outside the broker, and what follows from it."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

#: Seconds in which a replica, or a server that cannot be heard, may not know of an acknowledgement
#: or a send yet: replication takes milliseconds, a busy machine adds to it.
LAG = 1.0


@dataclass(frozen=True, slots=True)
class Send:
    """One call of `apply_async`; times are seconds of the monotonic clock."""

    name: str
    began: float
    ended: float | None  # None: it hangs
    outcome: str  # "ok", or the name of the exception

    @property
    def confirmed(self) -> bool:
        """Whether the sender was told that it is sent."""
        return self.outcome == "ok"


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a task."""

    name: str
    on: str  # the host or worker
    start: float
    end: float | None  # None: it was killed, or runs still


@dataclass(frozen=True, slots=True)
class Account:
    """All sends of a scene, and all runs."""

    sends: list[Send] = field(repr=False)
    runs: dict[str, list[Run]] = field(
        repr=False
    )  # by the task's name, in the order in which they started
    began: float  # when it was read; seconds, monotonic

    @property
    def lost(self) -> list[Send]:
        """Confirmed sends whose task has not ended, once at least."""
        return [
            send
            for send in self.sends
            if send.confirmed and not any(run.end for run in self.runs.get(send.name, ()))
        ]

    def lost_but_known(self, died: float) -> list[Send]:
        """Likewise, without those confirmed in the `LAG` before the master died.

        Redis confirms before a replica knows, and so the new master may know nothing of them.
        """
        return [
            send for send in self.lost if send.ended is None or not died - LAG <= send.ended <= died
        ]

    @property
    def doubled(self) -> dict[str, list[Run]]:
        """Tasks that started more than once, by name."""
        return {name: runs for name, runs in self.runs.items() if len(runs) > 1}

    @property
    def longest_send(self) -> float:
        """Seconds; one that hangs counts until now."""
        return max(((send.ended or self.began) - send.began for send in self.sends), default=0.0)

    def running(self, since: float, until: float) -> set[str]:
        """Names of tasks whose first run overlaps the time between, with `LAG` on both sides."""
        return {
            name
            for name, (first, *_) in self.runs.items()
            if first.start <= until + LAG and (first.end is None or first.end >= since - LAG)
        }

    def repeated(self) -> set[str]:
        """Names of tasks that Celery may have sent more than once, as it does after an error."""
        return {
            send.name
            for send in self.sends
            if not send.confirmed or (send.ended or self.began) - send.began > LAG
        }

    def in_flight(self, since: float, until: float) -> set[str]:
        """Names of tasks that may run twice for what happened in the time between."""
        return self.running(since, until) | self.repeated()

    def first_start(self, on: str, after: float, lane: str = "") -> float:
        """Seconds after `after` until a task next started there; infinite when none did.

        Args:
            on: the host or worker.
            after: seconds of the monotonic clock.
            lane: of tasks of this lane alone, by their senders' names.
        """
        runs = [run for runs in self.runs.values() for run in runs if run.on == on]
        starts = [run.start - after for run in runs if lane in run.name]
        return min((each for each in starts if each >= 0), default=float("inf"))

    def __str__(self) -> str:
        """The figures, for whoever reads the output of a test."""
        outcomes: dict[str, int] = {}
        for send in self.sends:
            outcomes[send.outcome] = outcomes.get(send.outcome, 0) + 1
        return (
            f"{len(self.sends)} sends {outcomes}, {len(self.runs)} tasks ran, "
            f"{len(self.lost)} lost, {len(self.doubled)} doubled, "
            f"longest send {self.longest_send:.1f} s"
        )


def read(ledger: Path, sent: Iterable[Path], now: float) -> Account:
    """The account so far."""
    runs: dict[str, list[Run]] = {}
    for what, name, on, pid, at in _lines(ledger):
        if what == "start":
            runs.setdefault(name, []).append(Run(name, f"{on}:{pid}", float(at), None))
            continue
        for place, run in enumerate(runs[name]):
            if run.on == f"{on}:{pid}" and run.end is None:
                runs[name][place] = Run(name, run.on, run.start, float(at))
    for name, of_one in runs.items():
        runs[name] = [Run(run.name, run.on.partition(":")[0], run.start, run.end) for run in of_one]
    sends: dict[str, Send] = {}
    for path in sent:
        for what, name, at, *outcome in _lines(path):
            if what == "begin":
                sends[name] = Send(name, float(at), None, "hangs")
            else:
                sends[name] = Send(name, sends[name].began, float(at), outcome[0])
    return Account(list(sends.values()), runs, now)


def _lines(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    # What is being written has no line end yet.
    return [line.split() for line in path.read_text().split("\n")[:-1]]


def no_more_than(doubled: Collection[str], allowed: set[str], what: str) -> None:
    """Assert that nothing ran twice but `allowed`."""
    beyond = sorted(set(doubled) - allowed)
    assert not beyond, f"{what}: {len(beyond)} of {len(doubled)} doubled: {beyond[:10]}"
