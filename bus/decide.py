"""`decide`: the rules of a run. What a command may change, and everything that follows from it.

Pure: time comes in, events come out, nothing else happens. A command that the present state does not allow raises
Refused; a zombie's result is not refused silently but becomes an event.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

from msgspec.structs import replace

from bus import retry
from bus.commands import (
    Answer,
    Begin,
    Cancel,
    Checkpoint,
    Command,
    Complete,
    Expire,
    Fail,
    GiveUp,
    Intend,
    Offer,
    Pause,
    Progress,
    Redrive,
    Report,
    Resume,
    Rollback,
    Settle,
    Signal,
    Skip,
    Take,
    Together,
)
from bus.draft import Draft
from bus.errors import Refused
from bus.events import (
    Commit,
    Event,
    PhaseApproved,
    PhaseAttemptFailed,
    PhaseCancelled,
    PhaseCompleted,
    PhaseEffectDone,
    PhaseEffectIntended,
    PhaseEscalated,
    PhaseFailed,
    PhaseProgressed,
    PhaseReady,
    PhaseSkipped,
    PhaseStarted,
    ResultRefused,
    RunCancelled,
    RunCheckpointed,
    RunFailed,
    RunPaused,
    RunRedriven,
    RunResumed,
    RunRollingBack,
    RunSignalled,
    RunStarted,
)
from bus.folding import Folding, evolve
from bus.problem import Problem
from bus.run import TERMINAL, Item, Late, PhaseState, RunState

OUTSIDE = "outside of"
"""How the reason begins why a phase was left out of a run of a part of its plan."""


def decide(state: RunState | None, command: Command, *, run: str, now: datetime) -> Sequence[Event]:
    """What happens because of the command: events in order, never none. Raises Refused if nothing may."""
    if isinstance(command, Together):
        return _together(state, command, run, now)
    if isinstance(command, Begin):
        if state is not None:
            raise Refused(f"run {run} has already started")
        return _begin(command, run, now)
    if state is None:
        raise Refused(f"there is no run {run}")
    if state.archived:
        raise Refused(f"run {run} is archived: it can be read, and does not go on")
    draft = Draft(state, now)
    match command:
        case Take():
            _take(draft, command)
        case Complete():
            _complete(draft, command)
        case Fail():
            _fail(draft, command)
        case Progress():
            _progress(draft, command)
        case Intend():
            _intend(draft, command)
        case Settle():
            _settle(draft, command)
        case Answer():
            _answer(draft, command)
        case Redrive():
            _redrive(draft, command)
        case Pause():
            _must_be_open(state)
            if state.paused_at is not None:
                raise Refused(f"run {run} is paused already, by {state.paused_by}")
            draft.emit(RunPaused(by=command.by, reason=command.reason))
        case Resume():
            _resume(draft, command)
        case Skip():
            _skip(draft, command)
        case Signal():
            _signal(draft, command)
        case Checkpoint():
            _checkpoint(draft, command)
        case Rollback():
            _roll_back(draft, command)
        case Report():
            _report(draft, command)
        case GiveUp():
            _give_up(draft, command)
        case Cancel():
            _must_be_open(state)
            _stop(draft, RunCancelled(by=command.by, reason=command.reason), command.reason or f"by {command.by}")
        case Expire():
            _must_be_open(state)
            if now < state.deadline_at:
                raise Refused(f"run {run} has until {state.deadline_at:%Y-%m-%d %H:%M:%S}")
            late = Problem("expired", f"the run passed its deadline {state.deadline_at:%Y-%m-%d %H:%M:%S}", "permanent")
            _give_up_work(draft, late)
            _stop(draft, RunFailed(problem=late), "the run passed its deadline")
    return draft.events


def _together(state: RunState | None, command: Together, run: str, now: datetime) -> Sequence[Event]:
    folding = Folding(state)
    happened: list[Event] = []
    for each in command.commands:
        caused = decide(folding.state, each, run=run, now=now)
        position = (folding.state.position if folding.state is not None else 0) + 1
        folding.add(Commit(run, "", now, position, caused))
        happened += caused
    return happened


def _begin(command: Begin, run: str, now: datetime) -> Sequence[Event]:
    deadline = (command.due_at or now) + timedelta(seconds=command.plan.timeout_s)
    started = RunStarted(plan=command.plan, input=command.input, deadline_at=deadline, parent=command.parent)
    draft = Draft(evolve(None, Commit(run, "", now, 0, [started])), now)
    adopted = [key for key in command.plan.graph if key in command.adopted]
    for key in adopted:
        draft.emit(_adoption(draft.state, key, command))
    outside = _outside(list(command.plan.graph), command.first, command.last)
    said = f"{OUTSIDE} {command.first or 'the first'} to {command.last or 'the last'}"
    left_out = [key for key in outside if key not in adopted]
    draft.emit(*(PhaseSkipped(phase=key, reason=said, lets_pass=True) for key in left_out))
    draft.open([key for key in command.plan.graph if key not in outside])
    if command.due_at is None:
        return [started, *draft.events]
    return [started, *(_not_before(event, command.due_at) for event in draft.events)]


def _not_before(event: Event, due_at: datetime) -> Event:
    return replace(event, due_at=due_at) if isinstance(event, PhaseReady) else event


def _adoption(state: RunState, key: str, command: Begin) -> PhaseApproved | PhaseCompleted:
    """A phase that was done elsewhere, as it ended there."""
    if state.plan.graph[key].phase.approval is not None:
        return PhaseApproved(phase=key, by=command.origin)
    return PhaseCompleted(phase=key, output=command.adopted[key], by=command.origin)


def _outside(keys: list[str], first: str | None, last: str | None) -> list[str]:
    """The phases in front of `first` and behind `last`, in the plan's order."""
    for key in (first, last):
        if key is not None and key not in keys:
            raise Refused(f"the plan has no phase {key!r} to begin or end with")
    begin = keys.index(first) if first is not None else 0
    end = keys.index(last) if last is not None else len(keys) - 1
    if begin > end:
        raise Refused(f"phase {first} comes behind phase {last} in the plan")
    return keys[:begin] + keys[end + 1 :]


def _take(draft: Draft, command: Take) -> None:
    phase, item = _find(draft.state, command.phase, command.item)
    needed = draft.state.capability(phase.key)
    if needed != command.capability:
        raise Refused(f"{_label(phase, item)} needs {needed!r}, not {command.capability!r}")
    if draft.state.paused_at is not None:
        raise Refused(f"run {draft.state.run} is paused by {draft.state.paused_by}")
    if item.status != "ready" or item.attempt != command.attempt:
        raise Refused(
            f"attempt {command.attempt} of {_label(phase, item)} can't be taken: "
            f"attempt {item.attempt} is {item.status}"
        )
    _start(draft, phase.key, item, command.agent, command.instance, command.timeout_s)


def _start(draft: Draft, key: str, item: Item, agent: str, instance: str, timeout_s: float) -> None:
    bound_s = draft.state.plan.graph[key].phase.timeout_s or timeout_s
    draft.emit(
        PhaseStarted(
            phase=key,
            item=item.index,
            attempt=item.attempt,
            agent=agent,
            instance=instance,
            deadline_at=draft.now + timedelta(seconds=bound_s),
        )
    )


def _complete(draft: Draft, command: Complete) -> None:
    held = _held(draft, command, "completed")
    if held is None:
        return
    phase, item = held
    draft.emit(PhaseCompleted(phase=phase.key, item=item.index, attempt=command.attempt, output=command.output))
    draft.item_ended(phase.key, item)
    if command.offer is not None:
        _go_on(draft, command.offer, command.instance)


def _go_on(draft: Draft, offer: Offer, instance: str) -> None:
    """Start, in the same commit, one item that it made ready: an append and a way through the server less."""
    if draft.state.paused_at is not None:
        return
    for event in draft.events:
        if isinstance(event, PhaseReady) and draft.state.capability(event.phase) == offer.capability:
            item = draft.state.phases[event.phase].item(event.item)
            assert item is not None, "what is ready has been opened"
            _start(draft, event.phase, item, offer.agent, instance, offer.timeout_s)
            return


def _fail(draft: Draft, command: Fail) -> None:
    phase, item = _find(draft.state, command.phase, command.item)
    if command.cause == "unclaimed":
        if item.status != "ready" or item.attempt != command.attempt:
            raise Refused(f"{_label(phase, item)} does not wait to be taken")
    elif _held(draft, command, "failed") is None:
        return
    draft.emit(
        PhaseAttemptFailed(
            phase=phase.key,
            item=item.index,
            attempt=command.attempt,
            instance=command.instance or None,
            problem=command.problem,
            cause=command.cause,
            evidence=command.evidence,
        )
    )
    seed = f"{draft.state.run}/{phase.key}/{item.index}"
    earlier = [attempt.problem for attempt in item.attempts[item.earlier :] if attempt.problem is not None]
    policy = draft.state.plan.graph[phase.key].phase.policy
    wait_s = None if command.cause == "unclaimed" else retry.delay_s(policy, command.problem, earlier, seed=seed)
    if wait_s is None:
        draft.emit(PhaseFailed(phase=phase.key, item=item.index, problem=command.problem))
        draft.item_ended(phase.key, item)
    else:
        due_at = draft.now + timedelta(seconds=wait_s) if wait_s else None
        draft.emit(PhaseReady(phase=phase.key, item=item.index, attempt=item.attempt + 1, due_at=due_at))


def _progress(draft: Draft, command: Progress) -> None:
    phase, item = _under_way(draft, command)
    draft.emit(
        PhaseProgressed(
            phase=phase.key,
            item=item.index,
            attempt=command.attempt,
            fraction=min(max(0.0, command.fraction), 1.0),
            note=command.note,
        )
    )


def _intend(draft: Draft, command: Intend) -> None:
    phase, item = _under_way(draft, command)
    if command.effect in item.effects:
        raise Refused(f"{command.effect!r} of {_label(phase, item)} was begun before")
    draft.emit(PhaseEffectIntended(phase=phase.key, item=item.index, attempt=command.attempt, effect=command.effect))


def _settle(draft: Draft, command: Settle) -> None:
    phase, item = _under_way(draft, command)
    if command.effect not in item.effects or item.effects[command.effect] is not None:
        raise Refused(f"{command.effect!r} of {_label(phase, item)} is not under way")
    draft.emit(
        PhaseEffectDone(
            phase=phase.key,
            item=item.index,
            attempt=command.attempt,
            effect=command.effect,
            outcome=command.outcome,
        )
    )


def _under_way(draft: Draft, command: Progress | Intend | Settle) -> tuple[PhaseState, Item]:
    """The item whose current attempt the command's sender holds."""
    phase, item = _find(draft.state, command.phase, command.item)
    if not _is_holder(item, command):
        raise Refused(f"attempt {command.attempt} of {_label(phase, item)} is not under way there")
    return phase, item


def _is_holder(item: Item, command: Complete | Fail | Progress | Intend | Settle) -> bool:
    """Whether the command comes from who has the attempt under way."""
    holder = item.holder
    return holder is not None and (holder.number, holder.instance) == (command.attempt, command.instance)


def _answer(draft: Draft, command: Answer) -> None:
    phase = draft.state.phases.get(command.phase)
    if phase is None:
        raise Refused(f"run {draft.state.run} has no phase {command.phase!r}")
    if phase.status != "waiting":
        raise Refused(f"phase {phase.key} does not wait for an answer: it is {phase.status}")
    if command.expired and phase.expires_at is not None and draft.now < phase.expires_at:
        raise Refused(f"phase {phase.key} waits until {phase.expires_at:%Y-%m-%d %H:%M:%S}")
    signal = draft.state.plan.graph[phase.key].phase.signal
    if signal is not None and not command.expired:
        raise Refused(f"phase {phase.key} waits for signal {signal.signal!r}, not for an answer")
    if phase.child and not command.expired:
        raise Refused(f"phase {phase.key} waits for run {phase.child}, not for an answer")
    if command.gate is not None and command.gate != phase.gate:
        raise Refused(f"phase {phase.key} was opened again since, in pass {phase.gate}: look at it anew")
    if phase.asked and not command.expired and command.by not in phase.asked:
        raise Refused(f"phase {phase.key} is for {', '.join(phase.asked)} to answer, not for {command.by}")
    approval = draft.state.plan.graph[phase.key].phase.approval
    if command.expired and approval is not None and approval.on_expiry == "escalate" and not phase.is_escalated:
        expires_at = draft.now + timedelta(seconds=approval.expires_s)
        draft.emit(PhaseEscalated(phase=phase.key, to=tuple(approval.escalate_to), expires_at=expires_at))
        return
    if command.approve:
        draft.emit(PhaseApproved(phase=phase.key, by=command.by, comment=command.comment))
    elif command.expired:
        missing = f"signal {signal.signal!r} did not come" if signal is not None else "nobody answered"
        if phase.child:
            missing = f"run {phase.child} did not end"
        problem = Problem("expired", f"{missing} in time", "permanent")
        draft.emit(PhaseFailed(phase=phase.key, problem=problem))
    else:
        problem = Problem("rejected", f"rejected by {command.by}", "permanent", detail=command.comment)
        draft.emit(PhaseFailed(phase=phase.key, problem=problem))
    draft.phase_ended(phase.key)


def _redrive(draft: Draft, command: Redrive) -> None:
    state = draft.state
    _must_not_roll_back(state)
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


def _reopen(draft: Draft, phases: Sequence[str], by: str, *, afresh: bool = False) -> None:
    """A new pass, with what can begin in it begun."""
    graph = draft.state.plan.graph
    chosen = _begin_pass(draft, phases, by, afresh=afresh)
    draft.open([key for key in chosen if not any(need in chosen for need in graph[key].needs)])


def _begin_pass(draft: Draft, phases: Sequence[str], by: str, *, afresh: bool = False) -> dict[str, None]:
    """A new pass over `phases`, and over all that was skipped only because of them, or afresh: all that needs them."""
    chosen = dict.fromkeys(phases)
    for key in chosen.copy():
        _add_downstream(draft.state, key, chosen, afresh=afresh)
    draft.emit(RunRedriven(by=by, phases=tuple(chosen), deadline_at=_extended(draft), afresh=afresh))
    return chosen


def _extended(draft: Draft) -> datetime:
    """The deadline of a run that does something again: as if it began now, and not before the one it had."""
    return max(draft.state.deadline_at, draft.now + timedelta(seconds=draft.state.plan.timeout_s))


def _add_downstream(state: RunState, key: str, chosen: dict[str, None], *, afresh: bool) -> None:
    frontier = [key]
    while frontier:
        for later in state.plan.graph[frontier.pop()].feeds:
            phase = state.phases[later]
            if later not in chosen and phase.status in TERMINAL and (afresh or not phase.lets_pass):
                chosen[later] = None
                frontier.append(later)


def _checkpoint(draft: Draft, command: Checkpoint) -> None:
    state = draft.state
    _must_be_open(state)
    _must_not_roll_back(state)
    if command.name in state.checkpoints:
        raise Refused(f"run {state.run} has a checkpoint {command.name!r} already")
    done = tuple(key for key, phase in state.phases.items() if phase.lets_pass)
    draft.emit(RunCheckpointed(name=command.name, by=command.by, done=done))


def _roll_back(draft: Draft, command: Rollback) -> None:
    state = draft.state
    if state.is_open:
        _must_not_roll_back(state)
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
            deadline_at=_extended(draft),
            reason=command.reason,
        )
    )
    draft.roll_back()


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


def _resume(draft: Draft, command: Resume) -> None:
    state = draft.state
    _must_be_open(state)
    if state.paused_at is None:
        raise Refused(f"run {state.run} is not paused")
    waiting = [(phase.key, item) for phase in state.phases.values() for item in phase.items if item.status == "ready"]
    draft.emit(RunResumed(by=command.by))
    for key, item in waiting:
        due_at = item.ready_at if item.ready_at is not None and item.ready_at > draft.now else None
        draft.emit(PhaseReady(phase=key, item=item.index, attempt=item.attempt, due_at=due_at))


def _skip(draft: Draft, command: Skip) -> None:
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
    _must_not_roll_back(draft.state)
    if phase.lets_pass:
        raise Refused(f"phase {phase.key} is {phase.status}: nothing waits for it")
    # A terminal status never changes: it is skipped in a new pass.
    _begin_pass(draft, [phase.key], command.by)
    draft.emit(skipped)
    draft.phase_ended(phase.key)


def _signal(draft: Draft, command: Signal) -> None:
    _must_be_open(draft.state)
    waiting = [
        key
        for key, phase in draft.state.phases.items()
        if phase.status == "waiting"
        and (awaited := draft.state.plan.graph[key].phase.signal) is not None
        and awaited.signal == command.signal
    ]
    if not waiting:
        draft.emit(RunSignalled(signal=command.signal, by=command.by, data=command.data))
    for key in waiting:
        draft.emit(PhaseCompleted(phase=key, output=command.data, by=command.by))
    for key in waiting:
        draft.phase_ended(key)


def _report(draft: Draft, command: Report) -> None:
    phase = draft.state.phases.get(command.phase)
    if phase is None or phase.status != "waiting" or phase.child != command.child:
        raise Refused(f"phase {command.phase!r} does not wait for run {command.child}")
    if isinstance(command.outcome, Problem):
        draft.emit(PhaseFailed(phase=phase.key, problem=command.outcome))
    else:
        draft.emit(PhaseCompleted(phase=phase.key, output=command.outcome, by=command.child))
    draft.phase_ended(phase.key)


def _give_up(draft: Draft, command: GiveUp) -> None:
    phase = draft.state.phases.get(command.phase)
    total_s = draft.state.plan.graph[command.phase].phase.total_timeout_s if phase is not None else None
    if phase is None or total_s is None or phase.opened_at is None or phase.status in TERMINAL:
        raise Refused(f"phase {command.phase!r} has no time that could have passed")
    if draft.now < phase.opened_at + timedelta(seconds=total_s):
        raise Refused(f"phase {phase.key} has {total_s:g} s from {phase.opened_at:%Y-%m-%d %H:%M:%S} on")
    late = Problem("expired", f"the phase was not done within {total_s:g} s, all attempts together", "permanent")
    given_up = [item.index for item in phase.items if item.status not in TERMINAL and item.index is not None]
    draft.emit(*(PhaseFailed(phase=phase.key, item=index, problem=late) for index in given_up))
    draft.emit(PhaseFailed(phase=phase.key, problem=late))
    draft.phase_ended(phase.key)


def _stop(draft: Draft, ending: RunCancelled | RunFailed, reason: str) -> None:
    still_open = [phase.key for phase in draft.state.phases.values() if phase.status not in TERMINAL]
    draft.emit(*(PhaseCancelled(phase=key, reason=reason) for key in still_open), ending)


def _give_up_work(draft: Draft, problem: Problem) -> None:
    """What is ready or under way has failed, not just been stopped: work that was given up is a dead letter."""
    for phase in list(draft.state.phases.values()):
        given_up = [item.index for item in phase.items if item.status in {"ready", "in_progress"}]
        draft.emit(*(PhaseFailed(phase=phase.key, item=index, problem=problem) for index in given_up))
        if given_up and given_up[0] is not None:
            draft.emit(PhaseFailed(phase=phase.key, problem=problem))


def _held(
    draft: Draft, command: Complete | Fail, outcome: Literal["completed", "failed"]
) -> tuple[PhaseState, Item] | None:
    """The item, if the command's attempt is the one under way there; otherwise the result is recorded as refused."""
    phase, item = _find(draft.state, command.phase, command.item)
    if _is_holder(item, command):
        return phase, item
    if Late(phase.key, item.index, command.attempt, command.instance) in draft.state.late:
        raise Refused(f"a result of attempt {command.attempt} of {_label(phase, item)} was refused before")
    draft.emit(
        ResultRefused(
            phase=phase.key,
            item=item.index,
            attempt=command.attempt,
            instance=command.instance,
            outcome=outcome,
            reason=f"attempt {item.attempt} is {item.status}",
        )
    )
    return None


def _find(state: RunState, key: str, index: int | None) -> tuple[PhaseState, Item]:
    phase = state.phases.get(key)
    item = phase.item(index) if phase is not None else None
    if phase is None or item is None:
        raise Refused(f"run {state.run} has no open phase {key if index is None else f'{key}:{index}'!r}")
    return phase, item


def _must_not_roll_back(state: RunState) -> None:
    if state.rollback is not None and state.rollback.left:
        raise Refused(f"run {state.run} is being rolled back: {', '.join(state.rollback.left)} have to be undone first")


def _must_have_ended(state: RunState) -> None:
    if state.is_open:
        raise Refused(f"run {state.run} is still in progress: what completed can be done again when it has ended")


def _must_be_open(state: RunState) -> None:
    if not state.is_open:
        raise Refused(f"run {state.run} has ended: it is {state.status}")


def _label(phase: PhaseState, item: Item) -> str:
    return f"phase {phase.key}" if item.index is None else f"phase {phase.key}, item {item.index}"
