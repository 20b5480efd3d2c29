"""Passes: what opens phases again that had ended (redrive, rerun, skip, rollback), and checkpoints to go back to.

A terminal status never changes: what is done again is done in a new pass, and history keeps the old one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bus.errors import Refused
from bus.rules.commands import Cancel, Checkpoint, Redrive, Rollback, Skip
from bus.rules.draft import Draft, extended
from bus.rules.events import PhaseCancelled, PhaseSkipped, RunCheckpointed, RunRedriven, RunRollingBack
from bus.rules.run import TERMINAL, RunState
from bus.rules.run import Rollback as RollbackState
from bus.rules.undoing import to_undo


def redrive(draft: Draft, command: Redrive) -> None:
    state = draft.state
    if not state.is_open and not command.afresh and state.rollback is not None and state.rollback.left:
        wrong = next((key for key in command.phases if key not in state.rollback.left), None)
        if wrong is not None:
            raise Refused(
                f"run {state.run} is being rolled back: only {', '.join(state.rollback.left)} can be redriven"
            )
        go_on_rolling_back(draft, state.rollback, command.by)
        return
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
    draft.emit(
        RunRollingBack(
            by=command.by,
            phases=tuple(chosen),
            undo=to_undo(draft.state, chosen),
            deadline_at=extended(draft.state, draft.now),
            reason=command.reason,
        )
    )
    draft.roll_back()


def go_on_rolling_back(draft: Draft, rollback: RollbackState, by: str, reason: str = "") -> None:
    """What could not be undone is tried again; when all is undone, what was to follow does."""
    draft.emit(
        RunRollingBack(
            by=by,
            phases=rollback.phases,
            undo=rollback.left,
            deadline_at=extended(draft.state, draft.now),
            reason=reason or rollback.reason,
            problem=rollback.problem,
            cancels=rollback.cancels,
        )
    )
    draft.roll_back()


def cancel_and_undo(draft: Draft, command: Cancel, undo: tuple[str, ...]) -> None:
    """What a run did is undone, and then it is cancelled: decided at once, so that nobody has to see to the second."""
    deadline_at = extended(draft.state, draft.now)
    draft.emit(
        RunRollingBack(
            by=command.by, phases=(), undo=undo, deadline_at=deadline_at, reason=command.reason, cancels=True
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
    """A new pass over `phases`, and over all that was skipped only because of them, or afresh: all that needs them.

    What any of them needs and was undone is done again as well.
    """
    chosen = taken_along(draft.state, phases, afresh=afresh)
    draft.emit(RunRedriven(by=by, phases=tuple(chosen), deadline_at=extended(draft.state, draft.now), afresh=afresh))
    return chosen


def _reopen(draft: Draft, phases: Sequence[str], by: str, *, afresh: bool = False) -> None:
    """A new pass, with what can begin in it begun."""
    graph = draft.state.plan.graph
    chosen = _begin_pass(draft, phases, by, afresh=afresh)
    draft.open([key for key in chosen if not any(need in chosen for need in graph[key].needs)])


def taken_along(state: RunState, phases: Sequence[str], *, afresh: bool = False) -> dict[str, None]:
    """`phases`, and whatever else goes into a new pass because of them."""
    chosen = dict.fromkeys(phases)
    frontier = list(chosen)
    while frontier:
        for other in _beside(state, frontier.pop(), afresh=afresh):
            if other not in chosen:
                chosen[other] = None
                frontier.append(other)
    return chosen


def _beside(state: RunState, key: str, *, afresh: bool) -> Iterator[str]:
    """The phases next to one in the graph that go into a new pass with it."""
    for later in state.plan.graph[key].feeds:
        phase = state.phases[later]
        if phase.status in TERMINAL and (afresh or not phase.lets_pass):
            yield later
    yield from (need for need in state.plan.graph[key].needs if state.phases[need].status == "rolled_back")


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


def must_not_roll_back(state: RunState) -> None:
    """Raises Refused if something of the run has to be undone first."""
    if state.rollback is not None and state.rollback.left:
        raise Refused(f"run {state.run} is being rolled back: {', '.join(state.rollback.left)} have to be undone first")


def _must_have_ended(state: RunState) -> None:
    if state.is_open:
        raise Refused(f"run {state.run} is still in progress: what completed can be done again when it has ended")
