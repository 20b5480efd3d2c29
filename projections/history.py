"""History: how long each phase has taken in the past, by plan, phase and capability."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from heapq import nlargest
from itertools import chain
from statistics import fmean, median
from typing import NamedTuple

import msgspec

from bus.plan import Plan
from bus.run import Item, PhaseState, RunState
from projections.durations import Durations

_RUNS = 100
_SAMPLES = 200
_ENOUGH = 8
_LIMIT_SHARE = 0.99


class Kind(NamedTuple):
    """What makes durations comparable. All tasks share one plan and phase; their capability tells them apart."""

    plan: str
    phase: str
    capability: str


class PhaseHistory(msgspec.Struct, frozen=True, kw_only=True):
    """A phase's past.

    `item` is how long one unit of it took with its retries (see `item_s`), `attempt` one attempt that succeeded.
    `items` is the usual number of units, 1 for a plain phase; `lanes` how many of them were under way at a time,
    on average. `work_s` is what the whole phase took, all its units added up, on average.
    """

    item: Durations
    attempt: Durations
    items: int
    lanes: float
    work_s: float

    @property
    def limit_s(self) -> float | None:
        """How long an attempt may take before it is slower than ever: over 99 % of what to expect and over all that
        has been seen. None with fewer than 8 to learn from."""
        if self.attempt.count < _ENOUGH:
            return None
        return max(self.attempt.upper_s(_LIMIT_SHARE), self.attempt.longest_s)


class History(msgspec.Struct, frozen=True):
    """What was learned from runs that completed in their first pass: of each plan the newest 100."""

    phases: dict[Kind, PhaseHistory] = msgspec.field(default_factory=dict)

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
    newest = chain.from_iterable(nlargest(_RUNS, ended) for ended in by_plan.values())
    pasts: defaultdict[Kind, list[PhaseState]] = defaultdict(list)
    for _, _, state in newest:
        for key, phase in state.phases.items():
            capability = state.plan.graph[key].phase.capability
            if capability is not None and phase.items and not any(map(is_cached, phase.items)):
                pasts[Kind(state.plan.name, key, capability)].append(phase)
    return History({kind: _past(phases) for kind, phases in pasts.items()})


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


def _past(phases: list[PhaseState]) -> PhaseHistory:
    """`phases` are completed ones, newest run first."""
    items = [[item_s(phase, item) for item in phase.items] for phase in phases]
    attempts = [
        (last.ended_at - last.started_at).total_seconds()
        for phase in phases
        for item in phase.items
        for last in item.attempts[-1:]
        if last.ended_at is not None
    ]
    return PhaseHistory(
        item=Durations.of(list(chain.from_iterable(items))[:_SAMPLES]),
        attempt=Durations.of(attempts[:_SAMPLES]),
        items=round(median(map(len, items))),
        lanes=fmean(_lanes(phase, spans) for phase, spans in zip(phases, items, strict=True)),
        work_s=fmean(map(sum, items)),
    )


def _lanes(phase: PhaseState, spans: list[float]) -> float:
    """How many units were under way at a time, 1 at least."""
    assert phase.opened_at is not None and phase.ended_at is not None, "the phase has completed"
    wall_s = (phase.ended_at - phase.opened_at).total_seconds()
    return max(sum(spans) / wall_s, 1.0) if wall_s > 0 else float(len(spans))
