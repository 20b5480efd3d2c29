"""What is under way in a run: who has which piece of work since when. As little of a run as it takes to say how long
work has waited and was worked on, and by whom; a projection keeps it as its own memory of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

import msgspec

from bus.problem import Problem
from bus.rules.events import (
    Commit,
    Event,
    PhaseAttemptFailed,
    PhaseCancelled,
    PhaseCompleted,
    PhaseFailed,
    PhaseReady,
    PhaseSkipped,
    PhaseStarted,
    PhaseUndoing,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunRedriven,
    RunStarted,
    archived,
)
from bus.rules.priority import NORMAL, Priority

Outcome = Literal["completed", "failed", "cancelled"]


class Capabilities(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What each phase of a run needs, by its key, and what undoes it; `undoing` are those that are being undone.

    `level` is where its work waits, unless the phase is among `levels`.
    """

    of: Mapping[str, str] = {}
    compensating: Mapping[str, str] = {}
    undoing: frozenset[str] = frozenset()
    level: Priority = NORMAL
    levels: Mapping[str, Priority] = {}

    def __getitem__(self, phase: str) -> str:
        return (self.compensating if phase in self.undoing else self.of).get(phase, "")

    def level_of(self, phase: str) -> Priority:
        return self.levels.get(phase, self.level)


class Holding(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """An attempt under way: its number, who makes it, since when."""

    attempt: int
    agent: str
    instance: str
    since: datetime


class Underway(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=True):
    """A run: what its phases need, what waits (and since when) and what is held, by phase, or by phase and item."""

    capabilities: Capabilities = Capabilities()
    waiting: Mapping[str, datetime] = {}
    held: Mapping[str, Holding] = {}


class Taken(NamedTuple):
    """Somebody took a piece of work, which had waited for so long, at that level."""

    capability: str
    agent: str
    instance: str
    at: datetime
    queue_s: float
    level: Priority = NORMAL


class Ended(NamedTuple):
    """An attempt is over after so long, one way or the other. `is_cached`: nobody worked on it."""

    capability: str
    agent: str
    instance: str
    at: datetime
    work_s: float
    outcome: Outcome
    problem: Problem | None = None
    is_cached: bool = False


Fact = Taken | Ended


def begun(event: RunStarted) -> Capabilities:
    """What the phases of a new run need."""
    phases = event.plan.phases
    return Capabilities(
        {each.name: each.capability for each in phases if each.capability is not None},
        {each.name: each.compensate for each in phases if each.compensate is not None},
        level=event.priority,
        levels={each.name: each.priority for each in phases if each.priority is not None},
    )


def turned(capabilities: Capabilities, event: Event) -> Capabilities:
    """The same after an event that says what is undone, and what is done again."""
    undoing = capabilities.undoing
    if isinstance(event, PhaseUndoing):
        undoing = undoing | {event.phase}
    elif isinstance(event, RunRedriven) and undoing:
        undoing = undoing.difference(event.phases)
    return capabilities if undoing is capabilities.undoing else msgspec.structs.replace(capabilities, undoing=undoing)


def after(before: Underway | None, commit: Commit) -> tuple[Underway | None, Sequence[Fact]]:
    """The run after a commit, None if nothing of it is left in the log; and what that says about work.

    Several projections ask this of the same commit, one after the other: it is computed once.
    """
    asked, answer = _LATEST[0]
    if asked[0] is before and asked[1] is commit:
        return answer
    answer = _after(before or Underway(), commit)
    _LATEST[0] = (before, commit), answer
    return answer


def _after(before: Underway, commit: Commit) -> tuple[Underway | None, Sequence[Fact]]:
    run = _Run(before, commit.at)
    for event in commit.events:
        step = _STEPS.get(type(event))
        if step is not None:
            step(run, event)
    if archived(commit):
        return None, run.facts
    return Underway(run.capabilities, run.waiting, run.held), run.facts


class _Run:
    """A run while a commit is folded in."""

    def __init__(self, before: Underway, at: datetime) -> None:
        self.at = at
        self.capabilities = before.capabilities
        self.waiting = dict(before.waiting)
        self.held = dict(before.held)
        self.facts: list[Fact] = []

    def start(self, event: RunStarted) -> None:
        self.capabilities = begun(event)

    def turn(self, event: Event) -> None:
        self.capabilities = turned(self.capabilities, event)

    def ready(self, event: PhaseReady) -> None:
        self.waiting[_place(event.phase, event.item)] = event.due_at or self.at

    def take(self, event: PhaseStarted) -> None:
        place = _place(event.phase, event.item)
        since = self.waiting.pop(place, self.at)
        self.held[place] = Holding(event.attempt, event.agent, event.instance, self.at)
        queue_s = (self.at - since).total_seconds()
        capability = self.capabilities[event.phase]
        level = self.capabilities.level_of(event.phase)
        self.facts.append(Taken(capability, event.agent, event.instance, self.at, queue_s, level))

    def complete(self, event: PhaseCompleted) -> None:
        if event.attempt is not None:
            self._end(event.phase, event.item, "completed", is_cached=event.cached is not None)

    def fail(self, event: PhaseAttemptFailed) -> None:
        self._end(event.phase, event.item, "failed", event.problem)

    def give_up(self, event: PhaseFailed) -> None:
        self._drop(event.phase, event.item)

    def drop(self, event: PhaseCancelled) -> None:
        self._drop(event.phase, event.item)

    def skip(self, event: PhaseSkipped) -> None:
        self._drop(event.phase, None)

    def end(self, _event: Event) -> None:
        self._end_all(list(self.held))
        self.waiting = {}

    def _drop(self, phase: str, item: int | None) -> None:
        """What is open of it will not be done: of the phase as a whole, all its items."""
        if item is not None:
            self._end(phase, item, "cancelled")
            self.waiting.pop(_place(phase, item), None)
            return
        items = f"{phase}:"
        self._end_all([place for place in self.held if place == phase or place.startswith(items)])
        for place in [place for place in self.waiting if place == phase or place.startswith(items)]:
            del self.waiting[place]

    def _end_all(self, places: Iterable[str]) -> None:
        for place in places:
            phase, _, item = place.partition(":")
            self._end(phase, int(item) if item else None, "cancelled")

    def _end(
        self,
        phase: str,
        item: int | None,
        outcome: Outcome,
        problem: Problem | None = None,
        *,
        is_cached: bool = False,
    ) -> None:
        had = self.held.pop(_place(phase, item), None)
        if had is not None:
            work_s = (self.at - had.since).total_seconds()
            capability = self.capabilities[phase]
            ended = Ended(capability, had.agent, had.instance, self.at, work_s, outcome, problem, is_cached)
            self.facts.append(ended)


def _place(phase: str, item: int | None) -> str:
    return phase if item is None else f"{phase}:{item}"


_STEPS: Mapping[type[Any], Callable[[_Run, Any], None]] = {
    RunStarted: _Run.start,
    PhaseReady: _Run.ready,
    PhaseStarted: _Run.take,
    PhaseCompleted: _Run.complete,
    PhaseAttemptFailed: _Run.fail,
    PhaseFailed: _Run.give_up,
    PhaseCancelled: _Run.drop,
    PhaseSkipped: _Run.skip,
    PhaseUndoing: _Run.turn,
    RunRedriven: _Run.turn,
    RunCompleted: _Run.end,
    RunFailed: _Run.end,
    RunCancelled: _Run.end,
}

_Answer = tuple[Underway | None, Sequence[Fact]]
_LATEST: list[tuple[tuple[Underway | None, Commit | None], _Answer]] = [((None, None), (None, ()))]
