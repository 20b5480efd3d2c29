"""Verifying a run: whether its log keeps what is promised of every run, checked from the outside.

It shares no rule with `bus.rules.decide`: it looks at what happened and at what must still happen. Three promises are
checked after every commit: an outcome never changes, a result counts once and only for the attempt under way, and
whatever is open has something armed that will end it. A fourth is checked as of now: what should have ended has.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from datetime import datetime, timedelta

import msgspec

from bus.rules.events import (
    UNTAKEN,
    Commit,
    Event,
    PhaseAttemptFailed,
    PhaseCompleted,
    PhaseExpanded,
    PhaseReady,
    PhaseStarted,
    PhaseUndoing,
    RunArchived,
    RunRedriven,
    RunRollingBack,
    type_of,
)
from bus.rules.folding import Folding
from bus.rules.run import SUCCEEDED, TERMINAL, PhaseState, RunState
from bus.rules.timers import armed

# What a supervisor needs to see that something is due, and to act; a leader that died is replaced in this time too.
GRACE = timedelta(seconds=30)


class Violation(msgspec.Struct, frozen=True):
    """A promise that was broken: where in the log, which one, and what is so instead."""

    run: str
    position: int
    promise: str
    says: str
    phase: str = ""


def violations(commits: Iterable[Commit], now: datetime, *, grace: timedelta = GRACE) -> Iterator[Violation]:
    """Every promise that a run's commits break, in order. `grace` is how late the end of something may come."""
    checked = _Checked()
    for commit in commits:
        yield from checked.commit(commit)
    yield from checked.overdue(now - grace)


class _Checked:
    """One run, as far as it was looked at."""

    def __init__(self) -> None:
        self._folding = Folding(None)
        self._attempts: dict[tuple[str, int | None], int] = {}
        self._position = 0

    def commit(self, commit: Commit) -> Iterator[Violation]:
        self._position = commit.position
        events = list(commit.events)
        if self._folding.state is None and isinstance(events[0], RunArchived):
            # Its past is in an archive, and nothing follows.
            return
        try:
            if self._folding.state is None:
                self._folding.add(msgspec.structs.replace(commit, events=events[:1]))
                events = events[1:]
            for event in events:
                yield from self._event(event, commit)
        except (AssertionError, LookupError, ValueError, TypeError, AttributeError) as error:
            yield Violation(
                commit.run, commit.position, "a commit follows from those before it", str(error) or repr(error)
            )
        state = self._folding.state
        if state is not None:
            state.position = commit.position
            yield from self._never_stuck(state)

    def overdue(self, before: datetime) -> Iterator[Violation]:
        """What should have been ended by now, and was not."""
        state = self._folding.state
        if state is None:
            return
        for timer in sorted(armed(state)):
            if timer.at < before and timer.command(state) is not None:
                what = f"{timer.phase or 'the run'} was due at {timer.at:%Y-%m-%d %H:%M:%S} ({timer.kind})"
                yield self._broken(state, "what is due ends in time", what, timer.phase)

    def _event(self, event: Event, commit: Commit) -> Iterator[Violation]:
        state = self._folding.state
        assert state is not None, "the first event starts the run"
        about = getattr(event, "phase", None)
        keys = [about] if about in state.phases else list(state.phases)
        before = {key: (state.phases[key].status, list(state.phases[key].items)) for key in keys}
        was_open = state.is_open
        yield from self._attempt(event, state)
        self._folding.apply([event], commit.at)
        final: frozenset[str] = TERMINAL
        if isinstance(event, RunRedriven):
            final = frozenset() if event.afresh else SUCCEEDED
        elif isinstance(event, PhaseUndoing):
            final = frozenset()
        elif isinstance(event, PhaseExpanded) and before[event.phase][0] == "pending":
            # A new pass over another list: nothing of what the old one led to counts.
            final = frozenset()
        elif isinstance(event, RunRollingBack):
            pass
        elif not was_open and state.is_open:
            yield self._broken(state, "an ended run goes on only when it is redriven", type_of(event))
        for key, (status, items) in before.items():
            phase = state.phases[key]
            if status in final and phase.status != status:
                yield self._broken(state, "an outcome never changes", f"{key} was {status}, is {phase.status}", key)
            for was, is_now in zip(items, phase.items, strict=False):
                # What became of an effect may be found out later.
                if was.status in final and was != msgspec.structs.replace(is_now, effects=was.effects):
                    yield self._broken(state, "an outcome never changes", f"{key}, item {was.index}, has changed", key)

    def _attempt(self, event: Event, state: RunState) -> Iterator[Violation]:
        match event:
            case PhaseReady(phase=key, item=index, attempt=attempt):
                latest = self._attempts.get((key, index), 0)
                if attempt < latest or (attempt == latest and state.phases[key].status not in {"ready", "in_progress"}):
                    said = f"attempt {attempt} of {key} is ready after attempt {latest}"
                    yield self._broken(state, "an attempt's number is used once", said, key)
                self._attempts[key, index] = attempt
            case (
                PhaseStarted(phase=key, item=index, attempt=int(attempt))
                | PhaseCompleted(phase=key, item=index, attempt=int(attempt))
                | PhaseAttemptFailed(phase=key, item=index, attempt=int(attempt))
            ):
                latest = self._attempts.get((key, index), 0)
                item = state.phases[key].item(index)
                wanted = "ready" if isinstance(event, PhaseStarted) else "in_progress"
                unclaimed = isinstance(event, PhaseAttemptFailed) and event.cause in UNTAKEN
                if item is None or attempt != latest or item.status != ("ready" if unclaimed else wanted):
                    status = item.status if item is not None else "not open"
                    said = f"{type_of(event)} for attempt {attempt} of {key}, which is {status}"
                    yield self._broken(state, "a result counts once, for the attempt under way", said, key)

    def _never_stuck(self, state: RunState) -> Iterator[Violation]:
        promise = "whatever is open has something armed that ends it"
        timers = {(timer.phase, timer.item) for timer in armed(state) if timer.kind != "dispatch"}
        if not state.is_open:
            left = [key for key, phase in state.phases.items() if phase.status not in TERMINAL]
            for key in left:
                yield self._broken(state, promise, f"{key} is {state.phases[key].status}, and the run has ended", key)
            return
        if ("", None) not in timers:
            yield self._broken(state, promise, "the run has no deadline")
        for key, phase in state.phases.items():
            for says in _stuck(state, phase, timers):
                yield self._broken(state, promise, f"{key} {says}", key)

    def _broken(self, state: RunState, promise: str, says: str, phase: str = "") -> Violation:
        return Violation(state.run, self._position, promise, says, phase)


def _stuck(state: RunState, phase: PhaseState, timers: Container[tuple[str, int | None]]) -> Iterator[str]:
    """Why nothing will move the phase on."""
    key = phase.key
    match phase.status:
        case "pending" if state.rollback is None:
            if all(state.phases[need].status in TERMINAL for need in state.plan.graph[key].needs):
                yield "is pending, and what it needs has ended"
        case "waiting":
            if (key, None) not in timers:
                yield "waits without an end"
        case "ready" | "in_progress":
            open_items = [item for item in phase.items if item.status in {"ready", "in_progress"}]
            if not open_items:
                yield f"is {phase.status}, and nothing of it can be taken"
            for item in open_items:
                # While a run is paused its own deadline ends what waits.
                is_held_back = state.paused_at is not None and item.status == "ready"
                if (key, item.index) not in timers and not is_held_back:
                    yield f"(item {item.index}) is {item.status} for ever"
