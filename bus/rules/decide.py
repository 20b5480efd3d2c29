"""`decide`: the rules of a run. What a command may change, and everything that follows from it.

Pure: time comes in, events come out, nothing else happens. A command that the present state does not allow raises
Refused; a zombie's result is not refused silently but becomes an event.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal

from bus.errors import NoRun, Refused
from bus.problem import Problem
from bus.rules import retry
from bus.rules.beginning import begin
from bus.rules.commands import (
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
    Reroute,
    Resume,
    Revive,
    Rollback,
    Save,
    Settle,
    Signal,
    Skip,
    Take,
    Together,
    Vouch,
)
from bus.rules.draft import Draft
from bus.rules.effects import intend, save, settle, vouch
from bus.rules.events import (
    UNTAKEN,
    Event,
    PhaseAttemptFailed,
    PhaseCancelled,
    PhaseCompleted,
    PhaseFailed,
    PhaseProgressed,
    PhaseReady,
    PhaseStarted,
    ResultRefused,
    RunCancelled,
    RunPaused,
    RunResumed,
)
from bus.rules.gates import answer, report, signal
from bus.rules.holding import find, is_holder, label, under_way
from bus.rules.inputs import work
from bus.rules.passes import cancel_and_undo, checkpoint, must_not_roll_back, redrive, roll_back, skip
from bus.rules.rerouting import reroute
from bus.rules.revival import revive
from bus.rules.route import NO_ROUTES, Routes, need
from bus.rules.run import TERMINAL, Item, Late, PhaseState, RunState
from bus.rules.undoing import to_undo

# An event loop's clock and the calendar's differ by less: a timer may be that early.
_NO_TIME = timedelta(seconds=0.05)


def decide(
    state: RunState | None, command: Command, *, run: str, now: datetime, routes: Routes = NO_ROUTES
) -> Sequence[Event]:
    """What happens because of the command: events in order, never none. Raises Refused if nothing may.

    `routes` are those that stand: what becomes ready goes the way they say.
    """
    return carry_out(state, command, run=run, now=now, routes=routes)[1]


def carry_out(
    state: RunState | None, command: Command, *, run: str, now: datetime, routes: Routes = NO_ROUTES
) -> tuple[RunState, Sequence[Event]]:
    """`decide`, and the run with what happens: as if it was committed right behind what there is. Raises Refused."""
    if isinstance(command, Together):
        # All of them or none: the state that is given is never changed.
        happened: list[Event] = []
        for each in command.commands:
            state, caused = carry_out(state, each, run=run, now=now, routes=routes)
            happened += caused
        assert state is not None, "there is at least one command"
        return state, happened
    draft = _draft(state, command, run, now, routes)
    return draft.state, draft.events


def _draft(state: RunState | None, command: Command, run: str, now: datetime, routes: Routes) -> Draft:
    if isinstance(command, Begin):
        if state is not None:
            raise Refused(f"run {run} has already started")
        return begin(command, run, now, routes)
    if state is None:
        raise NoRun(f"there is no run {run!r} in this log")
    if state.archived:
        raise Refused(f"run {run} is archived: it can be read, and does not go on")
    draft = Draft(state, now, routes)
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
            intend(draft, command)
        case Settle():
            settle(draft, command)
        case Vouch():
            vouch(draft, command)
        case Save():
            save(draft, command)
        case Answer():
            answer(draft, command)
        case Redrive():
            redrive(draft, command)
        case Revive():
            revive(draft, command)
        case Pause():
            draft.must_be_open()
            if state.paused_at is not None:
                raise Refused(f"run {run} is paused already, by {state.paused_by}")
            draft.emit(RunPaused(by=command.by, reason=command.reason))
        case Resume():
            _resume(draft, command)
        case Skip():
            skip(draft, command)
        case Signal():
            signal(draft, command)
        case Checkpoint():
            checkpoint(draft, command)
        case Rollback():
            roll_back(draft, command)
        case Report():
            report(draft, command)
        case GiveUp():
            _give_up(draft, command)
        case Reroute():
            reroute(draft, command)
        case Cancel():
            draft.must_be_open()
            if command.rollback:
                must_not_roll_back(state)
            _stop(draft, command.reason or f"by {command.by}")
            undo = to_undo(draft.state, draft.state.phases) if command.rollback else ()
            if undo:
                cancel_and_undo(draft, command, undo)
            else:
                draft.emit(RunCancelled(by=command.by, reason=command.reason))
        case Expire():
            draft.must_be_open()
            if now < state.deadline_at:
                raise Refused(f"run {run} has until {state.deadline_at:%Y-%m-%d %H:%M:%S}")
            _expire(draft)
    return draft


def _take(draft: Draft, command: Take) -> None:
    phase, item = find(draft.state, command.phase, command.item)
    capability = draft.state.capability(phase.key)
    needed = need(capability, item.arm) if capability is not None else None
    if needed != command.capability:
        raise Refused(f"{label(phase, item)} needs {needed!r}, not {command.capability!r}")
    if draft.state.paused_at is not None:
        raise Refused(f"run {draft.state.run} is paused by {draft.state.paused_by}")
    if item.status != "ready" or item.attempt != command.attempt:
        raise Refused(
            f"attempt {command.attempt} of {label(phase, item)} can't be taken: attempt {item.attempt} is {item.status}"
        )
    if draft.now >= draft.state.deadline_at:
        raise Refused(f"run {draft.state.run} had until {draft.state.deadline_at:%Y-%m-%d %H:%M:%S}")
    _start(draft, phase.key, item, command.agent, command.instance, command.timeout_s, because=command.because)
    if command.reuse is not None:
        output, source = command.reuse.output, command.reuse.source
        draft.emit(PhaseCompleted(phase=phase.key, item=item.index, attempt=item.attempt, output=output, cached=source))
        draft.item_ended(phase.key, item)


def _start(
    draft: Draft, key: str, item: Item, agent: str, instance: str, timeout_s: float, *, because: str = ""
) -> None:
    bound_s = draft.state.plan.graph[key].phase.timeout_s or timeout_s
    draft.emit(
        PhaseStarted(
            phase=key,
            item=item.index,
            attempt=item.attempt,
            agent=agent,
            instance=instance,
            # No attempt has longer than its run: what it asks of others, and its handler, know how much is left.
            deadline_at=min(draft.now + timedelta(seconds=bound_s), draft.state.deadline_at),
            because=because,
        )
    )


def _complete(draft: Draft, command: Complete) -> None:
    held = _held(draft, command, "completed")
    if held is None:
        return
    phase, item = held
    draft.emit(
        PhaseCompleted(
            phase=phase.key, item=item.index, attempt=command.attempt, output=command.output, key=command.key
        )
    )
    draft.item_ended(phase.key, item)
    if command.offer is not None:
        _go_on(draft, command.offer, command.instance)


def _go_on(draft: Draft, offer: Offer, instance: str) -> None:
    """Start, in the same commit, one item that it made ready: an append and a way through the server less."""
    if draft.state.paused_at is not None or draft.now >= draft.state.deadline_at:
        return
    for event in draft.events:
        if isinstance(event, PhaseReady) and (
            work(draft.state, event.phase, event.item).capability == offer.capability
        ):
            item = draft.state.phases[event.phase].item(event.item)
            assert item is not None, "what is ready has been opened"
            _start(draft, event.phase, item, offer.agent, instance, offer.timeout_s)
            return


def _expire(draft: Draft) -> None:
    until = f"{draft.state.deadline_at:%Y-%m-%d %H:%M:%S}"
    late = Problem("expired", f"the run passed its deadline {until}", "permanent")
    _give_up_work(draft, late)
    _stop(draft, "the run passed its deadline")
    draft.end_failed(late)


def _fail(draft: Draft, command: Fail) -> None:
    phase, item = find(draft.state, command.phase, command.item)
    if command.cause in UNTAKEN:
        if item.status != "ready" or item.attempt != command.attempt:
            raise Refused(f"{label(phase, item)} does not wait to be taken")
    elif command.evidence and not is_holder(item, command):
        # Who recovers brings no result: another recoverer was faster, or the attempt has ended by itself.
        raise Refused(f"attempt {command.attempt} of {label(phase, item)} is not held by {command.instance!r}")
    elif _held(draft, command, "failed") is None:
        return
    if command.cause == "timed_out" and draft.now >= draft.state.deadline_at - _NO_TIME:
        # The attempt had as long as its run: whoever sees it first, an instance or a supervisor, says the same.
        _expire(draft)
        return
    agent = item.holder.agent if item.holder is not None else ""
    problem = command.problem.at(agent, draft.state.run, phase.key, item.index, command.attempt)
    draft.emit(
        PhaseAttemptFailed(
            phase=phase.key,
            item=item.index,
            attempt=command.attempt,
            instance=command.instance or None,
            problem=problem,
            cause=command.cause,
            evidence=command.evidence,
        )
    )
    seed = f"{draft.state.run}/{phase.key}/{item.index}"
    earlier = [attempt.problem for attempt in item.attempts[item.earlier :] if attempt.problem is not None]
    policy = draft.state.plan.graph[phase.key].phase.policy
    wait_s = None if command.cause in UNTAKEN else retry.delay_s(policy, problem, earlier, seed=seed)
    # Nobody could take it in time: then this is the end, and why it failed is told now instead of a bare lateness.
    if wait_s is None or draft.now + timedelta(seconds=wait_s) >= draft.state.deadline_at:
        draft.emit(PhaseFailed(phase=phase.key, item=item.index, problem=problem))
        draft.item_ended(phase.key, item)
    else:
        due_at = draft.now + timedelta(seconds=wait_s) if wait_s else None
        draft.emit(PhaseReady(phase=phase.key, item=item.index, attempt=item.attempt + 1, due_at=due_at))


def _progress(draft: Draft, command: Progress) -> None:
    phase, item = under_way(draft, command)
    draft.emit(
        PhaseProgressed(
            phase=phase.key,
            item=item.index,
            attempt=command.attempt,
            fraction=min(max(0.0, command.fraction), 1.0),
            note=command.note,
        )
    )


def _resume(draft: Draft, command: Resume) -> None:
    state = draft.state
    draft.must_be_open()
    if state.paused_at is None:
        raise Refused(f"run {state.run} is not paused")
    waiting = [(phase.key, item) for phase in state.phases.values() for item in phase.items if item.status == "ready"]
    draft.emit(RunResumed(by=command.by))
    for key, item in waiting:
        due_at = item.ready_at if item.ready_at is not None and item.ready_at > draft.now else None
        draft.emit(PhaseReady(phase=key, item=item.index, attempt=item.attempt, due_at=due_at))


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


def _stop(draft: Draft, reason: str) -> None:
    still_open = [phase.key for phase in draft.state.phases.values() if phase.status not in TERMINAL]
    draft.emit(*(PhaseCancelled(phase=key, reason=reason) for key in still_open))


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
    phase, item = find(draft.state, command.phase, command.item)
    if is_holder(item, command):
        return phase, item
    if Late(phase.key, item.index, command.attempt, command.instance) in draft.state.late:
        raise Refused(f"a result of attempt {command.attempt} of {label(phase, item)} was refused before")
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
