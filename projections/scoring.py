"""Scoring: what would have been forecast of past runs while they went on, against what happened.

Each is forecast from what had been learned by then, so nothing is scored on what it was learned from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import datetime
from statistics import median

import msgspec
from msgspec.structs import replace

from bus.rules.run import Item, PhaseState, RunState
from projections.eta import eta
from projections.history import learn

_RUNS = 20
_MOMENTS = (0.25, 0.5, 0.75)


class Scored(msgspec.Struct, frozen=True, kw_only=True):
    """The forecasts of a plan's newest runs, of which `held` lay between P10 and P90: 8 in 10 should.

    `error` is the median relative error of P50, `naive` that of elapsed / phases done x phases left. Each run is
    forecast when a quarter, half and three quarters of its phases had ended; `calculating` counts those for which
    nothing could be said yet.
    """

    plan: str
    runs: int
    forecasts: int
    held: int
    calculating: int
    error: float | None
    naive: float | None


def score(runs: Iterable[RunState], plan: str) -> Scored:
    """How good the forecasts of a plan's 20 newest completed runs were."""
    done = [each for each in runs if each.plan.name == plan and each.status == "completed" and each.passes == 1]
    done.sort(key=lambda state: (state.ended_at or state.started_at, state.run))
    newest = done[-_RUNS:]
    held = calculating = 0
    errors: list[float] = []
    naive: list[float] = []
    for state in newest:
        # What had ended before this one began.
        history = learn(other for other in done if other.ended_at is not None and other.ended_at <= state.started_at)
        assert state.ended_at is not None, "it has completed"
        for at, share in _moments(state):
            left_s = (state.ended_at - at).total_seconds()
            found = eta(rewound(state, at), history, at)
            if found is None:
                calculating += 1
            elif left_s > 0:
                held += found.p10_s <= left_s <= found.p90_s
                errors.append(abs(found.p50_s - left_s) / left_s)
                elapsed_s = (at - state.started_at).total_seconds()
                naive.append(abs(elapsed_s / share * (1 - share) - left_s) / left_s)
    return Scored(
        plan=plan,
        runs=len(newest),
        forecasts=len(errors),
        held=held,
        calculating=calculating,
        error=median(errors) if errors else None,
        naive=median(naive) if naive else None,
    )


def scores(runs: Iterable[RunState]) -> list[Scored]:
    """The scores of every plan that has runs which completed, by name."""
    by_plan: defaultdict[str, list[RunState]] = defaultdict(list)
    for state in runs:
        if state.status == "completed":
            by_plan[state.plan.name].append(state)
    return [score(by_plan[plan], plan) for plan in sorted(by_plan)]


def rewound(state: RunState, at: datetime) -> RunState:
    """What a run that went through in one pass was at an instant, as far as a forecast looks at it."""
    phases = {key: _phase(phase, at) for key, phase in state.phases.items()}
    return replace(state, status="in_progress", ended_at=None, phases=phases)


def _moments(state: RunState) -> Iterator[tuple[datetime, float]]:
    """When such shares of its phases had ended, and what share that was."""
    ends = sorted(phase.ended_at for phase in state.phases.values() if phase.ended_at is not None)
    for count in dict.fromkeys(int(len(ends) * share) for share in _MOMENTS):
        if 0 < count < len(ends):
            yield ends[count - 1], count / len(ends)


def _phase(phase: PhaseState, at: datetime) -> PhaseState:
    if phase.ended_at is not None and phase.ended_at <= at:
        return phase
    if phase.opened_at is None or phase.opened_at > at:
        return PhaseState(key=phase.key)
    items = [_item(item, at) for item in phase.items]
    is_begun = any(item.attempts for item in items)
    status = "waiting" if not items else "in_progress" if is_begun else "ready"
    return replace(phase, status=status, ended_at=None, output=None, lets_pass=False, items=items)


def _item(item: Item, at: datetime) -> Item:
    if item.ended_at is not None and item.ended_at <= at:
        return item
    # How far a handler said it was is not kept with the time at which it said so.
    tries = [
        replace(each, ended_at=None, problem=None, cause="", duration_s=None, fraction=0.0)
        if each.ended_at is None or each.ended_at > at
        else each
        for each in item.attempts
        if each.started_at < at
    ]
    is_held = bool(tries) and tries[-1].ended_at is None
    status = "in_progress" if is_held else "ready"
    return replace(item, status=status, ended_at=None, output=None, attempts=tuple(tries))
