"""What a handler gets: a phase's input with its references resolved, derived from the run's state alone."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from bus.references import ITEM, RUN_INPUT, Unresolved, follow, resolve
from bus.run import RunState


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of work, complete: whoever takes it needs to read nothing else to begin.

    `position` is the commit that made it ready. The plan's `timeout_s`, if any, outranks the capability's.
    """

    run: str
    plan: str
    phase: str
    capability: str
    attempt: int
    input: Any
    correlation: str
    position: int
    item: int | None = None
    timeout_s: float | None = None


def input_of(state: RunState, key: str, index: int | None) -> Any:
    """The input of a phase, or of one of its items, as JSON values. Raises Unresolved."""
    node = state.plan.graph[key]
    if node.each is None:
        return resolve(node.phase.input, lambda root: _root(state, root)) if node.phase.input is not None else {}
    element = items_of(state, key)[index or 0]
    if node.phase.input is None:
        return element
    return resolve(node.phase.input, lambda root: element if root == ITEM else _root(state, root))


def items_of(state: RunState, key: str) -> list[Any]:
    """The list an `each` phase goes over. Raises Unresolved if it is not a list."""
    each = state.plan.graph[key].each
    assert each is not None, f"phase {key} has an each"
    elements = follow(each, lambda root: _root(state, root))
    if not isinstance(elements, list):
        raise Unresolved(f"{each.ref!r} is not a list, so there is nothing to do one by one: {elements!r:.60}")
    return elements


def order(state: RunState, key: str, index: int | None) -> Order:
    """The work of an item's current attempt."""
    phase = state.plan.graph[key].phase
    item = state.phases[key].item(index)
    assert item is not None and phase.capability is not None, f"phase {key} is open and has a capability"
    return Order(
        run=state.run,
        plan=state.plan.name,
        phase=key,
        item=index,
        capability=phase.capability,
        attempt=item.attempt,
        input=input_of(state, key, index),
        correlation=state.correlation,
        position=state.position,
        timeout_s=phase.timeout_s,
    )


def due(state: RunState, now: datetime) -> list[tuple[str, int | None]]:
    """Every item that can be taken now."""
    return [
        (phase.key, item.index)
        for phase in state.phases.values()
        if phase.status in {"ready", "in_progress"}
        for item in phase.items
        if item.status == "ready" and item.ready_at is not None and item.ready_at <= now
    ]


def _root(state: RunState, root: str) -> Any:
    if root == RUN_INPUT:
        return state.input.value
    output = state.phases[root].output
    assert output is not None, f"phase {root} has completed, the plan's graph sees to that"
    return output.value
