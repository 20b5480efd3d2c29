"""What the log has of attempts: the result of each, to compare another with, and what came of what it did outside."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec

from bus.problem import Problem
from bus.rules.events import (
    Commit,
    Event,
    PhaseAttemptFailed,
    PhaseCancelled,
    PhaseCompleted,
    PhaseEffectDone,
    PhaseStarted,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
)

Verdict = Literal["same", "differs", "failed", "new"]
# How a handler itself can end an attempt; a crash says nothing about it.
_OF_THE_HANDLER = ("error", "timed_out")


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """What came of an attempt: an output, or a problem."""

    output: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    problem: Problem | None = None

    @property
    def value(self) -> object:
        return msgspec.json.decode(b"null" if self.output is msgspec.UNSET else self.output)

    def is_like(self, other: Result) -> bool:
        """Whether both say the same. Of problems, traces and causes do not count: they change with the code."""
        if self.problem is None or other.problem is None:
            return self.problem is other.problem and self.value == other.value
        ours, theirs = self.problem, other.problem
        return (ours.code, ours.title, ours.detail) == (theirs.code, theirs.title, theirs.detail)


def result(answer: bytes | Problem) -> Result:
    """What a handler's answer is."""
    return Result(problem=answer) if isinstance(answer, Problem) else Result(msgspec.Raw(answer))


def verdict(recorded: Result | None, now: Result, asks: Sequence[object] = ()) -> Verdict:
    """`same` and `differs` compare the result with the recorded one, and what was asked of others, of which `asks` are
    the differences; `failed`: there was an output, and now is a problem, `new`: no result of a handler was recorded."""
    if recorded is None:
        return "new"
    if recorded.is_like(now):
        return "differs" if asks else "same"
    return "failed" if now.problem is not None and recorded.problem is None else "differs"


class Span(msgspec.Struct):
    """From when to when an attempt was under way: the id and the position of the commit that started it, and the
    position and time of its end, 0 and None without one. `is_beginning`: the run began in that commit, too."""

    commit: str
    position: int
    is_beginning: bool = False
    end: int = 0
    ended_at: datetime | None = None


class Past(msgspec.Struct):
    """What the log says of a run: the capability of each phase, the result of each attempt that has one, what came of
    what each did outside, and when each was under way. `began_at` is when the run was begun, `position` its newest."""

    capabilities: dict[str, str | None] = {}
    compensating: dict[str, str | None] = {}
    results: dict[tuple[str, int | None, int], Result] = {}
    effects: dict[tuple[str, int | None, int], dict[str, msgspec.Raw]] = {}
    spans: dict[tuple[str, int | None, int], Span] = {}
    began_at: datetime = datetime.max.replace(tzinfo=UTC)
    position: int = 0

    def serves(self, phase: str, capabilities: Collection[str]) -> bool:
        """Whether a phase, or what undoes it, is the work of one of these."""
        return self.capabilities.get(phase) in capabilities or self.compensating.get(phase) in capabilities

    def add(self, commit: Commit) -> None:
        is_beginning = not self.position
        self.position = commit.position
        for event in commit.events:
            self._note_end(event, commit)
            match event:
                case RunStarted():
                    self.capabilities = {key: node.phase.capability for key, node in event.plan.graph.items()}
                    self.compensating = {key: node.phase.compensate for key, node in event.plan.graph.items()}
                    self.began_at = event.deadline_at - timedelta(seconds=event.plan.timeout_s)
                case PhaseStarted():
                    span = Span(commit.id, commit.position, is_beginning)
                    self.spans[event.phase, event.item, event.attempt] = span
                case PhaseCompleted(attempt=int(attempt)):
                    output = msgspec.Raw(b"null") if event.output is msgspec.UNSET else event.output
                    self.results[event.phase, event.item, attempt] = Result(output)
                case PhaseEffectDone():
                    where = (event.phase, event.item, event.attempt)
                    self.effects.setdefault(where, {})[event.effect] = event.outcome
                case PhaseAttemptFailed() if event.cause in _OF_THE_HANDLER:
                    self.results[event.phase, event.item, event.attempt] = Result(problem=event.problem)

    def _note_end(self, event: Event, commit: Commit) -> None:
        match event:
            case PhaseCompleted(attempt=int(attempt)) | PhaseAttemptFailed(attempt=attempt):
                over = [self.spans.get((event.phase, event.item, attempt))]
            case PhaseCancelled():
                over = [
                    span
                    for (phase, item, _), span in self.spans.items()
                    if phase == event.phase and event.item in (None, item)
                ]
            case RunCompleted() | RunFailed() | RunCancelled():
                over = [*self.spans.values()]
            case _:
                return
        for span in over:
            if span is not None and not span.end:
                span.end, span.ended_at = commit.position, commit.at
