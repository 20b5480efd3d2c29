"""A run without a server: commands are decided, committed and folded in memory, on a clock that moves when told to."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

import msgspec

from bus.errors import Refused
from bus.format.envelope import decode, encode, envelope
from bus.problem import Problem
from bus.rules import events
from bus.rules.commands import Answer, Begin, Command, Complete, Fail, Redrive, Take
from bus.rules.decide import decide
from bus.rules.events import Cause, Commit, Event, Parent
from bus.rules.folding import evolve
from bus.rules.inputs import order
from bus.rules.plan import Phase, Plan
from bus.rules.run import Item, RunState
from bus.rules.timers import armed

BEGAN_AT = datetime(2026, 1, 1, tzinfo=UTC)
RUN = "run-1"
TRANSIENT = Problem("handler_error", "the line is down", "transient")
PERMANENT = Problem("rejected", "no such sku", "permanent")
LOST = Problem("lost", "the process is gone", "unknown")
HANDED_BACK = Problem("handed_back", "the process was stopped", "transient")


class Driver:
    """One run of a plan made of `phases`, begun at once; keeps every commit, and the state after the last one."""

    def __init__(
        self,
        *phases: Phase,
        input: object = None,
        timeout_s: float = 3600.0,
        first: str | None = None,
        last: str | None = None,
        parent: str = "",
        on_failure: Literal["keep", "rollback"] = "keep",
    ) -> None:
        self.now = BEGAN_AT
        self.commits: list[Commit] = []
        self._state: RunState | None = None
        plan = Plan("plan", phases=list(phases), timeout_s=timeout_s, on_failure=on_failure)
        above = Parent(*parent.split("/")) if parent else None
        self.do(Begin(plan, msgspec.Raw(msgspec.json.encode(input)), first, last, parent=above))

    @property
    def state(self) -> RunState:
        assert self._state is not None, "a run has a state once it has begun"
        return self._state

    @property
    def statuses(self) -> dict[str, str]:
        """The status of every phase, by key."""
        return {key: phase.status for key, phase in self.state.phases.items()}

    def item(self, phase: str, index: int | None = None) -> Item:
        found = self.state.phases[phase].item(index)
        assert found is not None, f"{phase}:{index} has been opened"
        return found

    def items(self, phase: str) -> list[str]:
        """The status of every item of a phase, in order."""
        return [item.status for item in self.state.phases[phase].items]

    def output(self, phase: str) -> object:
        found = self.state.phases[phase].output
        return None if found is None else found.value

    def wait(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def do(self, command: Command) -> Sequence[Event]:
        """Decide and commit. Raises Refused, with nothing committed."""
        happened = decide(self._state, command, run=RUN, now=self.now)
        position = len(self.commits) + 1
        commit = Commit(RUN, f"commit-{position}", self.now, position, happened)
        self._state = evolve(self._state, commit)
        self.commits.append(commit)
        return happened

    def refusal(self, command: Command) -> str:
        """Why the command is refused; it must be, and must leave the run as it is."""
        before = self.state
        try:
            happened = self.do(command)
        except Refused as refused:
            assert self.state is before
            return refused.reason
        raise AssertionError(f"{command} was not refused, but led to {happened}")

    def given(self, phase: str, item: int | None = None) -> object:
        """What the handler of the current attempt gets."""
        return order(self.state, phase, item).input

    def fire_due(self) -> list[str]:
        """Do what the timers say that are due, one after the other; returns their kinds."""
        fired = []
        while True:
            due = [timer for timer in sorted(armed(self.state)) if timer.at <= self.now]
            command = next((timer.command(self.state) for timer in due if timer.kind != "dispatch"), None)
            if command is None:
                return fired
            fired.append(next(timer.kind for timer in due if timer.kind != "dispatch"))
            self.do(command)

    def taking(self, phase: str, item: int | None = None) -> Take:
        """The command that takes the current attempt."""
        capability = self.state.capability(phase) or ""
        return Take(phase, item, self.item(phase, item).attempt, capability, "agent", "one", 60.0)

    def answering(self, phase: str) -> Answer:
        return Answer(phase, True, "ann")

    def take(
        self, phase: str, item: int | None = None, *, instance: str = "one", timeout_s: float = 60.0
    ) -> Sequence[Event]:
        """An instance takes the current attempt."""
        capability = self.state.capability(phase) or ""
        return self.do(Take(phase, item, self.item(phase, item).attempt, capability, "agent", instance, timeout_s))

    def complete(
        self, phase: str, output: object = None, item: int | None = None, *, instance: str = "one"
    ) -> Sequence[Event]:
        """The current attempt's holder hands in a result; the attempt is taken first if nobody has."""
        if self.item(phase, item).status == "ready":
            self.take(phase, item, instance=instance)
        raw = msgspec.Raw(msgspec.json.encode(output))
        return self.do(Complete(phase, item, self.item(phase, item).attempt, instance, raw))

    def fail(
        self,
        phase: str,
        problem: Problem = PERMANENT,
        item: int | None = None,
        *,
        instance: str = "one",
        cause: Cause = "error",
    ) -> Sequence[Event]:
        """The current attempt ends with a problem; it is taken first if nobody has."""
        if self.item(phase, item).status == "ready" and cause != "unclaimed":
            self.take(phase, item, instance=instance)
        return self.do(Fail(phase, item, self.item(phase, item).attempt, instance, problem, cause))

    def answer(self, phase: str, *, approve: bool = True, expired: bool = False) -> Sequence[Event]:
        return self.do(Answer(phase, approve, "ann", "I looked", expired))

    def redrive(self, *phases: str) -> Sequence[Event]:
        return self.do(Redrive("ann", phases))


def through_the_log(commit: Commit) -> Commit:
    """The commit as another process reads it: encoded, and decoded again."""
    message = envelope(
        events.COMMIT, events.body(commit.events), id=commit.id, source="test", time=commit.at, runid=commit.run
    )
    return events.commit(decode(encode(message)), commit.position)


def due(state: RunState, now: datetime) -> list[tuple[str, int | None]]:
    """Every item that can be taken now."""
    return [
        (phase.key, item.index)
        for phase in state.phases.values()
        if phase.status in {"ready", "in_progress"}
        for item in phase.items
        if item.status == "ready" and item.ready_at is not None and item.ready_at <= now
    ]
