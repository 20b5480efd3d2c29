"""Revival: the work of one dead letter goes on, with another input if one is given; and what ended because of it.

What else died in the run stays dead, unless it comes later in the plan than what goes on: that begins anew with it.

A letter names one death of one piece of work. Whoever asks second finds that the work has moved on since, and is
refused: so what is redriven twice, by whomever, has effect once.
"""

from __future__ import annotations

import msgspec

from bus.errors import Refused
from bus.rules.commands import Revive
from bus.rules.draft import Draft, extended
from bus.rules.events import PhaseInputReplaced, RunRedriven
from bus.rules.passes import go_on_rolling_back, must_not_roll_back, taken_along
from bus.rules.run import TERMINAL, Death, PhaseState, RunState


def revive(draft: Draft, command: Revive) -> None:
    phase = draft.state.phases.get(command.phase)
    if phase is None:
        raise Refused(f"run {draft.state.run} has no phase {command.phase!r}")
    if phase.death_of(command.item) != Death(command.attempt, command.passes):
        raise Refused(f"the dead letter was dealt with before: {_standing(phase, command.item)}")
    if phase.status == "rolled_back":
        _must_have_ended(draft.state, phase)
    elif phase.undoing is not None:
        _undo_again(draft, phase, command)
        return
    must_not_roll_back(draft.state)
    is_open = phase.status not in TERMINAL
    chosen = {phase.key: None} if is_open else taken_along(draft.state, [phase.key])
    draft.emit(
        RunRedriven(
            by=command.by,
            phases=tuple(chosen),
            deadline_at=extended(draft.state, draft.now),
            item=command.item,
            letter=command.letter,
            operation=command.operation,
            reason=command.reason,
        )
    )
    if command.input is not msgspec.UNSET:
        _replace_input(draft, command, command.input)
    if is_open:
        draft.advance(phase.key)
        return
    graph = draft.state.plan.graph
    draft.open([key for key in chosen if not any(need in chosen for need in graph[key].needs)])


def _replace_input(draft: Draft, command: Revive, input: msgspec.Raw) -> None:
    key = command.phase
    if draft.state.plan.graph[key].each is not None and draft.state.phases[key].item(command.item) is None:
        raise Refused(f"phase {key} goes over its list anew: until then it has no items whose input could be replaced")
    draft.emit(
        PhaseInputReplaced(
            phase=key,
            item=command.item,
            input=input,
            by=command.by,
            reason=command.reason,
            transform=command.transform,
        )
    )


def _undo_again(draft: Draft, phase: PhaseState, command: Revive) -> None:
    """A compensation that was given up stopped its rollback: that goes on with it."""
    rollback = draft.state.rollback
    if draft.state.is_open or rollback is None or phase.key not in rollback.left:
        raise Refused(
            f"phase {phase.key} was given up while it was undone, and run {draft.state.run} has gone on since"
        )
    if command.input is not msgspec.UNSET:
        raise Refused(f"what undoes phase {phase.key} gets what the phase had and gave: that can't be replaced")
    go_on_rolling_back(draft, rollback, command.by, command.reason)


def _must_have_ended(state: RunState, phase: PhaseState) -> None:
    if state.is_open:
        raise Refused(f"phase {phase.key} was undone: its work can be done again when run {state.run} has ended")


def _standing(phase: PhaseState, index: int | None) -> str:
    item = phase.item(index)
    if item is None:
        return f"phase {phase.key} is {phase.status}"
    place = f"phase {phase.key}" if index is None else f"phase {phase.key}, item {index}"
    return f"attempt {item.attempt} of {place} is {item.status}"
