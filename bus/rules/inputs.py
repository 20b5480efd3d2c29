"""What a handler gets: a phase's input with its references resolved, derived from the run's state alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from bus.format.subjects import Work
from bus.rules.conditions import holds
from bus.rules.priority import NORMAL, Priority, sender_token
from bus.rules.references import ABSENT, ITEM, RUN_INPUT, Unresolved, follow, resolve
from bus.rules.route import need
from bus.rules.run import Output, RunState


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt is about, as its handler's process derives it from the run.

    `begun` is the pass in which this work was begun from nothing, `undoes` says that it undoes the phase's own;
    `effects` and `saved` are what attempts before it have left. `priority` and `sender` are for what it asks for.
    """

    run: str
    plan: str
    phase: str
    attempt: int
    input: Any
    correlation: str
    sticky: str = ""
    item: int | None = None
    silence_timeout_s: float | None = None
    begun: int = 1
    undoes: bool = False
    effects: Mapping[str, Output | None] = {}
    saved: Output | None = None
    priority: Priority = NORMAL
    sender: str = ""


def input_of(state: RunState, key: str, index: int | None) -> Any:
    """The input of a phase, or of one of its items, as JSON values. Raises Unresolved."""
    node = state.plan.graph[key]
    undoing = state.phases[key].undoing
    if undoing is not None:
        about = {"input": undoing.input.value, "output": undoing.output.value}
        return about if undoing.effects is None else about | {"effects": undoing.effects.value}
    item = state.phases[key].item(index)
    if item is not None and item.given is not None:
        return item.given.value
    if node.each is None:
        return resolve(node.phase.input, lambda root: _root(state, root)) if node.phase.input is not None else {}
    element = items_of(state, key)[index or 0]
    if node.phase.input is None:
        return element
    return resolve(node.phase.input, lambda root: element if root == ITEM else _root(state, root))


def child_name(run: str, key: str, passes: int) -> str:
    """The id of the child run of a phase: the same whoever starts it, and another in each pass."""
    digest = hashlib.blake2b(f"{run}/{key}/{passes}".encode(), digest_size=6).hexdigest()
    return f"{run[:30]}-{key.lstrip('-')[:18]}-{digest}"


def is_wanted(state: RunState, key: str) -> bool:
    """Whether the phase's condition holds. Raises Unresolved."""
    condition = state.plan.graph[key].phase.when
    return condition is None or holds(condition, lambda root: _root(state, root))


def given_to(state: RunState, key: str) -> Any:
    """The input of a phase as a whole: that of its work, or a list of what its items got. Raises Unresolved."""
    items = state.phases[key].items
    if state.plan.graph[key].each is None:
        return input_of(state, key, None)
    return [input_of(state, key, item.index) for item in items]


def items_of(state: RunState, key: str) -> list[Any]:
    """The list an `each` phase goes over. Raises Unresolved if it is not a list."""
    each = state.plan.graph[key].each
    assert each is not None, f"phase {key} has an each"
    elements = follow(each, lambda root: _root(state, root))
    if elements is None and state.phases.get(each.root) is not None and state.phases[each.root].output is None:
        return []
    if not isinstance(elements, list):
        raise Unresolved(f"{each.ref!r} is not a list, so there is nothing to do one by one: {elements!r:.60}")
    return elements


def order(state: RunState, key: str, index: int | None) -> Order:
    """The order of an item's current attempt. Its input is a copy: a handler may change what it is given."""
    item = state.phases[key].item(index)
    assert item is not None, f"phase {key} is open"
    return Order(
        run=state.run,
        plan=state.plan.name,
        phase=key,
        item=index,
        attempt=item.attempt,
        input=msgspec.json.decode(msgspec.json.encode(input_of(state, key, index))),
        correlation=state.correlation,
        sticky=state.sticky or state.key,
        silence_timeout_s=state.plan.graph[key].phase.silence_timeout_s,
        begun=state.phases[key].begun,
        undoes=state.phases[key].undoing is not None,
        effects=item.effects,
        saved=item.saved,
        priority=state.level(key),
        sender=state.sender,
    )


def work(state: RunState, key: str, index: int | None) -> Work:
    """What the current attempt's work subject says, in the first row."""
    capability = state.capability(key)
    item = state.phases[key].item(index)
    assert item is not None and capability is not None, f"phase {key} is open and has a capability"
    level, sender = state.level(key), sender_token(state.sender)
    return Work(need(capability, item.arm), state.run, key, index, item.attempt, level, sender)


def _root(state: RunState, root: str) -> Any:
    if root == RUN_INPUT:
        return state.input.value
    phase = state.phases[root]
    if phase.undoing is not None:
        # What it gave is what others were given, also while it is undone.
        return phase.undoing.output.value
    if phase.output is None:
        assert phase.lets_pass, f"phase {root} has ended, the plan's graph sees to that"
        return ABSENT
    return phase.output.value
