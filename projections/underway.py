"""What is under way in a run: who has which piece of work since when. As little of a run as it takes to say how long
work has waited and was worked on, and by whom; a projection keeps it as its own memory of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

import msgspec

from bus.history.happening import Happening
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
from projections.projection import MEMORY, Rows

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
    """A run: what its phases need, what waits (and since when) and what is held, by phase, or by phase and item; and to
    which versions routes gave it, where they did."""

    capabilities: Capabilities = Capabilities()
    waiting: Mapping[str, datetime] = {}
    held: Mapping[str, Holding] = {}
    arms: Mapping[str, str] = {}


class Taken(NamedTuple):
    """Somebody took a piece of work, which had waited for so long, at that level. `arm` are the versions that a route
    gave it to."""

    capability: str
    agent: str
    instance: str
    at: datetime
    queue_s: float
    arm: str = ""
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
    arm: str = ""


Fact = Taken | Ended
_NOTHING = Underway()
_NEVER = datetime.min


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


def worked(rows: Rows[Any], happenings: Iterable[Happening]) -> Iterator[Sequence[Fact]]:
    """What each commit among them says about work, in order; what is to be remembered of the runs is put into the rows.

    Several projections ask this of the same commits, one after the other: it is computed once.
    """
    commits = [each.commit for each in happenings if each.commit is not None]
    before: dict[str, Underway | None] = {run: rows.get(MEMORY + run) for run in {each.run for each in commits}}
    latest = _LATEST[0]
    if latest.commits != commits or latest.before != before:
        latest = _LATEST[0] = _folded(commits, before)
    for run, now in latest.after.items():
        if now is None:
            del rows[MEMORY + run]
        else:
            rows[MEMORY + run] = now
    return iter(latest.facts)


class _Worked(NamedTuple):
    """Commits, the runs before and after them, and what each says about work."""

    commits: Sequence[Commit]
    before: Mapping[str, Underway | None]
    after: Mapping[str, Underway | None]
    facts: Sequence[Sequence[Fact]]


def _folded(commits: Sequence[Commit], before: Mapping[str, Underway | None]) -> _Worked:
    runs: dict[str, _Run | None] = {}
    facts: list[Sequence[Fact]] = []
    for commit in commits:
        run = runs.get(commit.run)
        if run is None:
            known = None if commit.run in runs else before[commit.run]
            run = runs[commit.run] = _Run(known or _NOTHING)
        facts.append(run.fold(commit))
        if archived(commit):
            # Nothing of it is left in the log.
            runs[commit.run] = None
    after = {
        name: None if run is None else Underway(run.capabilities, run.waiting, run.held, run.arms)
        for name, run in runs.items()
    }
    return _Worked(commits, before, after, facts)


_LATEST = [_Worked((), {}, {}, ())]


class _Run:
    """A run while commits are folded in."""

    __slots__ = ("arms", "at", "capabilities", "facts", "held", "waiting")

    def __init__(self, before: Underway) -> None:
        self.at = _NEVER
        self.capabilities = before.capabilities
        self.waiting = dict(before.waiting)
        self.held = dict(before.held)
        self.arms = before.arms
        self.facts: list[Fact] = []

    def fold(self, commit: Commit) -> Sequence[Fact]:
        self.at, self.facts = commit.at, []
        for event in commit.events:
            step = _STEPS.get(type(event))
            if step is not None:
                step(self, event)
        return self.facts

    def start(self, event: RunStarted) -> None:
        self.capabilities = begun(event)

    def turn(self, event: Event) -> None:
        self.capabilities = turned(self.capabilities, event)

    def ready(self, event: PhaseReady) -> None:
        place = _place(event.phase, event.item)
        self.waiting[place] = event.due_at or self.at
        if event.arm is not None:
            self.arms = {**self.arms, place: event.arm.versions}
        elif place in self.arms:
            self.arms = {other: arm for other, arm in self.arms.items() if other != place}

    def take(self, event: PhaseStarted) -> None:
        place = _place(event.phase, event.item)
        since = self.waiting.pop(place, self.at)
        self.held[place] = Holding(event.attempt, event.agent, event.instance, self.at)
        queue_s = (self.at - since).total_seconds()
        capability = self.capabilities[event.phase]
        arm, level = self.arms.get(place, ""), self.capabilities.level_of(event.phase)
        self.facts.append(Taken(capability, event.agent, event.instance, self.at, queue_s, arm, level))

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
        self.waiting, self.arms = {}, {}

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
            arm = self.arms.get(_place(phase, item), "")
            ended = Ended(capability, had.agent, had.instance, self.at, work_s, outcome, problem, is_cached, arm)
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
