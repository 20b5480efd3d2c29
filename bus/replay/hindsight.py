"""Hindsight: which commands a commit answers. Its events say what was asked, and what followed from that by the rules.

Only what was asked is given back; asked again of the same state, the same follows. Results that were refused and
words about progress moved nothing, and are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from bus.rules.beginning import OUTSIDE
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
    Pause,
    Redrive,
    Report,
    Resume,
    Reuse,
    Revive,
    Rollback,
    Save,
    Settle,
    Signal,
    Skip,
    Take,
    Vouch,
)
from bus.rules.events import (
    Commit,
    Event,
    PhaseApproved,
    PhaseAttemptFailed,
    PhaseCompleted,
    PhaseEffectDone,
    PhaseEffectIntended,
    PhaseEffectNotDone,
    PhaseEscalated,
    PhaseFailed,
    PhaseInputReplaced,
    PhaseReady,
    PhaseSaved,
    PhaseSkipped,
    PhaseStarted,
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
from bus.rules.folding import Folding
from bus.rules.run import RunState

_EXPIRY = "expiry"
_NULL = msgspec.Raw(b"null")


def asked(folding: Folding, commit: Commit) -> Iterator[Command]:
    """The commands behind a commit, in order. Folds the commit into `folding` on the way."""
    events = list(commit.events)
    if folding.state is None:
        started, events = events[0], events[1:]
        assert isinstance(started, RunStarted), f"the first event of run {commit.run} starts it"
        folding.add(msgspec.structs.replace(commit, events=[started]))
        begin = _begin(started, events)
        yield begin
        # What was taken over, or left out, came with the beginning.
        told = len(begin.adopted) + sum(_is_outside(event) for event in events)
        folding.apply(events[:told], commit.at)
        events = events[told:]
    before: Command | None = None
    for place, event in enumerate(events):
        state = folding.state
        assert state is not None, "the first event starts the run"
        later = events[place + 1] if place + 1 < len(events) else None
        command = _command(state, event, later, commit)
        if command is not None and not (isinstance(command, Signal) and command == before):
            # One signal may open several gates.
            yield command
        before = command
        folding.apply([event], commit.at)
    if folding.state is not None:
        folding.state.position = commit.position


def _begin(started: RunStarted, events: list[Event]) -> Begin:
    adopted: dict[str, msgspec.Raw] = {}
    origin = ""
    for event in events:
        if isinstance(event, PhaseCompleted) and event.attempt is None and event.by:
            adopted[event.phase] = _NULL if event.output is msgspec.UNSET else event.output
        elif isinstance(event, PhaseApproved):
            adopted[event.phase] = _NULL
        else:
            break
        origin = event.by
    outside = {event.phase for event in events if isinstance(event, PhaseSkipped) and _is_outside(event)}
    inside = [key for key in started.plan.graph if key not in outside]
    first, last = (inside[0], inside[-1]) if outside and inside else (None, None)
    ready = (event.due_at for event in events if isinstance(event, PhaseReady) and event.attempt == 1)
    return Begin(
        started.plan,
        started.input,
        first,
        last,
        adopted,
        origin,
        started.parent,
        force=started.force,
        due_at=next(ready, None),
    )


def _is_outside(event: Event) -> bool:
    return isinstance(event, PhaseSkipped) and not event.by and event.reason.startswith(OUTSIDE)


def _command(state: RunState, event: Event, later: Event | None, commit: Commit) -> Command | None:
    """What the event answers, or nothing if it follows from another."""
    match event:
        case PhaseStarted():
            capability = state.capability(event.phase) or ""
            bound_s = (event.deadline_at - commit.at).total_seconds()
            reuse = _reuse(event, later)
            where = (event.phase, event.item, event.attempt, capability, event.agent, event.instance)
            return Take(*where, bound_s, event.because, reuse)
        case PhaseCompleted(attempt=int(attempt), cached=None):
            output = _NULL if event.output is msgspec.UNSET else event.output
            holder = _holder(state, event.phase, event.item)
            return Complete(event.phase, event.item, attempt, holder, output, key=event.key)
        case PhaseCompleted(by=by) if by and state.phases[event.phase].child:
            return Report(event.phase, by, _NULL if event.output is msgspec.UNSET else event.output)
        case PhaseCompleted(by=by) if by:
            signal = state.plan.graph[event.phase].phase.signal
            assert signal is not None, "only a signal completes a phase without an attempt"
            return Signal(signal.signal, by, _NULL if event.output is msgspec.UNSET else event.output)
        case PhaseEffectIntended():
            holder = _holder(state, event.phase, event.item)
            return Intend(event.phase, event.item, event.attempt, holder, event.effect)
        case PhaseEffectDone() | PhaseEffectNotDone():
            return _settled(state, event)
        case PhaseSaved():
            holder = _holder(state, event.phase, event.item)
            return Save(event.phase, event.item, event.attempt, holder, event.state)
        case PhaseAttemptFailed():
            instance = event.instance or ""
            return Fail(event.phase, event.item, event.attempt, instance, event.problem, event.cause, event.evidence)
        case PhaseApproved():
            return Answer(event.phase, True, event.by, event.comment, expired=event.by == _EXPIRY)
        case PhaseEscalated():
            return Answer(event.phase, False, _EXPIRY, expired=True)
        case PhaseFailed(item=None):
            return _failed(state, event, commit)
        case PhaseSkipped(by=by) if by:
            return Skip(event.phase, by, event.reason, event.output)
        case RunRedriven():
            return _redrive(state, event, later)
        case RunRollingBack():
            return _rollback(state, event)
        case RunFailed(problem=problem) if problem.code == "expired":
            # Of a run that was rolled back because of that, it came before.
            is_undone = state.rollback is not None and not state.rollback.left
            return None if is_undone else Expire()
        case RunSignalled():
            return Signal(event.signal, event.by, event.data)
        case RunCheckpointed():
            return Checkpoint(event.name, event.by)
        case RunPaused():
            return Pause(event.by, event.reason)
        case RunResumed():
            return Resume(event.by)
        case RunCancelled():
            return Cancel(event.by, event.reason)
    return None


def _reuse(started: PhaseStarted, later: Event | None) -> Reuse | None:
    """What was taken from the cache follows in the same commit."""
    if not isinstance(later, PhaseCompleted) or later.cached is None:
        return None
    if (later.phase, later.item) != (started.phase, started.item):
        return None
    return Reuse(_NULL if later.output is msgspec.UNSET else later.output, later.cached)


def _holder(state: RunState, key: str, index: int | None) -> str:
    item = state.phases[key].item(index)
    return item.holder.instance if item is not None and item.holder is not None else ""


def _failed(state: RunState, event: PhaseFailed, commit: Commit) -> Command | None:
    """A gate that was answered, or a phase whose time was over. All else follows from an attempt or from the input."""
    phase = state.phases[event.phase]
    code = event.problem.code
    run_is_late = any(
        isinstance(other, RunFailed | RunRollingBack) and other.problem is not None and other.problem.code == "expired"
        for other in commit.events
    )
    total_s = state.plan.graph[event.phase].phase.total_timeout_s
    if code == "expired" and not run_is_late and total_s is not None and phase.opened_at is not None:
        is_over = (commit.at - phase.opened_at).total_seconds() >= total_s
        if is_over and (phase.status != "waiting" or phase.expires_at is None or commit.at < phase.expires_at):
            return GiveUp(event.phase)
    if phase.status == "waiting" and phase.child and code != "expired":
        return Report(event.phase, phase.child, event.problem)
    if phase.status == "waiting":
        by = event.problem.title.removeprefix("rejected by ")
        return Answer(
            event.phase, False, _EXPIRY if code == "expired" else by, event.problem.detail, expired=code == "expired"
        )
    return None


def _settled(state: RunState, event: PhaseEffectDone | PhaseEffectNotDone) -> Settle | Vouch:
    outcome = event.outcome if isinstance(event, PhaseEffectDone) else msgspec.UNSET
    if event.by:
        return Vouch(event.phase, event.item, event.effect, event.by, outcome, event.reason)
    holder = _holder(state, event.phase, event.item)
    return Settle(event.phase, event.item, event.attempt, holder, event.effect, outcome, event.reason)


def _redrive(state: RunState, event: RunRedriven, later: Event | None) -> Command | None:
    if state.rollback is not None and not state.rollback.left:
        return None
    if isinstance(later, PhaseSkipped) and later.by == event.by and later.phase in event.phases:
        # To skip what has failed takes a new pass.
        return None
    if event.letter:
        return _revive(state, event, later)
    return Redrive(event.by, event.phases, event.afresh)


def _revive(state: RunState, event: RunRedriven, later: Event | None) -> Command | None:
    key = event.phases[0]
    death = state.phases[key].death_of(event.item)
    if death is None:
        return None
    replaced = later if isinstance(later, PhaseInputReplaced) else None
    return Revive(
        by=event.by,
        letter=event.letter,
        phase=key,
        item=event.item,
        attempt=death.attempt,
        passes=death.passes,
        input=replaced.input if replaced is not None else msgspec.UNSET,
        reason=event.reason,
        transform=replaced.transform if replaced is not None else "",
        operation=event.operation,
    )


def _rollback(state: RunState, event: RunRollingBack) -> Command | None:
    """The phase, or the checkpoint, that leads to just these phases; or what a run that has failed leads to."""
    if event.problem is not None and not state.is_open:
        return Redrive(event.by)
    if event.problem is not None:
        return Expire() if event.problem.code == "expired" else None
    wanted = set(event.phases)
    for key in event.phases:
        if _begun(state, _behind(state, key)) == wanted:
            return Rollback(event.by, before=key, reason=event.reason)
    for name, done in state.checkpoints.items():
        if _begun(state, {key for key in state.phases if key not in done}) == wanted:
            return Rollback(event.by, checkpoint=name, reason=event.reason)
    begun = state.rollback
    if not state.is_open and begun is not None and (begun.phases, begun.left) == (event.phases, event.undo):
        # It goes on with the one that stopped, which was about what had begun by then.
        return Redrive(event.by)
    return Rollback(event.by, before=event.phases[0], reason=event.reason)


def _behind(state: RunState, key: str) -> set[str]:
    behind, frontier = {key}, [key]
    while frontier:
        later = [other for other in state.plan.graph[frontier.pop()].feeds if other not in behind]
        behind.update(later)
        frontier += later
    return behind


def _begun(state: RunState, keys: set[str]) -> set[str]:
    return {key for key in keys if state.phases[key].status != "pending"}
