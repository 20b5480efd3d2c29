"""What the log has of attempts: the result of each, to compare another with, and what came of what it did outside."""

from __future__ import annotations

from typing import Literal

import msgspec

from bus.problem import Problem
from bus.rules.events import Commit, PhaseAttemptFailed, PhaseCompleted, PhaseEffectDone, RunStarted

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


def verdict(recorded: Result | None, now: Result) -> Verdict:
    """`same` and `differs` compare the result with the recorded one, `failed`: there was an output, and now is a
    problem, `new`: no result of a handler was recorded."""
    if recorded is None:
        return "new"
    if recorded.is_like(now):
        return "same"
    return "failed" if now.problem is not None and recorded.problem is None else "differs"


class Past(msgspec.Struct):
    """What the log says of a run: the capability of each phase, the result of each attempt that has one, and what came
    of what each did outside."""

    capabilities: dict[str, str | None] = {}
    results: dict[tuple[str, int | None, int], Result] = {}
    effects: dict[tuple[str, int | None, int], dict[str, msgspec.Raw]] = {}

    def add(self, commit: Commit) -> None:
        for event in commit.events:
            match event:
                case RunStarted():
                    self.capabilities = {key: node.phase.capability for key, node in event.plan.graph.items()}
                case PhaseCompleted(attempt=int(attempt)):
                    output = msgspec.Raw(b"null") if event.output is msgspec.UNSET else event.output
                    self.results[event.phase, event.item, attempt] = Result(output)
                case PhaseEffectDone():
                    where = (event.phase, event.item, event.attempt)
                    self.effects.setdefault(where, {})[event.effect] = event.outcome
                case PhaseAttemptFailed() if event.cause in _OF_THE_HANDLER:
                    self.results[event.phase, event.item, event.attempt] = Result(problem=event.problem)
