"""Several commands in one commit: what each was decided on is what the log will say, wherever that is stored."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import Refused
from bus.rules.commands import Begin, Cancel, Command, Complete, Pause, Resume, Take, Together
from bus.rules.decide import carry_out
from bus.rules.events import Arm, Commit, Event
from bus.rules.folding import evolve, placed
from bus.rules.plan import Plan
from bus.rules.run import RunState
from tests.properties.test_run_machine import FITTING, RUN, plans, snapshot, through_the_log

NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOLDER = "a-1"


def possible(state: RunState) -> list[Command]:
    """What may be asked of a run: some of it is refused."""
    found: list[Command] = [Pause("ann"), Resume("ann"), Cancel("ann")]
    for phase in state.phases.values():
        capability = state.capability(phase.key)
        for item in phase.items:
            place = (phase.key, item.index, item.attempt)
            if capability is not None and item.status == "ready":
                found += [
                    Take(*place, capability, "a", HOLDER, 9.0),
                    Take(*place[:2], 99, capability, "a", HOLDER, 9.0),
                ]
            if item.holder is not None:
                found.append(Complete(*place, HOLDER, msgspec.Raw(b"[1,2]")))
    return found


def carried_out(state: RunState, data: st.DataObject) -> tuple[RunState, list[Event]]:
    """The run after some commands, alone and together, and what happened; a refused one leaves it as it was."""
    happened: list[Event] = []
    for _ in range(data.draw(st.integers(1, 6))):
        commands = data.draw(st.lists(st.sampled_from(possible(state)), min_size=1, max_size=3))
        before = snapshot(state)
        try:
            after, caused = carry_out(
                state, commands[0] if len(commands) == 1 else Together(tuple(commands)), run=RUN, now=NOW
            )
        except Refused:
            after, caused = state, []
        assert snapshot(state) == before, "the state that is given is left as it is"
        state, happened = after, [*happened, *caused]
    return state, happened


@given(
    plan=plans(),
    given=st.sampled_from(FITTING),
    due_s=st.sampled_from([None, 5.0, -5.0]),
    arm=st.sampled_from([None, Arm("v1", 3)]),
    is_part=st.booleans(),
    data=st.data(),
)
def test_what_a_batch_was_decided_on_is_what_its_commit_folds_to(
    plan: Plan, given: bytes, due_s: float | None, arm: Arm | None, is_part: bool, data: st.DataObject
) -> None:
    first = data.draw(st.sampled_from(list(plan.graph))) if is_part else None
    due_at = NOW + timedelta(seconds=due_s) if due_s is not None else None
    begun, begins = carry_out(
        None, Begin(plan, msgspec.Raw(given), due_at=due_at, arm=arm, first=first), run=RUN, now=NOW
    )
    ahead, happened = carried_out(begun, data)
    stored = placed(ahead, [*begins, *happened], 0, 77)
    assert told(stored) == told(evolve(None, through_the_log(Commit(RUN, "1", NOW, 77, [*begins, *happened]))))
    before = snapshot(stored)
    ahead, happened = carried_out(stored, data)
    if happened:
        later = placed(ahead, happened, stored.position, 99)
        assert told(later) == told(evolve(stored, through_the_log(Commit(RUN, "2", NOW, 99, happened))))
    assert snapshot(stored) == before


def told(state: RunState) -> bytes:
    """All of a state but where a phase looks for its next item first, which is a lower bound."""
    for phase in state.phases.values():
        assert all(item.status != "pending" for item in phase.items[: phase.upcoming])
    phases = {key: msgspec.structs.replace(phase, upcoming=0) for key, phase in state.phases.items()}
    return snapshot(msgspec.structs.replace(state, phases=phases))
