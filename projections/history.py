"""History: how long each phase has taken in the past, by plan, phase and capability."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from heapq import nlargest
from itertools import chain
from statistics import fmean, median
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from bus.rules.plan import Plan
from bus.rules.run import Item, PhaseState, RunState
from projections.durations import SHORTEST_S, Durations

_RUNS = 100
_SAMPLES = 200
_ENOUGH = 8
_LIMIT_SHARE = 0.9965
_LIKE = 64
"""What the other phases of a plan say of how much one differs from run to run counts as so many runs of its own."""

PACE_SPREAD = 0.2
"""How much whole runs differ in speed, as far as one knows before there are any (standard deviation of the log)."""

_PACE_RUNS = 4
_PACE_PHASES = 3
"""With fewer phases than that, nobody can tell a slow run from a slow phase."""

_PACE_LEAST = 0.05
"""Nothing takes just as long each time: a few runs in which it did say no more than if it had differed by this."""


class Kind(NamedTuple):
    """What makes durations comparable. All tasks share one plan and phase; their capability tells them apart."""

    plan: str
    phase: str
    capability: str


class PhaseHistory(msgspec.Struct, frozen=True, kw_only=True):
    """A phase's past.

    `item` is how long one unit of it took with its retries (see `item_s`), in a run of usual pace; `attempt` one
    attempt that succeeded, `likeness` the variance of its logarithm that is usual among the phases of the plan.
    `items` is the usual number of units, 1 for a plain phase; `lanes` how many of them were under way at a time, on
    average. `work_s` is what the whole phase took, all its units added up, on average. `talks`: most of its handlers
    said how far they were.
    """

    item: Durations
    attempt: Durations
    items: int
    lanes: float
    work_s: float
    likeness: float | None = None
    talks: bool = False

    @property
    def limit_s(self) -> float | None:
        """How long an attempt may take before it is slow: over 99.65 % of what to expect, and over all that has been
        seen but the slowest, which may have been an accident. None with fewer than 8 to learn from."""
        if self.attempt.count < _ENOUGH:
            return None
        return max(self.attempt.upper_s(_LIMIT_SHARE, self.likeness, _LIKE), self.attempt.second_longest_s)


class History(msgspec.Struct, frozen=True):
    """What was learned from runs that completed in their first pass: of each plan the newest 100.

    `paces` say by plan how much whole runs differ in speed (standard deviation of the logarithm).
    """

    phases: dict[Kind, PhaseHistory] = msgspec.field(default_factory=dict)
    paces: dict[str, float] = msgspec.field(default_factory=dict)

    def of(self, plan: Plan, phase: str) -> PhaseHistory | None:
        """The past of a plan's phase, if it has one. A gate has none: people are not forecast."""
        capability = plan.graph[phase].phase.capability
        return self.phases.get(Kind(plan.name, phase, capability)) if capability is not None else None


def learn(runs: Iterable[RunState]) -> History:
    """The history that these runs make; those that have not completed teach nothing."""
    by_plan: defaultdict[str, list[tuple[datetime, str, RunState]]] = defaultdict(list)
    for state in runs:
        if state.status == "completed" and state.passes == 1 and state.ended_at is not None:
            by_plan[state.plan.name].append((state.ended_at, state.run, state))
    phases: dict[Kind, PhaseHistory] = {}
    paces: dict[str, float] = {}
    for name, ended in by_plan.items():
        newest = [state for _, _, state in nlargest(_RUNS, ended)]
        spread, factors = _paces(newest)
        paces[name] = spread
        pasts: defaultdict[Kind, list[_Taken]] = defaultdict(list)
        for state, factor in zip(newest, factors, strict=True):
            for key, phase in _worked(state):
                capability = state.plan.graph[key].phase.capability or ""
                pasts[Kind(name, key, capability)].append(_Taken(phase, factor))
        learned = {kind: _past(taken) for kind, taken in pasts.items()}
        likeness = _likeness([past.attempt for past in learned.values()])
        phases |= {kind: replace(past, likeness=likeness) for kind, past in learned.items()}
    return History(phases, paces)


def item_s(phase: PhaseState, item: Item) -> float:
    """How long an ended unit took, its retries included. A plain phase counts from when it opened, an element of an
    `each` phase from when it was first taken: before that it waited for its turn, which is the phase's business."""
    assert item.ended_at is not None, "the unit has ended"
    return (item.ended_at - begun_at(phase, item)).total_seconds()


def is_cached(item: Item) -> bool:
    """Whether its output was taken over: how long that took says nothing of the work."""
    return bool(item.attempts) and item.attempts[-1].cached is not None


def begun_at(phase: PhaseState, item: Item) -> datetime:
    """When the clock of `item_s` started."""
    tries = item.attempts[item.earlier :]
    if item.index is not None and tries:
        return tries[0].started_at
    assert phase.opened_at is not None, "the phase has been opened in this pass"
    return phase.opened_at


class _Taken(NamedTuple):
    """A completed phase, and what its run's pace made of it (2: twice as long)."""

    phase: PhaseState
    factor: float


def _worked(state: RunState) -> Iterator[tuple[str, PhaseState]]:
    """The phases of a completed run whose durations say something of their work."""
    for key, phase in state.phases.items():
        is_work = state.plan.graph[key].phase.capability is not None
        if is_work and phase.items and not any(map(is_cached, phase.items)):
            yield key, phase


def _paces(states: Sequence[RunState]) -> tuple[float, list[float]]:
    """How much whole runs differ in speed, and for each run what its pace made of durations.

    Without that, each phase's durations would seem to differ by themselves as much as they differ together.
    """
    logs = [{key: _usual_log(phase) for key, phase in _worked(state)} for state in states]
    by_phase: defaultdict[str, list[float]] = defaultdict(list)
    for spans in logs:
        for key, log in spans.items():
            by_phase[key].append(log)
    if len(states) < _PACE_RUNS or len(by_phase) < _PACE_PHASES:
        return PACE_SPREAD, [1.0] * len(states)
    centers = {key: fmean(values) for key, values in by_phase.items()}
    beside = [{key: log - centers[key] for key, log in spans.items()} for spans in logs]
    # First as if all phases said the same of it; then those more that differ less by themselves.
    rough = [fmean(each.values()) if each else 0.0 for each in beside]
    squares: defaultdict[str, float] = defaultdict(float)
    for each, pace in zip(beside, rough, strict=True):
        for key, log in each.items():
            squares[key] += (log - pace) ** 2
    freed = len(by_phase) / (len(by_phase) - 1)
    weights = {key: len(by_phase[key]) / (squares[key] * freed + _PACE_LEAST**2) for key in by_phase}
    sums = [sum(weights[key] for key in each) for each in beside]
    found = [
        sum(weights[key] * log for key, log in each.items()) / total if total else 0.0
        for each, total in zip(beside, sums, strict=True)
    ]
    noise = fmean(1 / total for total in sums if total)
    own = max(fmean(pace**2 for pace in found) - noise, 0.0)
    variance = (_PACE_RUNS * PACE_SPREAD**2 + len(states) * own) / (_PACE_RUNS + len(states))
    return math.sqrt(variance), [math.exp(pace * own / (own + noise)) for pace in found]


def _usual_log(phase: PhaseState) -> float:
    """The logarithm of what a unit of a completed phase took, on average."""
    return fmean(math.log(max(item_s(phase, item), SHORTEST_S)) for item in phase.items)


def _likeness(attempts: Sequence[Durations]) -> float | None:
    """The variance that is usual among the phases of a plan; None where too few say so."""
    freedom = sum(each.count - 1 for each in attempts)
    if len(attempts) < _PACE_PHASES or freedom < _ENOUGH:
        return None
    return sum(each.squares for each in attempts) / freedom


def _past(taken: list[_Taken]) -> PhaseHistory:
    """Those taken are of the newest run first."""
    phases = [phase for phase, _ in taken]
    items = [[item_s(phase, item) for item in phase.items] for phase in phases]
    usual = ([span / each.factor for span in spans] for spans, each in zip(items, taken, strict=True))
    lasts = [last for phase in phases for item in phase.items for last in item.attempts[-1:]]
    attempts = [(last.ended_at - last.started_at).total_seconds() for last in lasts if last.ended_at is not None]
    return PhaseHistory(
        item=Durations.of(list(chain.from_iterable(usual))[:_SAMPLES]),
        attempt=Durations.of(attempts[:_SAMPLES]),
        talks=2 * sum(last.has_spoken for last in lasts) > len(lasts),
        items=round(median(map(len, items))),
        lanes=fmean(_lanes(phase, spans) for phase, spans in zip(phases, items, strict=True)),
        work_s=fmean(map(sum, items)),
    )


def _lanes(phase: PhaseState, spans: list[float]) -> float:
    """How many units were under way at a time, 1 at least."""
    assert phase.opened_at is not None and phase.ended_at is not None, "the phase has completed"
    wall_s = (phase.ended_at - phase.opened_at).total_seconds()
    return max(sum(spans) / wall_s, 1.0) if wall_s > 0 else float(len(spans))
