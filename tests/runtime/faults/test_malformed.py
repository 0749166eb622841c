"""Feed a worker with garbage: it goes on, and each message is run or a dead letter, unchanged."""

import json
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from conftest import MakeFleet
from harness import PATIENCE, Process, wait_until
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from payloads import NAN, corpus
from support import SOAK, Fleet, alive, message, ticks

LIMITS = {"time_limit": "3s", "soft_time_limit": "2s", "max_retries": 0}


@pytest.mark.timeout(SOAK)
@pytest.mark.stock("of 312 payloads 71 end the worker, 1 stalls it, 52 vanish")
def test_nothing_in_a_corpus_ends_the_worker_or_vanishes(
    make_fleet: MakeFleet, stock: bool, rounds: int
) -> None:
    """With a good task after each dozen; after each one when there is time, or on stock."""
    fleet = make_fleet(concurrency=4, lease="30s", **LIMITS)
    cases = corpus()
    size = 1 if stock or rounds > 1 else 12
    process = fleet.start()
    wrong: dict[str, str] = {}
    names = list(cases)
    for part in (names[start : start + size] for start in range(0, len(names), size)):
        fleet.send(*(cases[name] for name in part))
        harm = _harm(fleet, process, {name: cases[name] for name in part}, 4 if stock else PATIENCE)
        if harm:
            wrong |= dict.fromkeys(part, harm)
            fleet.close()
            fleet.redis.flushall()
            process = fleet.start()
    print(f"{len(cases)} payloads, harm: {Counter(wrong.values())}")
    assert len(cases) >= 60
    assert not wrong, ", ".join(f"{name} {harm}" for name, harm in wrong.items())
    _assert_all_slots_are_free(fleet)


def _harm(fleet: Fleet, process: Process, sent: dict[str, bytes], patience: float) -> str:
    """What is wrong after these payloads; nothing when all is well."""
    good = f"good-{fleet.ledger.size}"
    fleet.send(message("tick", [good]))
    if not _comes(lambda: good in fleet.ledger.ended or not alive(process), patience):
        return "stalled the worker"
    if not _comes(lambda: fleet.is_idle() or not alive(process), patience):
        return "is held for ever"
    if not alive(process):
        return "ended the worker"
    kept = {letter.message for letter in fleet.dead()}
    kept |= set(fleet.redis.zrange(fleet.keys("delayed"), 0, -1))
    ended = fleet.ledger.ended
    gone = [name for name, raw in sent.items() if raw not in kept and name not in ended]
    # Those whose arguments are odd ran under that name.
    return "vanished" if len(gone) > ended["odd"] else ""


def _comes(condition: Callable[[], Any], patience: float) -> bool:
    with suppress(pytest.fail.Exception):
        return bool(wait_until(condition, "", patience))
    return False


def _assert_all_slots_are_free(fleet: Fleet) -> None:
    """As many tasks as there are slots run side by side."""

    def side_by_side() -> bool:
        names = [f"slot-{fleet.ledger.size}-{number}" for number in range(fleet.lane.concurrency)]
        fleet.send(*ticks(names, 1.0))
        fleet.await_ended(names, "every slot")
        last_start = max(fleet.ledger.when(name)[0] for name in names)
        return last_start < min(fleet.ledger.when(name, "end")[0] for name in names)

    # More than once, because a child that was killed is replaced within 5 s.
    wait_until(side_by_side, "all slots to be free")


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([10**400, NAN, "\ud800", "", "tick", "2020-01-01T00:00:00", "\0"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield from _places(value[key], (*path, key))


@st.composite
def _mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A good message with something in it replaced, removed, or cut."""
    name = str(uuid.uuid4())  # not drawn: hypothesis likes to draw the same again
    envelope = message("tick", [name])
    body = [[name], {"seconds": 0}, {"callbacks": None, "chord": None, "chain": None}]
    for _ in range(draw(st.integers(1, 3))):
        whole = envelope if draw(st.booleans()) else body
        path = draw(st.sampled_from(list(_places(whole))))
        parent = whole
        for key in path[:-1]:
            parent = parent[key]
        if isinstance(parent, dict) and draw(st.booleans()):
            del parent[path[-1]]
        else:
            parent[path[-1]] = draw(_json)
    if "body" in envelope and draw(st.booleans()):
        envelope["body"] = json.dumps(body)
        if isinstance(envelope.get("properties"), dict):
            envelope["properties"].pop("body_encoding", None)
    raw = json.dumps(envelope).encode()
    if draw(st.integers(0, 9)) == 0:
        at = draw(st.integers(0, len(raw) - 1))
        raw = raw[:at] + draw(st.binary(max_size=4)) + raw[at + draw(st.integers(0, 9)) :]
    return name, raw


@pytest.mark.timeout(SOAK)
@pytest.mark.stock("stalls in the first batch")
def test_no_mutation_of_a_message_ends_the_worker_or_vanishes(
    make_fleet: MakeFleet, rounds: int
) -> None:
    """25 at once, so that what one leaves behind meets the next."""
    fleet = make_fleet(concurrency=4, lease="30s", dead_cap=100_000, **LIMITS)
    process = fleet.start()
    sent: dict[str, bytes] = {}

    # 100 by default; 20 rounds are more than 5,000. Not minimised: each try takes real time.
    @settings(
        max_examples=4 if rounds == 1 else 11 * rounds,
        deadline=None,
        database=None,
        derandomize=rounds == 1,
        phases=[Phase.generate],
        verbosity=Verbosity.quiet,  # it would print 25 messages
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(_mutated(), min_size=25, max_size=25))
    def feed(batch: list[tuple[str, bytes]]) -> None:
        fleet.send(*(raw for _, raw in batch))
        sent.update(batch)
        fleet.run_good("a batch")
        fleet.await_idle()
        assert alive(process)
        _assert_all_accounted_for(fleet, sent)

    feed()
    _assert_all_slots_are_free(fleet)
    ran = fleet.ledger.ended.total()
    print(f"{len(sent)} mutations, {len(fleet.dead())} dead letters, {ran} runs")


def _assert_all_accounted_for(fleet: Fleet, sent: dict[str, bytes]) -> None:
    ended = fleet.ledger.ended
    kept = {letter.message for letter in fleet.dead()}
    assert kept <= set(sent.values())
    kept |= set(fleet.redis.zrange(fleet.keys("delayed"), 0, -1))
    gone = [raw for name, raw in sent.items() if raw not in kept and name not in ended]
    # Those whose arguments were changed ran under another name.
    others = sum(count for name, count in ended.items() if name not in sent and "good" not in name)
    assert len(gone) <= others, f"{len(gone)} are gone, {others} ran: {gone[:3]}"
