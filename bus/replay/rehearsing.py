"""Rehearsing: one agent's code of today on the inputs of past runs, and what would be different in them.

Everybody else is played back from the log: the phases of others, and what handlers ask of them. What the agent answers
otherwise now is carried on: where it feeds work of the same agent, that is done with the new input; where it feeds work
of others, that is listed, and not done. What it asks otherwise is listed, too. Nothing is written to the log that the
runs are from, and what handlers do to the bus stays in a fork.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from datetime import timedelta

import msgspec
import structlog

from bus.client import Client
from bus.clock import utc_now
from bus.errors import SettingsError
from bus.handlers.agent import Agent, Capability
from bus.handlers.context import Context, Pulse
from bus.handlers.handling import Halted, perform
from bus.handlers.lifespan import Life
from bus.history.diff import Difference, first_difference
from bus.problem import Problem
from bus.replay.asked import Departure, Interview, Transcript
from bus.replay.closed import closed
from bus.replay.counterfactual import Counterfactual
from bus.replay.hearing import hear
from bus.replay.recorded import Past, Result, result, verdict
from bus.replay.rehearsed import Rehearsal, Rehearsed
from bus.replay.standin import StandIn
from bus.rules.events import (
    Commit,
    PhaseExpanded,
    PhaseFailed,
    PhaseReady,
    PhaseSkipped,
    PhaseStarted,
    PhaseWaiting,
    RunRedriven,
    RunRollingBack,
)
from bus.rules.folding import Folding
from bus.rules.inputs import Order, input_of
from bus.rules.references import Unresolved
from bus.rules.run import RunState

AT_ONCE = 8


async def rehearse(
    source: Client,
    fork: Client,
    agent: Agent,
    runs: Iterable[str],
    *,
    capabilities: Collection[str] = (),
    at_once: int = AT_ONCE,
) -> AsyncGenerator[Rehearsal, None]:
    """Rehearse an agent on runs, so many at once, and say of each in the order given what is different.

    Of its `capabilities`, or all. `fork` is open (`bus.fork.forked`). Runs that had nothing for it to do are passed
    over. Raises NotFound for one that is not there, WarmUpFailed if the agent's lifespan does not begin.
    """
    if unknown := [each for each in capabilities if each not in agent.capabilities]:
        raise SettingsError(f"agent {agent.name!r} has no capability {unknown[0]!r}")
    wanted = {name: each for name, each in agent.capabilities.items() if not capabilities or name in capabilities}
    life = Life(agent.name, agent.life)
    await life.begin(asyncio.Event())
    stage = _Stage(agent.name, wanted, fork, life.state)
    waiting: deque[asyncio.Task[Rehearsal]] = deque()
    try:
        for run in runs:
            waiting.append(asyncio.create_task(_rehearsed(source, stage, run)))
            if len(waiting) >= at_once and (done := await waiting.popleft()).work:
                yield done
        while waiting:
            if (done := await waiting.popleft()).work:
                yield done
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await life.end()


async def _rehearsed(source: Client, stage: _Stage, run: str) -> Rehearsal:
    commits = [commit async for commit in source.ledger.commits(run)]
    past = Past()
    for commit in commits:
        past.add(commit)
    heard = await hear(source, run, past, stage.capabilities)
    return await _Run(stage, source, commits, past, heard).play()


class _Stage(msgspec.Struct, frozen=True):
    """What all work of an agent is done with. `state` is its lifespan's."""

    agent: str
    capabilities: Mapping[str, Capability]
    fork: Client
    state: object


class _Run:
    """One run played from its commits, with one agent's part taken by the code of now."""

    def __init__(
        self,
        stage: _Stage,
        source: Client,
        commits: Sequence[Commit],
        past: Past,
        heard: Mapping[str, Transcript],
    ) -> None:
        self._stage = stage
        self._source = source
        self._commits = commits
        self._past = past
        self._heard = heard
        self._other = Counterfactual()
        self._work: list[Rehearsed] = []

    async def play(self) -> Rehearsal:
        folding = Folding(None)
        for commit in self._commits:
            for event in commit.events:
                if folding.state is None:
                    folding.add(msgspec.structs.replace(commit, events=[event]))
                    continue
                folding.apply([event], commit.at)
                match event:
                    case PhaseStarted():
                        await self._again(folding.state, commit, event)
                    case PhaseReady() | PhaseExpanded() | PhaseWaiting() | PhaseFailed(item=None):
                        await self._opening(folding.state, event.phase)
                    case PhaseSkipped(by=""):
                        await self._opening(folding.state, event.phase, is_skipped=True)
                    case RunRedriven() | RunRollingBack():
                        self._other.forget(folding.state)
        was = folding.state
        assert was is not None, "a run has a first commit"
        if not was.is_open:
            for key in self._other.unopened(was, self._stage.capabilities):
                await self._all(was, key)
        return Rehearsal(run=was.run, plan=was.plan.name, work=self._work, downstream=self._other.downstream)

    def _capability(self, was: RunState, key: str) -> Capability | None:
        return self._stage.capabilities.get(was.capability(key) or "")

    async def _opening(self, was: RunState, key: str, *, is_skipped: bool = False) -> None:
        """A phase opens, or is skipped: whether it is what it was is clear now, as all that it needs has ended."""
        if not all(was.phases[need].lets_pass for need in was.plan.graph[key].needs):
            return
        is_own = self._capability(was, key) is not None
        if not self._other.opens(was, key, is_own=is_own) or (is_skipped and not self._other.starts(was, key)):
            return
        known = len(was.phases[key].items)
        if is_skipped:
            await self._all(was, key)
        elif was.plan.graph[key].each is not None and known:
            for index in range(known, self._other.count(was, key)):
                await self._anew(was, key, index)

    async def _all(self, was: RunState, key: str) -> None:
        """A phase that was not done, done now."""
        if was.plan.graph[key].each is None:
            await self._anew(was, key, None)
        for index in range(self._other.count(was, key) if was.plan.graph[key].each is not None else 0):
            await self._anew(was, key, index)

    async def _again(self, was: RunState, commit: Commit, started: PhaseStarted) -> None:
        """An attempt that was made then."""
        key, index = started.phase, started.item
        capability = self._capability(was, key)
        item = was.phases[key].item(index)
        if capability is None or item is None:
            return
        is_undone = was.phases[key].undoing is not None
        if not (self._other.is_known(key) if is_undone else self._other.opens(was, key, is_own=True)):
            return
        is_gone = index is not None and index >= self._other.count(was, key)
        if is_gone or self._other.is_settled(was, key, index):
            return
        due = _due(was, key, index, started.attempt)
        then = input_of(was, key, index)
        bound_s = (started.deadline_at - commit.at).total_seconds()
        recorded = self._past.results.get((key, index, started.attempt))
        given, now, asks = await self._do(was, capability, due, bound_s, started.instance, commit.id)
        done = Rehearsed(
            phase=key,
            item=index,
            attempt=started.attempt,
            capability=capability.name,
            verdict=verdict(recorded, now, asks),
            now=now,
            recorded=recorded,
            position=commit.position,
            asks=asks,
            input=first_difference(then, given),
            output=_parting(recorded, now),
        )
        self._work.append(done)
        if recorded is not None and not is_undone:
            self._other.gave(was, key, index, recorded, now)

    async def _anew(self, was: RunState, key: str, index: int | None) -> None:
        """Work there was none of then."""
        capability = self._capability(was, key)
        assert capability is not None, f"phase {key} is the agent's"
        due = _due(was, key, index, was.phases[key].epoch + 1)
        bound_s = was.plan.graph[key].phase.timeout_s or capability.timeout_s
        _, now, asks = await self._do(was, capability, due, bound_s, self._stage.agent, None)
        done = Rehearsed(
            phase=key, item=index, attempt=due.attempt, capability=capability.name, verdict="new", now=now, asks=asks
        )
        self._work.append(done)
        self._other.gave(was, key, index, None, now)

    async def _do(
        self, was: RunState, capability: Capability, due: Order, bound_s: float, instance: str, causation: str | None
    ) -> tuple[object, Result, Sequence[Departure]]:
        """What the work is given now, what comes of it, and what it asks otherwise of others."""
        try:
            given = input_of(self._other.state(was), due.phase, due.item)
        except Unresolved as error:
            return str(error), Result(problem=Problem("unresolved", str(error), "configuration")), ()
        stage, pulse = self._stage, Pulse()
        place = (due.phase, due.item, due.attempt)
        span, recorded = self._past.spans.get(place), self._past.results.get(place)
        interview = Interview(self._heard.get(causation or "") or Transcript(), place)
        context = Context(
            run=due.run,
            plan=due.plan,
            phase=due.phase,
            item=due.item,
            attempt=due.attempt,
            agent=stage.agent,
            instance=instance,
            correlation=due.correlation,
            causation=causation,
            deadline_at=utc_now() + timedelta(seconds=bound_s),
            begun=due.begun,
            undoes=due.undoes,
            priority=due.priority,
            sender=due.sender,
            pulse=pulse,
            notebook=closed(self._past, due),
            state=stage.state,
            door=StandIn(stage.fork, self._source, interview, span, recorded),
        )
        # A copy: a handler may change what it is given.
        value = msgspec.json.decode(msgspec.json.encode(given))
        with structlog.contextvars.bound_contextvars(
            agent=stage.agent, run=due.run, phase=due.phase, attempt=due.attempt
        ):
            answer = await perform(capability, value, context, timeout_s=max(bound_s, 0.0))
        now = result(Problem("lost", answer.reason, "unknown") if isinstance(answer, Halted) else answer)
        asks = interview.departures()
        # How far a handler had come that was lost, nobody knows.
        return given, now, asks if recorded is not None or causation is None else ()


def _due(was: RunState, key: str, index: int | None, attempt: int) -> Order:
    """What the attempt found, apart from its input, which is another now."""
    phase = was.phases[key]
    item = phase.item(index)
    return Order(
        run=was.run,
        plan=was.plan.name,
        phase=key,
        item=index,
        attempt=attempt,
        input=None,
        correlation=was.correlation,
        begun=phase.begun,
        undoes=phase.undoing is not None,
        effects=item.effects if item is not None else {},
        saved=item.saved if item is not None else None,
        priority=was.level(key),
        sender=was.sender,
    )


def _parting(recorded: Result | None, now: Result) -> Difference | None:
    if recorded is None or recorded.problem is not None or now.problem is not None:
        return None
    return first_difference(recorded.value, now.value)
