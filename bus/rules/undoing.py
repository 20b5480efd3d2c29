"""Undoing: which phases a rollback has to undo, in which order, and what their compensations are given."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import msgspec

from bus.rules.inputs import input_of
from bus.rules.references import Unresolved
from bus.rules.run import Item, Output, PhaseState, RunState, Undoing


def to_undo(state: RunState, keys: Collection[str]) -> tuple[str, ...]:
    """Those of `keys` that did something and can be undone: what needs a phase before it, otherwise the last first."""
    graph = state.plan.graph
    left = dict.fromkeys(graph)
    order: list[str] = []
    while left:
        free = [key for key in left if not any(later in left for later in graph[key].feeds)]
        # Of those that ended together the later in the plan; what never ended did nothing, and its place is no matter.
        key = max(reversed(free), key=lambda each: state.phases[each].ended_at or state.started_at)
        del left[key]
        order.append(key)
    chosen = [key for key in order if key in keys and graph[key].phase.compensate is not None]
    return tuple(key for key in chosen if _is_to_be_undone(state.phases[key]))


def undoing_of(state: RunState, key: str) -> Undoing:
    """What the compensation of a phase is about. One that did not come to its end is given what it was before."""
    phase = state.phases[key]
    if phase.undoing is not None:
        return phase.undoing
    given: Any = [_given(state, key, item.index) for item in phase.items]
    effects: Any = [_effects(item) for item in phase.items]
    if state.plan.graph[key].each is None:
        given = _given(state, key, None)
        effects = effects[0] if effects else {}
    has_effects = any(item.effects for item in phase.items)
    return Undoing(_output(given), phase.output or phase.results, _output(effects) if has_effects else None)


def _is_to_be_undone(phase: PhaseState) -> bool:
    """It did something, whatever became of it afterwards; or a compensation of it did not come to its end."""
    if phase.undoing is not None:
        return phase.status != "rolled_back"
    return phase.status == "completed" or any(item.status == "completed" or item.effects for item in phase.items)


def _given(state: RunState, key: str, index: int | None) -> Any:
    """The input of an item, or null if it can't be had."""
    needs = [state.phases[need] for need in state.plan.graph[key].needs]
    if any(need.output is None and need.undoing is None and not need.lets_pass for need in needs):
        # It was done again since, and came to nothing.
        return None
    try:
        return input_of(state, key, index)
    except Unresolved:
        return None


def _effects(item: Item) -> dict[str, Any]:
    """By name, what is known of each: its outcome, or nothing."""
    return {name: {} if outcome is None else {"outcome": outcome.value} for name, outcome in item.effects.items()}


def _output(value: Any) -> Output:
    return Output(msgspec.json.encode(value))
