"""Progress of a run: how much of it is done, as a fraction that only completed work moves, and how long is left."""

from __future__ import annotations

from datetime import datetime

import msgspec

from bus.rules.run import SUCCEEDED, Item, PhaseState, RunState
from projections.eta import Eta, eta
from projections.history import History

_LEAST_SHARE = 0.01
_NOT_DONE = 0.99
"""The most that counts of a unit, or of a run, before it has succeeded."""


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a run is, at one time.

    `fraction` is 0 to 1, and 1 only when the run has completed: each phase weighs what it took in the past (one
    without a past like the average of the others; without any history all weigh the same), and counts by its units
    that succeeded and by what the handlers of the others said. It never falls within a pass unless a handler takes
    its own word back.

    `phases_done` counts phases that succeeded; `items_done` and `items_total` the elements of `each` phases opened
    so far. `elapsed_s` runs from the start to the end, or to now. `eta` is None while there is nothing to base it
    on, and once the run has ended. The time that `gates_left` approvals will take is not in it.
    """

    run: str
    fraction: float
    phases_done: int
    phases_total: int
    items_done: int
    items_total: int
    elapsed_s: float
    eta: Eta | None
    gates_left: int


def progress(state: RunState, history: History, now: datetime) -> Progress:
    """The run's progress at `now`."""
    phases = state.phases.values()
    elements = [item for phase in phases for item in phase.items if item.index is not None]
    return Progress(
        run=state.run,
        fraction=fraction(state, history),
        phases_done=sum(1 for phase in phases if phase.lets_pass),
        phases_total=len(state.phases),
        items_done=sum(1 for item in elements if item.status in SUCCEEDED),
        items_total=len(elements),
        elapsed_s=((state.ended_at or now) - state.started_at).total_seconds(),
        eta=eta(state, history, now) if state.is_open else None,
        gates_left=sum(1 for phase in phases if _is_gate(state, phase) and phase.status in {"pending", "waiting"}),
    )


def fraction(state: RunState, history: History) -> float:
    """How much of the run is done, see `Progress`."""
    if state.status == "completed":
        return 1.0
    weights = _weights(state, history)
    done = sum(weights[key] * _share(phase) for key, phase in state.phases.items())
    return min(done / sum(weights.values()), _NOT_DONE)


def _weights(state: RunState, history: History) -> dict[str, float]:
    """What each phase weighs. Nothing that happens in a run changes it, or the fraction could fall."""
    pasts = {key: history.of(state.plan, key) for key in state.phases}
    known = [past.work_s for past in pasts.values() if past is not None]
    if not sum(known):
        return dict.fromkeys(pasts, 1.0)
    average_s = sum(known) / len(known)
    # A gate takes no work, but to see it pass is progress.
    least_s = average_s * _LEAST_SHARE
    weights: dict[str, float] = {}
    for key, past in pasts.items():
        expected_s = past.work_s if past is not None else average_s
        weights[key] = least_s if _is_gate(state, state.phases[key]) else max(expected_s, least_s)
    return weights


def _share(phase: PhaseState) -> float:
    """How much of a phase is done, 0 to 1. What its end was does not take back what had been done."""
    if phase.lets_pass:
        return 1.0
    return sum(map(_item_share, phase.items)) / len(phase.items) if phase.items else 0.0


def _item_share(item: Item) -> float:
    if item.status in SUCCEEDED:
        return 1.0
    # The furthest attempt of this pass: a retry begins again, the bar does not.
    return _NOT_DONE * max((attempt.fraction for attempt in item.attempts[item.earlier :]), default=0.0)


def _is_gate(state: RunState, phase: PhaseState) -> bool:
    return state.plan.graph[phase.key].phase.capability is None
