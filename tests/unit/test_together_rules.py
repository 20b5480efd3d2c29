"""Several commands as one: each sees what those before it did, and one that is refused takes all back."""

from __future__ import annotations

import msgspec
import pytest

from bus.errors import Refused
from bus.rules.commands import Begin, Complete, Take, Together
from bus.rules.decide import decide
from bus.rules.events import Commit, PhaseCompleted, PhaseReady, PhaseStarted, RunCompleted, RunStarted
from bus.rules.folding import evolve
from bus.rules.verify import violations
from bus.runs.task import WORK, Task
from tests.driver import BEGAN_AT

TAKE = Take(WORK, None, 1, "price", "pricing", "pricing-1", 30.0)
COMPLETE = Complete(WORK, None, 1, "pricing-1", msgspec.Raw(b"750"))
BEGIN = Begin(Task("price").plan, msgspec.Raw(b"{}"))


def test_a_whole_task_is_one_commit_that_breaks_no_promise() -> None:
    events = decide(None, Together((BEGIN, TAKE, COMPLETE)), run="task-1", now=BEGAN_AT)
    assert [type(each) for each in events] == [RunStarted, PhaseReady, PhaseStarted, PhaseCompleted, RunCompleted]
    commit = Commit("task-1", "1", BEGAN_AT, 7, events)
    assert not list(violations([commit], BEGAN_AT))
    state = evolve(None, commit)
    assert (state.status, bytes(state.phases[WORK].output.raw if state.phases[WORK].output else b"")) == (
        "completed",
        b"750",
    )


def test_a_run_that_was_begun_elsewhere_takes_none_of_it() -> None:
    begun = decide(None, BEGIN, run="task-1", now=BEGAN_AT)
    state = evolve(None, Commit("task-1", "1", BEGAN_AT, 7, begun))
    with pytest.raises(Refused, match="already started"):
        decide(state, Together((BEGIN, TAKE, COMPLETE)), run="task-1", now=BEGAN_AT)


def test_one_that_is_refused_takes_all_back() -> None:
    other = msgspec.structs.replace(TAKE, capability="weigh")
    with pytest.raises(Refused, match="weigh"):
        decide(None, Together((BEGIN, other, COMPLETE)), run="task-1", now=BEGAN_AT)
