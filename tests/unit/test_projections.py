"""The runs projection: what is true of every run, folded from commits. And the driver that makes such commits."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec
import pytest

from bus.client import TASK
from bus.commands import Answer, Begin, Cancel, Command, Complete, Fail, Progress, Redrive, Take
from bus.decide import decide
from bus.errors import NotFound
from bus.events import Commit, Event, PhaseCompleted, PhaseReady, RunRedriven
from bus.inputs import due
from bus.plan import Approval, Phase, Plan
from bus.problem import ErrorClass, Problem
from bus.references import ref
from bus.run import RunState, evolve
from projections.runs import RUNS, TASK_PLAN, AllRuns, Ambiguous, find, is_task, row, rows

START = datetime(2026, 1, 1, tzinfo=UTC)


class Driver:
    """A run moved on by commands at times of the test's choosing (seconds after `START`), with the commits it makes."""

    def __init__(self, plan: Plan, run: str = "r", *, at_s: float = 0.0, value: object = None) -> None:
        self.run = run
        self.commits: list[Commit] = []
        self.now_s = at_s
        self._state: RunState | None = None
        self.do(Begin(plan, msgspec.Raw(msgspec.json.encode(value if value is not None else {}))))

    @property
    def state(self) -> RunState:
        assert self._state is not None
        return self._state

    @property
    def now(self) -> datetime:
        return START + timedelta(seconds=self.now_s)

    def do(self, command: Command, *, at_s: float | None = None) -> Driver:
        self.now_s = self.now_s if at_s is None else at_s
        events = decide(self._state, command, run=self.run, now=self.now)
        commit = Commit(self.run, f"c{len(self.commits)}", self.now, len(self.commits) + 1, events)
        self.commits.append(commit)
        self._state = evolve(self._state, commit)
        return self

    def take(self, phase: str, item: int | None = None, *, at_s: float | None = None, timeout_s: float = 3600) -> Driver:
        return self.do(Take(phase, item, self._attempt(phase, item), "agent", "agent-1", timeout_s), at_s=at_s)

    def complete(
        self, phase: str, item: int | None = None, *, at_s: float | None = None, output: object = None
    ) -> Driver:
        raw = msgspec.Raw(msgspec.json.encode(output))
        return self.do(Complete(phase, item, self._attempt(phase, item), "agent-1", raw), at_s=at_s)

    def say(self, phase: str, fraction: float, item: int | None = None, *, at_s: float | None = None) -> Driver:
        return self.do(Progress(phase, item, self._attempt(phase, item), "agent-1", fraction, ""), at_s=at_s)

    def fail(
        self,
        phase: str,
        item: int | None = None,
        *,
        at_s: float | None = None,
        error_class: ErrorClass = "permanent",
    ) -> Driver:
        problem = Problem("handler_error", "it broke", error_class)
        return self.do(Fail(phase, item, self._attempt(phase, item), "agent-1", problem), at_s=at_s)

    def approve(self, phase: str, *, at_s: float | None = None) -> Driver:
        return self.do(Answer(phase, True, "ann"), at_s=at_s)

    def _attempt(self, phase: str, item: int | None) -> int:
        found = self.state.phases[phase].item(item)
        assert found is not None
        return found.attempt


def simulate(
    plan: Plan,
    seconds: Callable[[str, int | None], float],
    *,
    run: str = "r",
    at_s: float = 0.0,
    value: object = None,
    workers: int = 1_000,
) -> list[tuple[float, RunState]]:
    """A run carried out by that many workers: the state after each completion, with its time after `START`.

    Every phase outputs a list of its own length, the run's `value` is what `each` phases go over.
    """
    driver = Driver(plan, run, at_s=at_s, value=value)
    story = [(at_s, driver.state)]
    ends: list[tuple[float, str, int | None]] = []
    while True:
        for key, index in due(driver.state, driver.now)[: workers - len(ends)]:
            driver.take(key, index)
            heapq.heappush(ends, (driver.now_s + seconds(key, index), key, index))
        if not ends:
            return story
        driver.now_s, key, index = heapq.heappop(ends)
        driver.complete(key, index)
        story.append((driver.now_s, driver.state))


CHAIN = Plan("chain", version="2", phases=[Phase("a", "work"), Phase("b", "work", after=["a"])])
GATED = Plan("gated", phases=[Phase("a", "work"), Phase("ok", approval=Approval(prompt="Fine?"), after=["a"])])
FANNED = Plan("fanned", phases=[Phase("each", "work", each=ref("input.list"), width=2)])
