"""Failures: attempts that failed and work that was given up, those alike together: what goes wrong here, and how often.

Alike are those of one capability with the same class, code and title, apart from numbers, ids and what is quoted.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from bus.history.happening import Happening
from bus.letters.causes import Cause, alike
from bus.problem import Problem
from bus.rules.events import (
    PhaseAttemptFailed,
    PhaseFailed,
    PhaseUndoing,
    RunArchived,
    RunRedriven,
    RunStarted,
)
from projections.projection import MEMORY, Projection, Rows
from projections.underway import Capabilities, begun, turned

SAMPLES = 5


class Sample(msgspec.Struct, frozen=True, gc=False):
    """One of them: where it happened, and what was said."""

    run: str
    phase: str
    item: int | None
    at: datetime
    position: int
    said: str


class Failures(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """Failures that are alike. `attempts` failed, `given_up` is how often no other attempt was made.

    `agents` counts them by agent, as far as an agent was at it. `samples` are the first and the newest.
    """

    capability: str
    error_class: str
    code: str
    title: str
    attempts: int = 0
    given_up: int = 0
    agents: dict[str, int] = {}
    first_at: datetime
    last_at: datetime
    samples: tuple[Sample, ...] = ()


def _fold(rows: Rows[Any], happening: Happening) -> None:
    event, run = happening.event, happening.run
    assert run is not None, "only events of runs are asked for"
    memory = MEMORY + run
    capabilities: Capabilities = rows.get(memory) or Capabilities()
    match event:
        case RunStarted():
            rows[memory] = begun(event)
        case PhaseUndoing() | RunRedriven():
            now = turned(capabilities, event)
            if now is not capabilities:
                rows[memory] = now
        case RunArchived():
            del rows[memory]
        case PhaseAttemptFailed() | PhaseFailed():
            # Where no work was done the plan went wrong: a gate that was refused, a run within the run.
            _count(rows, happening, event, capabilities[event.phase])
        case _:
            pass


def _count(rows: Rows[Any], happening: Happening, event: PhaseAttemptFailed | PhaseFailed, capability: str) -> None:
    problem = event.problem
    cause = Cause(capability, problem.error_class, problem.code, alike(problem.title))
    at = happening.at
    row: Failures = rows.get(cause.key) or Failures(
        capability=capability,
        error_class=cause.error_class,
        code=cause.code,
        title=cause.title,
        first_at=at,
        last_at=at,
    )
    is_attempt = isinstance(event, PhaseAttemptFailed)
    agents = row.agents
    if is_attempt and problem.agent:
        agents = {**agents, problem.agent: agents.get(problem.agent, 0) + 1}
    rows[cause.key] = replace(
        row,
        attempts=row.attempts + is_attempt,
        given_up=row.given_up + (not is_attempt),
        agents=agents,
        last_at=max(row.last_at, at),
        samples=_sampled(row.samples, _sample(happening, event, problem)),
    )


def _sample(happening: Happening, event: PhaseAttemptFailed | PhaseFailed, problem: Problem) -> Sample:
    assert happening.run is not None, "only events of runs are asked for"
    return Sample(happening.run, event.phase, event.item, happening.at, happening.position, str(problem)[:200])


def _sampled(samples: tuple[Sample, ...], new: Sample) -> tuple[Sample, ...]:
    """The first and the newest of them."""
    if len(samples) < SAMPLES:
        return (*samples, new)
    return (samples[0], *samples[2:], new)


FAILURES: Projection[Any] = Projection(
    name="failures",
    version=1,
    row=Failures,
    memory=Capabilities,
    fold=_fold,
    subjects=["run.*"],
    types=frozenset(
        str(each.__struct_config__.tag)
        for each in (RunStarted, PhaseUndoing, RunRedriven, RunArchived, PhaseAttemptFailed, PhaseFailed)
    ),
)
"""What goes wrong, grouped by cause; the keys are those of `phasebus dead group`."""
