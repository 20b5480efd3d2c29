"""Passes: what opens phases again that had ended (redrive, rerun, skip, rollback), and checkpoints to go back to.

A terminal status never changes: what is done again is done in a new pass, and history keeps the old one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from bus.commands import Checkpoint, Redrive, Rollback, Skip
from bus.draft import Draft
from bus.errors import Refused
from bus.events import PhaseCancelled, PhaseSkipped, RunCheckpointed, RunRedriven, RunRollingBack
from bus.run import TERMINAL, PhaseState, RunState


def redrive(draft: Draft, command: Redrive) -> None:
    state = draft.state
    must_not_roll_back(state)
    if command.afresh:
        _must_have_ended(state)
        left = [key for key, phase in state.phases.items() if phase.status in TERMINAL]
    else:
        left = [key for key, phase in state.phases.items() if phase.status in TERMINAL and not phase.lets_pass]
        left = left or state.failures
    if not left:
        raise Refused(f"run {state.run} has nothing to redrive: nothing in it has failed")
    for key in command.phases:
        if key not in state.phases:
            raise Refused(f"run {state.run} has no phase {key!r}")
        if key not in left and state.phases[key].status != "failed":
            raise Refused(f"phase {key} is {state.phases[key].status}: only what failed can be redriven")
    _reopen(draft, command.phases or left, command.by, afresh=command.afresh)


def skip(draft: Draft, command: Skip) -> None:
    phase = draft.state.phases.get(command.phase)
    if phase is None:
        raise Refused(f"run {draft.state.run} has no phase {command.phase!r}")
    skipped = PhaseSkipped(
        phase=phase.key,
        reason=command.reason or f"by {command.by}",
        by=command.by,
        lets_pass=True,
        output=command.output,
    )
    if phase.status not in TERMINAL:
        draft.emit(skipped)
        draft.phase_ended(phase.key)
        return
    must_not_roll_back(draft.state)
    if phase.lets_pass:
        raise Refused(f"phase {phase.key} is {phase.status}: nothing waits for it")
    # A terminal status never changes: it is skipped in a new pass.
    _begin_pass(draft, [phase.key], command.by)
    draft.emit(skipped)
    draft.phase_ended(phase.key)


def roll_back(draft: Draft, command: Rollback) -> None:
    state = draft.state
    if state.is_open:
        must_not_roll_back(state)
    chosen = [key for key in _since(state, command) if state.phases[key].status != "pending"]
    if not chosen:
        raise Refused(f"run {state.run} has done nothing since then that could be rolled back")
    reason = command.reason or f"rolled back by {command.by}"
    still_open = [key for key in chosen if state.phases[key].status not in TERMINAL]
    draft.emit(*(PhaseCancelled(phase=key, reason=reason) for key in still_open))
    undo = [key for key in chosen if state.plan.graph[key].phase.compensate and _is_to_be_undone(state.phases[key])]
    undo.sort(key=lambda key: state.phases[key].ended_at or draft.now, reverse=True)
    draft.emit(
        RunRollingBack(
            by=command.by,
            phases=tuple(chosen),
            undo=tuple(undo),
            deadline_at=extended(draft),
            reason=command.reason,
        )
    )
    draft.roll_back()


def checkpoint(draft: Draft, command: Checkpoint) -> None:
    state = draft.state
    draft.must_be_open()
    must_not_roll_back(state)
    if command.name in state.checkpoints:
        raise Refused(f"run {state.run} has a checkpoint {command.name!r} already")
    done = tuple(key for key, phase in state.phases.items() if phase.lets_pass)
    draft.emit(RunCheckpointed(name=command.name, by=command.by, done=done))


def _begin_pass(draft: Draft, phases: Sequence[str], by: str, *, afresh: bool = False) -> dict[str, None]:
    """A new pass over `phases`, and over all that was skipped only because of them, or afresh: all that needs them."""
    chosen = dict.fromkeys(phases)
    for key in chosen.copy():
        add_downstream(draft.state, key, chosen, afresh=afresh)
    draft.emit(RunRedriven(by=by, phases=tuple(chosen), deadline_at=extended(draft), afresh=afresh))
    return chosen


def _reopen(draft: Draft, phases: Sequence[str], by: str, *, afresh: bool = False) -> None:
    """A new pass, with what can begin in it begun."""
    graph = draft.state.plan.graph
    chosen = _begin_pass(draft, phases, by, afresh=afresh)
    draft.open([key for key in chosen if not any(need in chosen for need in graph[key].needs)])


def extended(draft: Draft) -> datetime:
    """The deadline of a run that does something again: as if it began now, and not before the one it had."""
    return max(draft.state.deadline_at, draft.now + timedelta(seconds=draft.state.plan.timeout_s))


def add_downstream(state: RunState, key: str, chosen: dict[str, None], *, afresh: bool) -> None:
    """Add to `chosen` what has ended only because of phase `key`, or afresh: all that needs it."""
    frontier = [key]
    while frontier:
        for later in state.plan.graph[frontier.pop()].feeds:
            phase = state.phases[later]
            if later not in chosen and phase.status in TERMINAL and (afresh or not phase.lets_pass):
                chosen[later] = None
                frontier.append(later)


def _since(state: RunState, command: Rollback) -> list[str]:
    """The phases that a rollback is about, in the plan's order."""
    if (command.before is None) == (command.checkpoint is None):
        raise Refused("say either the phase before which to go back, or the checkpoint to go back to")
    if command.checkpoint is not None:
        if command.checkpoint not in state.checkpoints:
            known = ", ".join(state.checkpoints) or "none"
            raise Refused(f"run {state.run} has no checkpoint {command.checkpoint!r}; there are: {known}")
        done = state.checkpoints[command.checkpoint]
        return [key for key in state.phases if key not in done]
    assert command.before is not None, "one of the two is there"
    if command.before not in state.phases:
        raise Refused(f"run {state.run} has no phase {command.before!r}")
    behind = {command.before}
    frontier = [command.before]
    while frontier:
        later = [key for key in state.plan.graph[frontier.pop()].feeds if key not in behind]
        behind.update(later)
        frontier += later
    return [key for key in state.phases if key in behind]


def _is_to_be_undone(phase: PhaseState) -> bool:
    """It did something; or a compensation of it has failed before."""
    return phase.status == "completed" or (phase.undoing is not None and phase.status != "rolled_back")


def must_not_roll_back(state: RunState) -> None:
    """Raises Refused if something of the run has to be undone first."""
    if state.rollback is not None and state.rollback.left:
        raise Refused(f"run {state.run} is being rolled back: {', '.join(state.rollback.left)} have to be undone first")


def _must_have_ended(state: RunState) -> None:
    if state.is_open:
        raise Refused(f"run {state.run} is still in progress: what completed can be done again when it has ended")
