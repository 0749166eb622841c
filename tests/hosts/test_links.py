"""A worker's host is cut off, reboots, or is far away; its lane has another worker elsewhere."""

import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from processes import eventually

from .cast import LEASE, NOISE, Cast, Project, Server, ready
from .ledger import Account, no_more_than
from .network import Cut, Network
from .scenes import about, needs_network, needs_redis

pytestmark = [pytest.mark.slow, needs_redis, needs_network]

RESCUE = LEASE + 5.0  # seconds after which the other worker must have what the cut one held
AFTER = 15.0  # seconds in which the cut one must work again, once it can
WITHIN = 40.0  # seconds in which all that was sent has run; never a claim
FAR = 50.0  # milliseconds


Scene = Callable[[Path, Project], "Played"]


@dataclass(frozen=True, slots=True)
class Played:
    """What became of a scene; times are seconds of the monotonic clock."""

    began: float  # of the cut
    healed: float
    leased: set[str] = field(repr=False)  # what both workers held just after the cut
    account: Account
    unsettled: str
    is_heard: bool  # what the cut worker sends arrives; the answers are lost

    @property
    def in_hand(self) -> set[str]:
        """Names of tasks that may run again: that the cut worker had, or got without our hearing.

        Where what it sends is lost and it still hears, the broker's last answer is more of them.
        """
        first = {name: runs[0] for name, runs in self.account.runs.items()}
        here = {name for name, run in first.items() if run.on == "cut" and run.start < self.healed}
        return here & (self.leased | self.account.running(self.began, self.healed))

    def starts(self, on: str) -> list[float]:
        """When tasks started there, from the cut until it had healed."""
        runs = [run for runs in self.account.runs.values() for run in runs if run.on == on]
        starts = sorted(run.start for run in runs if self.began < run.start < self.healed)
        return [self.began, *starts, self.healed]


def _scene(
    folder: Path,
    project: Project,
    happens: Callable[[Network, Server], set[str]],
    *,
    delay: float = 0.0,
) -> Played:
    """A broker, and a worker on each of two hosts; something happens to the host called cut."""
    with Network(folder.parent) as network, Cast(folder, project) as cast:
        broker, cut, other = (network.host(name) for name in ("broker", "cut", "other"))
        if delay:
            for host in (cut, other):
                network.delay(host, delay)
        server = cast.server(broker)
        ready(*[cast.worker(host, server.url) for host in (cut, other)])
        # What is tried is the workers' way to the broker, so the sender is where that is; unless
        # all are far away. Something always runs: a task of three seconds is among them.
        at = other if delay else broker
        sender = cast.sender(at, server.url, 0.3, 0.3, 0.3, 0.3, 3.0, rate=4)
        eventually(lambda: _has_work_in_hand(cast.account), "work on both hosts")
        began = time.monotonic()
        leased = happens(network, server)
        healed = time.monotonic()
        while (
            time.monotonic() < healed + AFTER + NOISE
            and cast.account.first_start("cut", healed) > AFTER + NOISE
        ):
            time.sleep(0.2)
        unsettled = cast.settle([sender], server, "quick", within=WITHIN)
        account = cast.account
        rescued = [round(runs[1].start - began, 1) for runs in account.doubled.values()]
        after = account.first_start("cut", healed)
        print(f"  {folder.name}: rescued at {rescued} s, the cut one began {after:.1f} s after")
        is_heard = folder.name.startswith("inbound")
        return Played(began, healed, leased, account, unsettled, is_heard)


def _has_work_in_hand(account: Account) -> bool:
    """Whether both have begun, and the cut one is in the midst of a task of three seconds."""
    runs = [run for runs in account.runs.values() for run in runs]
    middle = [run for run in runs if run.end is None and 0.6 < account.began - run.start < 2]
    return any(run.on == "cut" for run in middle) and any(run.on == "other" for run in runs)


def _cut(how: Cut, seconds: float) -> Scene:
    def happens(network: Network, server: Server) -> set[str]:
        host = network.hosts["cut"]
        network.cut(host, how)
        leased = server.leased("quick")
        time.sleep(seconds)  # what is tried: there is nothing to wait for
        network.heal(host)
        return leased

    return functools.partial(_scene, happens=happens)


def _reboot(network: Network, server: Server) -> set[str]:
    network.reboot(network.hosts["cut"], away=5.0)
    return server.leased("quick")  # by which time none has run out


def _nothing(network: Network, server: Server) -> set[str]:  # noqa: ARG001
    time.sleep(15)  # of work at a distance
    return server.leased("quick")


SCENES: dict[str, Scene] = {
    "drop 5 s": _cut("drop", 5),
    "drop 20 s": _cut("drop", 20),
    "drop 60 s": _cut("drop", 60),
    "link 20 s": _cut("link", 20),
    "inbound 25 s": _cut("inbound", 25),
    "outbound 25 s": _cut("outbound", 25),
    "reboot": functools.partial(_scene, happens=_reboot),
    "far": functools.partial(_scene, happens=_nothing, delay=FAR),
}
CUTS = [name for name in SCENES if name != "far"]
#: So long that leases run out, and of a kind in which no acknowledgement reaches the broker.
LONG = ["drop 60 s", "outbound 25 s"]


@about(*SCENES)
def test_nothing_is_lost(scene: Played) -> None:
    """Seen before: the same, in every scene."""
    assert not scene.account.lost, f"{scene.account}: {scene.account.lost[:5]}"
    assert not scene.unsettled


@about(*CUTS)
def test_nothing_is_doubled_but_what_the_cut_worker_had_in_hand(scene: Played) -> None:
    """Seen before: the same; two or three, of those in hand."""
    no_more_than(scene.account.doubled, scene.in_hand, str(scene.account))


@about("far")
def test_at_a_distance_nothing_is_doubled(scene: Played) -> None:
    """Seen before: the same."""
    no_more_than(scene.account.doubled, set(), str(scene.account))


@about(*CUTS)
def test_the_lane_is_served_by_its_other_worker(scene: Played) -> None:
    """It goes on, and has what the cut one held after the lease and five seconds.

    A worker that is heard and does not hear renews once more, which adds a third of the lease.

    Seen before: the same, after 15 to 22 s.
    """
    starts = scene.starts("other")
    pause = max(later - earlier for earlier, later in itertools.pairwise(starts))
    assert pause <= NOISE, f"started nothing for {pause:.1f} s"
    rescued = [runs[1].start - scene.began for runs in scene.account.doubled.values()]
    slowest = max(rescued, default=0.0)
    within = RESCUE + NOISE + (LEASE / 3 if scene.is_heard else 0.0)
    assert slowest <= within, f"rescued after {slowest:.1f} s"
    waited = {
        send.name: scene.account.runs[send.name][0].start - send.began
        for send in scene.account.sends
        if send.name in scene.account.runs
    }
    longest = max(waited, key=waited.__getitem__)
    assert waited[longest] <= within, f"{longest} waited for {waited[longest]:.1f} s"


@about(*LONG)
def test_a_worker_that_is_away_for_long_has_its_tasks_taken_over(scene: Played) -> None:
    """So that the test of when they are taken over is about something."""
    assert any(runs[1].on == "other" for runs in scene.account.doubled.values()), scene


@about(*CUTS)
def test_the_cut_worker_works_again_soon_after(scene: Played) -> None:
    """Seen before: not within 20 s of a cut of 60 s, in one run; in another, 8 s."""
    after = scene.account.first_start("cut", scene.healed)
    assert after <= AFTER + NOISE, f"began after {after:.1f} s"
