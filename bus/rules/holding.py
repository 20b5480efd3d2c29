"""Holding: which item a command is about, and whether it comes from who has the current attempt under way."""

from __future__ import annotations

from bus.errors import Refused
from bus.rules.commands import Complete, Fail, Intend, Progress, Save, Settle
from bus.rules.draft import Draft
from bus.rules.run import Item, PhaseState, RunState


def under_way(draft: Draft, command: Progress | Intend | Settle | Save) -> tuple[PhaseState, Item]:
    """The item whose current attempt the command's sender holds. Raises Refused."""
    phase, item = find(draft.state, command.phase, command.item)
    if not is_holder(item, command):
        raise Refused(f"attempt {command.attempt} of {label(phase, item)} is not under way there")
    return phase, item


def is_holder(item: Item, command: Complete | Fail | Progress | Intend | Settle | Save) -> bool:
    """Whether the command comes from who has the attempt under way."""
    holder = item.holder
    return holder is not None and (holder.number, holder.instance) == (command.attempt, command.instance)


def find(state: RunState, key: str, index: int | None) -> tuple[PhaseState, Item]:
    """Raises Refused if there is no such item, or not yet."""
    phase = state.phases.get(key)
    item = phase.item(index) if phase is not None else None
    if phase is None or item is None:
        raise Refused(f"run {state.run} has no open phase {key if index is None else f'{key}:{index}'!r}")
    return phase, item


def label(phase: PhaseState, item: Item) -> str:
    return f"phase {phase.key}" if item.index is None else f"phase {phase.key}, item {item.index}"
