"""Replaying: attempts that the log holds, done again by a handler of today, and compared with what came of them then.

The log they stand in is only read. Each run is copied into a fork up to the attempt, and the handler meets what its
predecessor met: the same input, number of attempt, ids and time to work in. What it reports is stored in the fork.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from datetime import datetime

import msgspec
import structlog
from msgspec.structs import replace

from bus.client import Client
from bus.clock import utc_now
from bus.handlers.agent import Agent, Capability
from bus.handlers.context import Context, Pulse
from bus.handlers.handling import Halted, perform
from bus.handlers.progress import Reporter
from bus.history import feed
from bus.history.happening import Happening
from bus.history.selection import Selection
from bus.problem import Problem
from bus.registry.presence import Held
from bus.replay.asked import Departure, Interview, Transcript
from bus.replay.closed import closed
from bus.replay.hearing import hear
from bus.replay.recorded import Past, Result, Verdict, result, verdict
from bus.replay.standin import StandIn
from bus.rules.events import PhaseStarted
from bus.rules.inputs import order

logger = structlog.get_logger(__name__)

_KNOWN_RUNS = 100


class Replayed(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt done again. `position` and `index` are those of its `phase.started`.

    `same` and `differs` compare the result with the recorded one, and what the handler asks of others with what it
    asked then (`asks` are the differences), `failed`: there was an output, and now is a problem, `new`: no result of a
    handler was recorded, because its process died, or the run ended, or it is under way.
    """

    position: int
    index: int
    run: str
    phase: str
    item: int | None
    attempt: int
    capability: str
    verdict: Verdict
    recorded: Result | None
    now: Result
    asks: Sequence[Departure] = ()


async def replay(
    source: Client,
    fork: Client,
    agent: Agent,
    selection: Selection,
    *,
    capabilities: Collection[str] = (),
    speed: float | None = None,
) -> AsyncGenerator[Replayed, None]:
    """Do the selected attempts again, in order, one after the other; `types` of the selection do not matter.

    Of those that were for one of `capabilities`, or any of the agent's. `fork` is open (`bus.fork.forked`). With a
    `speed`, each begins no earlier than its predecessor did, counted from the first: 1 is as fast as then.
    """
    wanted = {name: each for name, each in agent.capabilities.items() if not capabilities or name in capabilities}
    forking = _Forking(source, fork, wanted)
    count = 0
    starts = replace(selection, types=("phase.started",), limit=None, backwards=False)
    async with aclosing(paced(source.events(starts), speed)) as started:
        async for each in started:
            past = await forking.past(each.run or "")
            capability = wanted.get(past.capabilities.get(each.phase or "") or "")
            if capability is None or not isinstance(each.event, PhaseStarted):
                continue
            replayed = await _again(forking, past, agent, capability, each, each.event)
            if replayed is not None:
                yield replayed
                count += 1
                if count == selection.limit:
                    return


async def paced(happenings: AsyncGenerator[Happening, None], speed: float | None) -> AsyncGenerator[Happening, None]:
    """The same, each no earlier after the first than it was then, divided by `speed`; at once without one."""
    async with aclosing(happenings):
        first: datetime | None = None
        began = time.monotonic()
        async for each in happenings:
            if speed is not None:
                first = first or each.at
                await asyncio.sleep((each.at - first).total_seconds() / speed - (time.monotonic() - began))
            yield each


class _Forking:
    """Reads runs of one bus, and copies them into another."""

    def __init__(self, source: Client, fork: Client, capabilities: Collection[str]) -> None:
        self.fork = fork
        self.source = source
        self._capabilities = capabilities
        self._pasts: OrderedDict[str, Past] = OrderedDict()
        self._heard: dict[str, dict[str, Transcript]] = {}
        self._copied: dict[str, int] = {}

    async def past(self, run: str) -> Past:
        if run in self._pasts:
            self._pasts.move_to_end(run)
            return self._pasts[run]
        past = self._pasts[run] = Past()
        if len(self._pasts) > _KNOWN_RUNS:
            forgotten, _ = self._pasts.popitem(last=False)
            self._heard.pop(forgotten, None)
        async with aclosing(self.source.ledger.commits(run)) as commits:
            async for commit in commits:
                past.add(commit)
        return past

    async def heard(self, run: str, commit: str) -> Transcript:
        """What the attempts that a commit has started asked of others."""
        if run not in self._heard:
            self._heard[run] = await hear(self.source, run, await self.past(run), self._capabilities)
        return self._heard[run].get(commit) or Transcript()

    async def copy(self, run: str, upto: int) -> None:
        """Copy what the fork has not yet of a run, up to a position."""
        source, fork = self.source, self.fork
        after = self._copied.get(run, 0)
        async with aclosing(source.log.read(source.subjects.run(run), after=after, upto=upto)) as records:
            async for record in records:
                problem = feed.read(record)[0].problem
                if problem:
                    logger.warning("record set aside", run=run, position=record.position, error=problem)
                else:
                    await fork.log.append(fork.subjects.run(run), record.envelope())
        self._copied[run] = upto


async def _again(
    forking: _Forking, past: Past, agent: Agent, capability: Capability, where: Happening, started: PhaseStarted
) -> Replayed | None:
    """Do one attempt again; None if the run's state does not know of it."""
    run = where.run or ""
    await forking.copy(run, where.position)
    state = await forking.fork.runs.load(run)
    item = state.phases[started.phase].item(started.item) if started.phase in state.phases else None
    if item is None or item.attempt != started.attempt:
        logger.warning("attempt passed over: the run does not know of it", run=run, position=where.position)
        return None
    due = order(state, started.phase, started.item)
    given = started.deadline_at - where.at
    place = (due.phase, due.item, due.attempt)
    span, recorded = past.spans.get(place), past.results.get(place)
    interview = Interview(await forking.heard(run, span.commit if span is not None else ""), place)
    held, pulse = Held(run, due.phase, due.item, due.attempt), Pulse()
    context = Context(
        run=run,
        plan=due.plan,
        phase=due.phase,
        item=due.item,
        attempt=due.attempt,
        agent=agent.name,
        instance=started.instance,
        correlation=due.correlation,
        causation=where.message.id if where.message is not None else None,
        deadline_at=utc_now() + given,
        begun=due.begun,
        undoes=due.undoes,
        priority=due.priority,
        sender=due.sender,
        report=Reporter(forking.fork.runs, held, started.instance, pulse).report,
        pulse=pulse,
        notebook=closed(past, due),
        door=StandIn(forking.fork, forking.source, interview, span, recorded),
    )
    with structlog.contextvars.bound_contextvars(agent=agent.name, run=run, phase=due.phase, attempt=due.attempt):
        answer = await perform(capability, due.input, context, timeout_s=max(given.total_seconds(), 0.0))
    if isinstance(answer, Halted):
        answer = Problem("lost", answer.reason, "unknown")
    now = result(answer)
    asks = interview.departures() if recorded is not None else ()
    return Replayed(
        position=where.position,
        index=where.index,
        run=run,
        phase=started.phase,
        item=started.item,
        attempt=started.attempt,
        capability=capability.name,
        verdict=verdict(recorded, now, asks),
        recorded=recorded,
        now=now,
        asks=asks,
    )
