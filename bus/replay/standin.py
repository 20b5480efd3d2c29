"""A stand-in for everybody else: the client of a handler whose work is done again. What it asks is answered from the
log, what it sends is compared with what was sent, and nothing of it is done.

What a handler does to the bus itself (locks, limits, breakers, buckets) it does in the fork.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from datetime import datetime, timedelta
from typing import Any

import msgspec

from bus.client import Client
from bus.clock import utc_now
from bus.errors import MalformedMessage, NoLiveAgent, NotFound, PlanError, Refused, TimedOut, Unrecorded
from bus.format.subjects import is_special, versioned
from bus.history.happening import Happening
from bus.messages.answers import decoded, output_of
from bus.messages.sending import Receipt, run_of
from bus.messages.streaming import Stream
from bus.messages.topics import Published
from bus.registry.versions import check_range, is_range
from bus.replay.asked import NOTHING, Asked, Interview
from bus.replay.recorded import Result, Span
from bus.rules.commands import Command
from bus.rules.decide import decide
from bus.rules.plan import DAY_S, TASK, Key, Plan
from bus.rules.priority import Priority
from bus.rules.run import RunState
from bus.runs.steering import as_json, new_id, new_run
from bus.runs.task import WORK

# An ask gives up a moment before its run does; who has it gives a run its time from a moment later on.
_AT_ONCE = timedelta(seconds=1)
_DUPLICATES = timedelta(minutes=2)


class StandIn(Client):
    """For one attempt: `interview` compares, `span` is when it was under way, `recorded` what came of it."""

    def __init__(
        self, fork: Client, source: Client, interview: Interview, span: Span | None, recorded: Result | None
    ) -> None:
        super().__init__(
            fork.settings,
            fork.connection,
            fork.log,
            fork.ledger,
            fork.runs,
            fork.guards,
            fork.signposts,
            source=fork.source,
            system_url=fork.system_url,
            operator_url=fork.operator_url,
            durability=source.durability,
        )
        self._from = source
        self._interview = interview
        self._upto = span.end if span is not None else 0
        self._until = span.ended_at if span is not None else None
        self._recorded = recorded

    async def ask(
        self,
        capability: str,
        value: object,
        gives: Any = None,
        *,
        timeout_s: float = 30.0,
        fast: bool = False,
        key: str = "",
        sticky: str = "",
        priority: Priority | None = None,
        sender: str | None = None,
    ) -> Any:
        given = as_json(value)
        self._time_left(capability, timeout_s)
        if fast:
            self._interview.note_unrecorded(capability)
            raise Unrecorded(capability)
        found = self._interview.ask("work", capability, given)
        if found is None:
            raise self._nobody(capability)
        return decoded(output_of(await self._answered(found, capability), WORK), gives, repr(capability))

    async def send(
        self,
        capability: str,
        value: object,
        *,
        timeout_s: float = DAY_S,
        id: str | None = None,
        at: datetime | None = None,
        delay_s: float | None = None,
        key: str = "",
        sticky: str = "",
        version: str | None = None,
        priority: Priority | None = None,
        sender: str | None = None,
    ) -> Receipt:
        given, run = as_json(value), run_of(id) if id is not None else ""
        if version is not None:
            capability = await self._of_version(capability, version)
        if run and not self._interview.has(run) and (state := await self._then(run)) is not None:
            return self._duplicate(state, id or "", capability, given, key)
        found = self._interview.ask("work", capability, given) or self._interview.near("work", capability)
        return self._receipt(found, run or new_id(TASK))

    async def _of_version(self, capability: str, wanted: str) -> str:
        if not is_range(check_range(wanted)):
            return versioned(wanted, capability)
        tail = f".v.{capability}"
        found = self._interview.like("work", lambda what: is_special(what) and what.endswith(tail))
        return found[0] if found else capability

    async def broadcast(self, capability: str, value: object, *, timeout_s: float = 3600.0) -> dict[str, Receipt]:
        given, tail = as_json(value), f".at.{capability}"
        receipts: dict[str, Receipt] = {}
        for what in self._interview.like("work", lambda what: is_special(what) and what.endswith(tail)):
            found = self._interview.ask("work", what, given) or self._interview.near("work", what)
            receipts[what.split(".")[1]] = self._receipt(found, "")
        if not receipts:
            self._interview.note("work", capability, given)
            raise self._nobody(capability)
        return receipts

    def stream(
        self,
        capability: str,
        value: object,
        chunk: Any = None,
        *,
        timeout_s: float = 300.0,
        priority: Priority | None = None,
        sender: str | None = None,
        sticky: str = "",
    ) -> Stream[Any]:
        found = self._interview.ask("work", capability, as_json(value))
        if found is None:
            raise self._nobody(capability)
        return self._from.parts(found.run, chunk, timeout_s=timeout_s)

    async def start(
        self,
        plan: Plan,
        input: object = None,
        *,
        run: str | None = None,
        fail_fast: bool = False,
        first: Key | None = None,
        last: Key | None = None,
        force: bool = False,
        sticky: str = "",
        priority: Priority | None = None,
        sender: str | None = None,
    ) -> Receipt:
        if not isinstance(plan, Plan):
            raise PlanError(f"a plan is a Plan, not {plan!r:.60}; `bus.planfile.read_plan` reads a file")
        given = as_json(input if input is not None else {})
        if run is not None and not self._interview.has(run) and await self._then(run) is not None:
            raise Refused(f"run {run} has started already")
        found = self._interview.ask("run", plan.name, given) or self._interview.near("run", plan.name)
        return self._receipt(found, run or new_run(plan))

    async def publish(self, topic: str, value: object, *, id: str | None = None) -> Published:
        subject, given = self._from.subjects.topic(topic), as_json(value)
        found = self._interview.take("fact", topic, given)
        position = found.position if found is not None else 0
        if found is None and id is not None:
            position = await self._published(subject, f"{topic}/{id}")
        if not position:
            self._interview.note("fact", topic, given)
            near = self._interview.near("fact", topic)
            position = near.position if near is not None else 0
        return Published(topic, position, self.durability)

    # What became of it

    async def result(self, run: str, *, timeout_s: float) -> RunState:
        state = await self._then(run)
        if state is None:
            return await super().result(run, timeout_s=timeout_s)
        if state.is_open:
            raise TimedOut(f"run {run} has not ended within {timeout_s:g} s")
        return state

    def parts(self, run: str, chunk: Any = None, *, after: int | str = 0, timeout_s: float = 300.0) -> Stream[Any]:
        return self._from.parts(run, chunk, after=after, timeout_s=timeout_s)

    async def watch(self, run: str, *, after: int = 0) -> AsyncGenerator[Happening, None]:
        async with aclosing(self._from.watch(run, after=after)) as happenings:
            async for each in happenings:
                if each.position > self._upto:
                    return
                yield each

    async def _decide(self, run: str, command: Command) -> RunState:
        found = self._interview.take("decision", run, NOTHING)
        if found is not None:
            return await self._from.ledger.as_of(run, found.position)
        state = await self._then(run)
        if state is None:
            return await super()._decide(run, command)
        # What was refused then left no trace; the rules say whether it was.
        decide(state, command, run=run, now=self._until or utc_now())
        self._interview.note("decision", run, NOTHING)
        return state

    # Inside

    async def _then(self, run: str) -> RunState | None:
        """A run as it was when the attempt ended; None: it was not there."""
        try:
            return await self._from.ledger.as_of(run, self._upto)
        except NotFound:
            return None

    async def _answered(self, found: Asked, capability: str) -> RunState:
        """The run of a question that was answered then, or given up. Raises TimedOut; or waits, as then, for ever: who
        asked had turned to something else by the time the answer came, or was ended."""
        state = await self._from.ledger.as_of(found.run, self._upto)
        is_late = state.is_open and self._until is not None and state.deadline_at <= self._until + _AT_ONCE
        if is_late or (state.status == "failed" and state.problem is not None and state.problem.code == "expired"):
            timeout_s = state.plan.timeout_s
            raise TimedOut(f"{capability!r} has not answered within {timeout_s:g} s (run {found.run})")
        if state.status in ("completed", "failed"):
            return state
        if self._recorded is None:
            raise Unrecorded(capability)
        await asyncio.Event().wait()
        raise AssertionError("nobody sets it")

    def _nobody(self, capability: str) -> NoLiveAgent:
        """Nothing is recorded of it. If nobody was there to be asked then, that is why, and what its handler raised."""
        problem = self._recorded.problem if self._recorded is not None else None
        error = NoLiveAgent(capability)
        if problem is not None and str(error) in f"{problem.title}{problem.detail}":
            self._interview.forget("work", capability)
            return error
        return Unrecorded(capability)

    def _duplicate(self, state: RunState, id: str, capability: str, given: msgspec.Raw, key: str) -> Receipt:
        """The receipt of what was sent before under the same id. Raises Refused if that was something else."""
        if (state.plan.capabilities, state.key) != ([capability], key) or state.input.value != msgspec.json.decode(
            given
        ):
            raise Refused(f"id {id!r} was used before, for other work: run {state.run} has it")
        return Receipt(state.run, state.origin, self.durability, duplicate=True)

    def _receipt(self, found: Asked | None, run: str) -> Receipt:
        if found is None:
            return Receipt(run, 0, self.durability)
        return Receipt(found.run, found.position, self.durability)

    async def _published(self, subject: str, identity: str) -> int:
        """Where a fact with this id was published shortly before: the server took it for the same. 0: it was not."""
        since = (self._until or utc_now()) - _DUPLICATES
        async with aclosing(self._from.log.read_back(subject, before=self._upto + 1)) as records:
            async for record in records:
                if record.stored_at < since:
                    return 0
                with suppress(MalformedMessage):
                    if record.envelope().id == identity:
                        return record.position
        return 0
