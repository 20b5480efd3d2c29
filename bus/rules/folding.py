"""Folding: `evolve` is the one place that says what each event of a run means.

It leaves the state it is given untouched, and folding many commits at once copies each part at most once, so a run of
thousands of events folds in milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from bus.problem import Problem
from bus.rules.events import (
    Commit,
    Event,
    PhaseApproved,
    PhaseAttemptFailed,
    PhaseCancelled,
    PhaseCompleted,
    PhaseEffectDone,
    PhaseEffectIntended,
    PhaseEffectNotDone,
    PhaseEscalated,
    PhaseExpanded,
    PhaseFailed,
    PhaseInputReplaced,
    PhaseProgressed,
    PhaseReady,
    PhaseSaved,
    PhaseSkipped,
    PhaseStarted,
    PhaseUndoing,
    PhaseWaiting,
    ResultRefused,
    RunArchived,
    RunCancelled,
    RunCheckpointed,
    RunCompleted,
    RunFailed,
    RunPaused,
    RunRedriven,
    RunResumed,
    RunRollingBack,
    RunSignalled,
    RunStarted,
    UnknownEvent,
)
from bus.rules.run import (
    SUCCEEDED,
    TERMINAL,
    Attempt,
    Death,
    Item,
    Late,
    Output,
    PhaseState,
    Rollback,
    RunState,
    RunStatus,
    Status,
    Undoing,
)


def fold(commits: Iterable[Commit], state: RunState | None = None) -> RunState | None:
    """The run after these commits, or None if there are none. Commits at or before `state.position` are ignored."""
    folding = Folding(state)
    for commit in commits:
        folding.add(commit)
    return folding.state


def evolve(state: RunState | None, commit: Commit) -> RunState:
    """The run after one more commit."""
    after = fold([commit], state)
    assert after is not None, "a commit folds to a state"
    return after


def placed(state: RunState, happened: Iterable[Event], before: int, position: int) -> RunState:
    """The run after a commit that was folded before its position was known: it stands at `position`.

    Changes the state it is given. `before` is the position of the commit before it.
    """
    for event in happened:
        if isinstance(event, PhaseReady):
            phase = state.phases[event.phase]
            item = phase.item(event.item)
            if item is not None and item.origin > before:
                _put(phase, _with(item, origin=position))
    return replace(state, position=position, origin=state.origin if before else position)


class Folding:
    """A fold under way: owns the parts it has copied, so each is copied once, whatever the number of events.

    `position` is where the commit will stand whose events are applied, as far as that is known.
    """

    def __init__(self, state: RunState | None, position: int = 0) -> None:
        self.state = None if state is None else replace(state, phases=dict(state.phases))
        self._owned: set[str] = set()
        self._position = position

    def add(self, commit: Commit) -> None:
        if self.state is None:
            self.state = _born(commit)
        if commit.position > self.state.position:
            self._position = commit.position
            self.apply(commit.events, commit.at)
            self.state.position = commit.position

    def apply(self, events: Sequence[Event], at: datetime) -> None:
        """Fold events that are not in the log yet; the position stays."""
        assert self.state is not None, "the first event came with a commit"
        for event in events:
            self._apply(self.state, event, at)
        self.state.events += len(events)

    def _apply(self, state: RunState, event: Event, at: datetime) -> None:
        # What there is most of comes first: they are tried in this order.
        match event:
            case PhaseCompleted():
                self._completed(state, event, at)
            case PhaseReady():
                self._ready(state, event, at)
            case PhaseStarted():
                phase = self._phase(state, event.phase, at)
                phase.status = "in_progress"
                item = _item(phase, event.item)
                attempt = Attempt(
                    number=event.attempt,
                    agent=event.agent,
                    instance=event.instance,
                    started_at=at,
                    deadline_at=event.deadline_at,
                    because=event.because,
                    arm=item.arm,
                )
                _put(phase, _with(item, status="in_progress", attempts=(*item.attempts, attempt)))
            case PhaseProgressed():
                phase = self._phase(state, event.phase, at)
                item = _item(phase, event.item)
                # What a handler says may fall back; what is shown does not.
                furthest = max(event.fraction, item.attempts[-1].fraction)
                _touch(phase, item, fraction=furthest, note=event.note)
            case RunCompleted():
                _end(state, "completed", at)
            case RunFailed():
                _end(state, "failed", at, event.problem)
            case RunCancelled():
                _end(state, "cancelled", at)
            case RunRedriven():
                self._reopen(state, event, at)
            case RunPaused():
                state.paused_at, state.paused_by = at, event.by
            case RunResumed():
                state.paused_at, state.paused_by = None, ""
            case RunSignalled():
                state.signals = state.signals | {event.signal: Output(event.data)}
            case RunCheckpointed():
                state.checkpoints = state.checkpoints | {event.name: event.done}
            case RunRollingBack():
                state.status, state.problem, state.ended_at = "in_progress", None, None
                state.deadline_at = event.deadline_at
                state.rollback = Rollback(
                    event.by, event.phases, event.undo, event.problem, event.cancels, event.reason
                )
                if event.cancels:
                    # What is to be stopped is not held any more: its compensations have to be taken.
                    state.paused_at, state.paused_by = None, ""
            case PhaseUndoing():
                self._undo(state, event, at)
            case RunArchived():
                state.archived = True
            case PhaseExpanded():
                phase = self._phase(state, event.phase, at)
                _hold(phase, [Item(index=index, attempt=phase.epoch) for index in range(event.items)])
            case PhaseInputReplaced():
                phase = self._phase(state, event.phase, at)
                if event.item is None and not phase.items:
                    _hold(phase, [Item(attempt=phase.epoch, died=phase.died)])
                _put(phase, _with(_item(phase, event.item), given=Output(event.input)))
            case PhaseEffectIntended():
                phase = self._phase(state, event.phase, at)
                item = _item(phase, event.item)
                _put(phase, _with(item, effects=item.effects | {event.effect: None}))
            case PhaseEffectDone():
                phase = self._phase(state, event.phase, at)
                item = _item(phase, event.item)
                _put(phase, _with(item, effects=item.effects | {event.effect: Output(event.outcome)}))
            case PhaseEffectNotDone():
                phase = self._phase(state, event.phase, at)
                item = _item(phase, event.item)
                effects = {effect: outcome for effect, outcome in item.effects.items() if effect != event.effect}
                _put(phase, _with(item, effects=effects))
            case PhaseSaved():
                phase = self._phase(state, event.phase, at)
                _put(phase, _with(_item(phase, event.item), saved=Output(event.state)))
            case PhaseAttemptFailed():
                phase = self._phase(state, event.phase, at)
                item = _item(phase, event.item)
                if item.holder is not None:
                    item = _touch(
                        phase, item, ended_at=at, problem=event.problem, cause=event.cause, evidence=event.evidence
                    )
                _put(phase, _with(item, status="pending"))
            case PhaseFailed():
                self._failed(state, event, at)
            case PhaseWaiting():
                phase = self._phase(state, event.phase, at)
                phase.status, phase.expires_at = "waiting", event.expires_at
                phase.gate, phase.asked, phase.child = state.passes, event.who, event.child
            case PhaseEscalated():
                phase = self._phase(state, event.phase, at)
                phase.expires_at, phase.is_escalated = event.expires_at, True
                phase.asked = (*phase.asked, *event.to) if phase.asked else ()
            case PhaseApproved():
                phase = self._phase(state, event.phase, at)
                phase.answered_by, phase.comment = event.by, event.comment
                _close(state, phase, "approved", at, lets_pass=True)
            case PhaseSkipped():
                phase = self._phase(state, event.phase, at)
                phase.reason, phase.answered_by = event.reason, event.by
                if event.output is not msgspec.UNSET:
                    phase.output = Output(event.output)
                _stop_items(phase, at)
                if phase.undoing is not None:
                    _undone(state, phase, at)
                else:
                    _close(state, phase, "skipped", at, lets_pass=event.lets_pass)
            case PhaseCancelled() if event.item is not None:
                phase = self._phase(state, event.phase, at)
                _put(phase, _cancelled(_item(phase, event.item), at))
            case PhaseCancelled():
                phase = self._phase(state, event.phase, at)
                phase.reason = event.reason
                _stop_items(phase, at)
                _close(state, phase, "cancelled", at)
            case UnknownEvent():
                # What a newer version may have meant by it is not for this one to say.
                state.unknown_events += 1
            case ResultRefused():
                state.late = (*state.late, Late(event.phase, event.item, event.attempt, event.instance))
            case _:
                # A start was read by `_born`.
                pass

    def _phase(self, state: RunState, key: str, at: datetime) -> PhaseState:
        """The phase, to be changed: a copy that belongs to this fold."""
        phase = state.phases[key]
        if key not in self._owned:
            phase = state.phases[key] = replace(phase, items=list(phase.items))
            self._owned.add(key)
        if phase.opened_at is None:
            phase.opened_at = at
        return phase

    def _ready(self, state: RunState, event: PhaseReady, at: datetime) -> None:
        phase = self._phase(state, event.phase, at)
        if event.item is None and not phase.items:
            _hold(phase, [Item(died=phase.died)])
        item = _item(phase, event.item)
        origin = item.origin or self._position
        _put(
            phase,
            _with(
                item, status="ready", attempt=event.attempt, ready_at=event.due_at or at, origin=origin, arm=event.arm
            ),
        )
        if event.item is None or phase.status == "pending":
            phase.status = "ready"

    def _undo(self, state: RunState, event: PhaseUndoing, at: datetime) -> None:
        """From here on the phase's work is that of its compensation."""
        before = self._phase(state, event.phase, at)
        epoch = max((item.attempt for item in before.items), default=before.epoch)
        effects = None if event.effects is msgspec.UNSET else Output(event.effects)
        undoing = Undoing(Output(event.input), Output(event.output), effects)
        # A compensation that did not come to its end is begun anew: what it has done, it has done.
        old = before.items[0] if before.undoing is not None else Item()
        work = Item(attempt=epoch, effects=old.effects, saved=old.saved, died=old.death or old.died)
        buried = before.buried
        if before.undoing is None:
            buried = tuple((item.index, item.death) for item in before.items if item.death is not None)
        phase = PhaseState(key=event.phase, epoch=epoch, begun=before.begun, undoing=undoing, opened_at=at)
        phase.buried = buried
        _hold(phase, [work])
        state.phases[event.phase] = phase
        state.open_phases += 1

    def _completed(self, state: RunState, event: PhaseCompleted, at: datetime) -> None:
        phase = self._phase(state, event.phase, at)
        if event.attempt is not None:
            output = Output(b"null" if event.output is msgspec.UNSET else event.output)
            item = _item(phase, event.item)
            *earlier, last = item.attempts
            attempts = (*earlier, replace(last, ended_at=at, cached=event.cached))
            _put(phase, _with(item, status="completed", output=output, ended_at=at, attempts=attempts))
        if event.item is not None:
            return
        if phase.undoing is not None:
            _undone(state, phase, at)
            return
        signal = state.plan.graph[event.phase].phase.signal
        if signal is not None:
            state.signals = {name: data for name, data in state.signals.items() if name != signal.signal}
        if event.attempt is None and event.output is not msgspec.UNSET:
            phase.answered_by, phase.output = event.by, Output(event.output)
        else:
            phase.output = phase.results
        _close(state, phase, "completed", at, lets_pass=True)

    def _failed(self, state: RunState, event: PhaseFailed, at: datetime) -> None:
        phase = self._phase(state, event.phase, at)
        item = phase.item(event.item)
        if item is not None and item.status not in TERMINAL:
            if item.holder is not None:
                item = _touch(phase, item, ended_at=at, problem=event.problem, cause="cancelled")
            death = Death(item.attempt, state.passes)
            _put(phase, _with(item, status="failed", problem=event.problem, ended_at=at, death=death))
        if event.item is None:
            phase.problem = event.problem
            if not phase.items:
                phase.death = Death(phase.epoch, state.passes)
            is_optional = state.plan.graph[event.phase].phase.optional and phase.undoing is None
            if is_optional and phase.items and phase.items[0].index is not None:
                # What did succeed is there for those that go on.
                phase.output = phase.results
            _close(state, phase, "failed", at, lets_pass=is_optional)

    def _reopen(self, state: RunState, event: RunRedriven, at: datetime) -> None:
        """A new pass: what failed is pending again, with its attempts kept; what completed stays."""
        state.status, state.problem, state.ended_at = "in_progress", None, None
        state.deadline_at = event.deadline_at
        state.passes += 1
        state.rollback = None
        for key in event.phases:
            before = state.phases[key]
            only = event.item if key == event.phases[0] else None
            if before.status not in TERMINAL:
                # Others of its items are under way: just this one goes with them.
                phase = self._phase(state, key, at)
                _put(phase, _anew(_item(phase, only), afresh=False))
                continue
            again = [
                item
                for item in before.items
                if event.afresh
                or (item.status not in SUCCEEDED and (only is None or item.status != "failed" or item.index == only))
            ]
            epoch = max((item.attempt for item in before.items), default=before.epoch)
            begun = state.passes if event.afresh or before.undoing is not None else before.begun
            if before.undoing is not None or (event.afresh and state.plan.graph[key].each is not None):
                # What it goes over may be another list now; the numbers of its attempts go on.
                died = before.death_of(None) or before.died
                state.phases[key] = PhaseState(key=key, epoch=epoch, forced=event.afresh, begun=begun, died=died)
            else:
                anew = {item.index: _anew(item, afresh=event.afresh) for item in again}
                items = [anew.get(item.index, item) for item in before.items]
                died = before.death or before.died
                phase = PhaseState(key=key, epoch=epoch, forced=event.afresh, begun=begun, died=died)
                _hold(phase, items)
                state.phases[key] = phase
            self._owned.add(key)
            state.open_phases += 1


def _born(commit: Commit) -> RunState:
    first = commit.events[0] if commit.events else None
    assert isinstance(first, RunStarted), f"the first event of run {commit.run} starts it"
    phases = {key: PhaseState(key=key) for key in first.plan.graph}
    return RunState(
        run=commit.run,
        plan=first.plan,
        input=Output(first.input),
        correlation=commit.correlation or commit.run,
        started_at=commit.at,
        deadline_at=first.deadline_at,
        phases=phases,
        open_phases=len(phases),
        parent=first.parent,
        origin=commit.position,
        force=first.force,
        key=first.key,
        sticky=first.sticky,
        priority=first.priority,
        sender=first.sender,
    )


def _with(item: Item, **changes: Any) -> Item:
    return replace(item, **changes)


def _anew(item: Item, *, afresh: bool) -> Item:
    """For a new pass. What was done outside has been done, and an input that was replaced stays so, unless all of it is
    to be done again."""
    left: dict[str, Any] = {"effects": {}, "saved": None, "given": None} if afresh else {}
    return _with(
        item,
        status="pending",
        problem=None,
        output=None,
        ended_at=None,
        earlier=len(item.attempts),
        origin=0,
        death=None,
        died=item.death or item.died,
        arm=None,
        **left,
    )


def _undone(state: RunState, phase: PhaseState, at: datetime) -> None:
    if state.rollback is not None:
        left = tuple(key for key in state.rollback.left if key != phase.key)
        state.rollback = replace(state.rollback, left=left)
    _close(state, phase, "rolled_back", at)


def _stop_items(phase: PhaseState, at: datetime) -> None:
    _hold(phase, [item if item.status in TERMINAL else _cancelled(item, at) for item in phase.items])


def _cancelled(item: Item, at: datetime) -> Item:
    attempts = item.attempts
    if item.holder is not None:
        attempts = (*attempts[:-1], replace(item.holder, ended_at=at, cause="cancelled"))
    return _with(item, status="cancelled", ended_at=at, attempts=attempts)


def _item(phase: PhaseState, index: int | None) -> Item:
    item = phase.item(index)
    assert item is not None, f"phase {phase.key} has had its items opened"
    return item


def _put(phase: PhaseState, item: Item) -> None:
    """An item as it is from now on. What is counted of all of them is kept, not counted again."""
    place = item.index or 0
    before, phase.items[place] = phase.items[place], item
    phase.open_items += (item.status not in TERMINAL) - (before.status not in TERMINAL)
    phase.pending += (item.status == "pending") - (before.status == "pending")
    if item.status == "pending":
        phase.upcoming = min(phase.upcoming, place)
    elif place == phase.upcoming:
        phase.upcoming += 1


def _hold(phase: PhaseState, items: list[Item]) -> None:
    """These are its items."""
    phase.items = items
    phase.open_items = sum(item.status not in TERMINAL for item in items)
    phase.pending = sum(item.status == "pending" for item in items)
    phase.upcoming = 0


def _touch(phase: PhaseState, item: Item, **changes: Any) -> Item:
    """Change the item's latest attempt."""
    *earlier, last = item.attempts
    item = _with(item, attempts=(*earlier, replace(last, **changes)))
    _put(phase, item)
    return item


def _close(state: RunState, phase: PhaseState, status: Status, at: datetime, *, lets_pass: bool = False) -> None:
    phase.status, phase.ended_at, phase.lets_pass = status, at, lets_pass
    state.open_phases -= 1


def _end(state: RunState, status: RunStatus, at: datetime, problem: Problem | None = None) -> None:
    state.status, state.ended_at, state.problem = status, at, problem
    if state.rollback is not None and not state.rollback.left:
        # All is undone. What could not be is kept, to go on with.
        state.rollback = None
    state.paused_at, state.paused_by = None, ""
