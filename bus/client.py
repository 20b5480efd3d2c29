"""The client: what anybody uses to talk to agents and to see what became of it. Its verbs are in parts, by noun."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import structlog

from bus.broker.connection import Connection
from bus.coordination.coordination import Coordination
from bus.coordination.decisions import Deciding, Decisions
from bus.coordination.leases import Leases
from bus.errors import Archived, NoLiveAgent, NotFound, PlanError
from bus.format.subjects import personal
from bus.guards.guarding import Guarding, Guards
from bus.history import feed
from bus.history.happening import Happening
from bus.history.selection import Selection
from bus.letters.redriving import Redriving
from bus.log.durability import Durability
from bus.log.log import Log
from bus.messages.handing import Handing
from bus.messages.sending import Receipt, level_of
from bus.messages.streaming import Streaming
from bus.messages.topics import Topics
from bus.registry.registry import Registry
from bus.rules.commands import Begin
from bus.rules.events import Commit, archived, is_ending
from bus.rules.plan import Plan
from bus.rules.priority import Priority
from bus.rules.run import RunState
from bus.runs.ledger import Ledger
from bus.runs.runs import Runs
from bus.runs.schedules import Scheduling
from bus.runs.steering import as_json, new_run
from bus.settings import Settings

logger = structlog.get_logger(__name__)


class Client(Streaming, Topics, Scheduling, Redriving, Coordination, Deciding, Guarding, Registry):
    """One process's door to a bus. Made by `connect`, closed with it."""

    def __init__(
        self,
        settings: Settings,
        connection: Connection,
        log: Log,
        ledger: Ledger,
        runs: Runs,
        guards: Guards,
        *,
        source: str,
        system_url: str | None,
        operator_url: str | None,
        durability: Durability,
    ) -> None:
        self.settings = settings
        self.connection = connection
        self.subjects = log.subjects
        self.log = log
        self.ledger = ledger
        self.runs = runs
        self.leases = Leases(connection, log, settings, source=source)
        self._decisions = Decisions(log, source=source)
        self.guards = guards
        self.source = source
        self.system_url = system_url
        self.operator_url = operator_url
        self.durability = durability
        self._handing = Handing(connection, log, source)

    async def broadcast(self, capability: str, value: object, *, timeout_s: float = 3600.0) -> dict[str, Receipt]:
        """Hand the same work to every instance there is now that has `capability` with `broadcast=True`; the receipts.

        Each does it once, with attempts and dead letters as any work; what an instance that has ended meanwhile did not
        do is given up after `timeout_s`. Who comes later does not get it. Raises NoLiveAgent if nobody is there.
        """
        there = [
            each.instance
            for each in await self.agents(capability)
            if each.capabilities[capability].broadcast and each.status != "draining"
        ]
        if not there:
            raise NoLiveAgent(capability)
        sent = (self.send(personal(each, capability), value, timeout_s=timeout_s) for each in there)
        return dict(zip(there, await asyncio.gather(*sent), strict=True))

    async def start(
        self,
        plan: Plan,
        input: object = None,
        *,
        run: str | None = None,
        fail_fast: bool = False,
        first: str | None = None,
        last: str | None = None,
        force: bool = False,
        priority: Priority | None = None,
        sender: str | None = None,
    ) -> Receipt:
        """Start a run of `plan`; it is durable when this returns.

        `run` is its id, made from the plan's name if not given. With `first` and `last`, only the phases from the one
        to the other, in the plan's order, are run. With `fail_fast`, NoLiveAgent is raised, and nothing
        stored, if somebody is missing now. With `force` nothing is taken from the cache. Its work waits with `priority`
        (that of its plan, unless told) on the account of `sender`, as in `send`. Raises Refused if there is a run with
        that id, TooLarge, Unavailable.
        """
        if not isinstance(plan, Plan):
            raise PlanError(f"a plan is a Plan, not {plan!r:.60}; `bus.planfile.read_plan` reads a file")
        name = run or new_run(plan)
        if fail_fast:
            missing = await self._unserved(plan.capabilities)
            if missing:
                raise NoLiveAgent(missing[0])
        given = as_json(input if input is not None else {})
        level = level_of(priority)
        begin = Begin(plan, given, first, last, force=force, priority=level, sender=sender or "")
        decided, missing = await asyncio.gather(
            self.runs.submit(name, begin), self._unserved([] if fail_fast else plan.capabilities)
        )
        return Receipt(name, decided.state.position, self.durability, missing)

    def events(
        self, selection: Selection | None = None, *, follow: bool = False, **wanted: Any
    ) -> AsyncGenerator[Happening, None]:
        """What the log holds of a selection, event by event, given whole or as its fields: `events(runs=["r"])`.

        With `follow` it goes on with what is stored from now on, for ever. Close it (`contextlib.aclosing`) if you
        leave it early. Raises SettingsError, InvalidName, Unavailable.
        """
        return feed.happenings(self.log, selection or Selection(**wanted), follow=follow)

    async def watch(self, run: str, *, after: int = 0) -> AsyncGenerator[Happening, None]:
        """A run's events as they happen, from after a position of the log; ends with it. Raises NotFound, Archived.

        What can't be read is passed over, and logged.
        """
        subject = self.subjects.run(run)
        state: RunState | None = await self.ledger.as_of(run, after) if after else None
        if state is None and await self.log.last(subject) is None:
            raise NotFound(f"there is no run {run!r} in this log")
        if state is not None and not state.is_open:
            return
        async with aclosing(self.log.follow(subject, after=after)) as records:
            async for record in records:
                found = feed.read(record)
                commit = found[-1].commit
                if commit is not None and (last := archived(commit)) is not None:
                    raise Archived(run, last.archive)
                for each in found:
                    if each.problem:
                        logger.warning("record set aside", run=run, position=record.position, error=each.problem)
                    else:
                        yield each
                if commit is not None and any(map(is_ending, commit.events)) and await self._has_ended(run, commit):
                    return

    async def _has_ended(self, run: str, ending: Commit) -> bool:
        """Whether this ending is the last: a redriven run goes on after one."""
        state = await self.runs.load(run)
        return not state.is_open and state.ended_at == ending.at
