"""The trail of a run: its state before and after any event, whichever way one comes there."""

from __future__ import annotations

import random
from datetime import timedelta

import msgspec
import pytest

from bus.errors import NotFound
from bus.history.happening import Happening
from bus.history.trail import Trail
from bus.rules.events import Commit, PhaseReady
from bus.rules.folding import fold
from bus.rules.plan import Phase
from bus.rules.references import ref
from bus.rules.run import RunState
from tests.driver import BEGAN_AT, RUN, Driver
from tests.unit.test_projections_runs import told


def wide(count: int) -> Driver:
    """A run of many items, each taken and completed by a commit of its own."""
    run = Driver(Phase("each", "do", each=ref("input.items"), width=10), input={"items": list(range(count))})
    for index in range(count):
        run.wait(1)
        run.complete("each", index, index)
    return run


def same(one: RunState | None, other: RunState | None) -> bool:
    return msgspec.structs.asdict(one) == msgspec.structs.asdict(other) if one and other else one is other


def test_the_state_after_each_commit_is_what_folding_up_to_it_gives() -> None:
    run = wide(40)
    trail = Trail(RUN, told(run.commits))
    places = list(range(len(trail)))
    random.Random(5).shuffle(places)
    for place in places:
        each = trail.happenings[place]
        is_last = place + 1 == len(trail) or trail.happenings[place + 1].index == 0
        if is_last:
            assert same(trail.after(place), fold(run.commits[: each.position]))
        if each.index == 0:
            assert same(trail.before(place), fold(run.commits[: each.position - 1]))


def test_within_a_commit_one_event_happens_after_the_other() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", after=["a"]))
    run.complete("a", 1)
    trail = Trail(RUN, told(run.commits))
    statuses = [
        {key: phase.status for key, phase in state.phases.items()}
        for place in range(len(trail))
        if (state := trail.after(place)) is not None
    ]
    assert [f"{each['a']} {each['b']}" for each in statuses] == [
        "pending pending",
        "ready pending",
        "in_progress pending",
        "completed pending",
        "completed ready",
    ]
    assert trail.before(0) is None
    assert all(same(trail.before(place + 1), trail.after(place)) for place in range(len(trail) - 2))


def test_a_step_back_in_a_long_run_folds_a_bounded_number_of_records(monkeypatch: pytest.MonkeyPatch) -> None:
    trail = Trail(RUN, told(wide(600).commits))
    trail.after(len(trail) - 1)
    folded = 0
    original = Trail._fold

    def counted(self: Trail, state: RunState | None, first: int, end: int) -> RunState | None:
        nonlocal folded
        folded += end - first
        return original(self, state, first, end)

    monkeypatch.setattr(Trail, "_fold", counted)
    for place in range(len(trail) - 1, len(trail) - 101, -1):
        trail.before(place)
    assert folded / 100 <= 64


def test_places_are_found_by_position_time_type_phase_and_item() -> None:
    run = wide(3)
    trail = Trail(RUN, told(run.commits))
    position = trail.happenings[trail.at(3)].position
    assert position == 3
    assert trail.at(3) == trail.at(3, 99)
    assert trail.happenings[trail.at(3, 0)].index == 0
    assert (trail.at(0), trail.at(10_000)) == (0, len(trail) - 1)
    assert trail.happenings[trail.at_time(BEGAN_AT + timedelta(seconds=2))].at == BEGAN_AT + timedelta(seconds=2)
    assert trail.at_time(BEGAN_AT - timedelta(days=1)) == 0
    first = trail.find("phase.completed", 0)
    assert first is not None
    assert trail.happenings[first].item == 0
    assert trail.find("each:2", len(trail) - 1, backwards=True) is not None
    assert trail.find("phase.*", len(trail) - 1) is None


def test_what_is_no_commit_of_the_run_is_set_aside_and_the_rest_is_told() -> None:
    run = wide(2)
    nonsense = Commit(RUN, "x", run.now, len(run.commits) + 1, [PhaseReady(phase="nobody", attempt=1)])
    malformed = Happening(
        position=len(run.commits) + 2, subject=f"bus.run.{RUN}", stored_at=run.now, problem="not an envelope"
    )
    trail = Trail(RUN, [*told([*run.commits, nonsense]), malformed])
    last = trail.after(len(trail) - 1)
    assert last is not None
    assert (last.status, last.position) == ("completed", malformed.position)
    assert list(trail.asides) == [nonsense.position, malformed.position]


def test_an_empty_trail_is_none() -> None:
    with pytest.raises(NotFound):
        Trail("nobody", [])
