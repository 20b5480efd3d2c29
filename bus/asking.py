"""Asking and sending: work for whoever has a capability, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from contextlib import aclosing
from datetime import timedelta
from typing import Any, TypeVar, overload
from uuid import uuid4

import msgspec

from bus.causality import served
from bus.commands import Begin
from bus.connection import Connection
from bus.durability import Durability
from bus.envelope import encode, envelope
from bus.errors import BusError, MalformedMessage, NoLiveAgent, NoResponders, NotFound, Refused, TimedOut
from bus.events import is_ending
from bus.handover import ASKED, HANDED, Answered, Asked, Busy, Failed, Handed, Recorded, Reply, read_reply
from bus.ledger import utc_now
from bus.messages import MESSAGES
from bus.presence import is_offered
from bus.problem import Problem
from bus.run import RunState
from bus.settings import Settings
from bus.steering import Steering, as_json, new_run
from bus.subjects import Subjects
from bus.task import WORK, Task

T = TypeVar("T")

# Who has taken work that was handed over says so, or has the result, in a twentieth of that.
_FIRST_WORD_S = 0.5
_BUSY_PAUSE_S = 0.01


class Receipt(msgspec.Struct, frozen=True):
    """What was accepted: it is in the log at `position`, as durable as `durability` says (see `bus.durability`).

    `unserved` names the capabilities nobody offers at this moment: the work waits for them.
    """

    run: str
    position: int
    durability: Durability
    unserved: Sequence[str] = ()


class WorkFailed(BusError):
    """The work was given up for good. `problem` says why; the whole story is in the log under `run`."""

    def __init__(self, run: str, problem: Problem) -> None:
        super().__init__(f"{problem} (run {run})")
        self.run = run
        self.problem = problem


class Asking(Steering):
    """The verbs for single pieces of work; a part of the client."""

    connection: Connection
    subjects: Subjects
    settings: Settings
    source: str
    durability: Durability

    async def send(self, capability: str, value: object, *, timeout_s: float = 86_400.0) -> Receipt:
        """Hand work to whoever has `capability`; it is durable when this returns, and given up after `timeout_s`."""
        task = Task(capability, timeout_s)
        run = new_run(task.plan)
        decided, unserved = await asyncio.gather(
            self.runs.submit(run, Begin(task.plan, as_json(value))), self._unserved([capability])
        )
        return Receipt(run, decided.state.position, self.durability, unserved)

    @overload
    async def ask(
        self, capability: str, value: object, gives: type[T], *, timeout_s: float = ..., fast: bool = ...
    ) -> T: ...

    @overload
    async def ask(
        self, capability: str, value: object, gives: None = ..., *, timeout_s: float = ..., fast: bool = ...
    ) -> Any: ...

    async def ask(
        self,
        capability: str,
        value: object,
        gives: type[T] | None = None,
        *,
        timeout_s: float = 30.0,
        fast: bool = False,
    ) -> T | Any:
        """Have work done, and wait for the answer, decoded as `gives` (plain JSON values without it).

        Question and answer are in the log when this returns; with `fast` nothing is stored, and the work is done at
        most once. Raises NoLiveAgent at once if nobody offers the capability, WorkFailed if the work was given up,
        TimedOut after `timeout_s`, which is also the work's own deadline; within a handler, no more than is left of
        its own.
        """
        given = as_json(value)
        if (facts := served()) is not None:
            timeout_s = round(facts.left_s(utc_now(), timeout_s), 3)
            if timeout_s <= 0:
                raise TimedOut(f"{capability!r} was not asked: the handler that asks has no time left")
        task = Task(capability, timeout_s)
        run = new_run(task.plan)
        try:
            async with asyncio.timeout(timeout_s):
                if fast:
                    output = await self._answer(run, task, given)
                else:
                    output = await self._work(run, task, given)
        except TimeoutError:
            raise TimedOut(f"{capability!r} has not answered within {timeout_s:g} s (run {run})") from None
        return _decoded(output, gives, repr(capability))

    async def _work(self, run: str, task: Task, given: msgspec.Raw) -> msgspec.Raw:
        """The result of work, as the log has it."""
        handed = await self._hand_over(run, task, given)
        if isinstance(handed, Answered):
            return handed.output
        if not isinstance(handed, Recorded):
            # It was begun nevertheless if its word was lost: the run tells.
            with contextlib.suppress(Refused):
                await self.runs.submit(run, Begin(task.plan, given))
        state = await self._ended(run)
        return _output(state, WORK)

    async def _hand_over(self, run: str, task: Task, given: msgspec.Raw) -> Reply | None:
        """What an instance says that was handed the work directly; None: nobody has it, as far as anybody knows.

        Raises NoLiveAgent.
        """
        try:
            return await self._request(HANDED, run, task.capability, Handed(task, given), _FIRST_WORD_S)
        except NoResponders:
            # An instance that stops takes nothing more this way, and still is one.
            if await self._unserved([task.capability]):
                raise NoLiveAgent(task.capability) from None
        except (BusError, MalformedMessage):
            # Too large, or the line is lost: the log's own way is the one that insists.
            pass
        return None

    async def _answer(self, run: str, task: Task, given: msgspec.Raw) -> msgspec.Raw:
        """The answer to a question that is not stored. Raises NoLiveAgent, WorkFailed, Unavailable."""
        deadline_at = utc_now() + timedelta(seconds=task.timeout_s)
        question = Asked(given, deadline_at)
        while True:
            try:
                reply = await self._request(ASKED, run, task.capability, question, task.timeout_s)
            except NoResponders:
                raise NoLiveAgent(task.capability) from None
            match reply:
                case Answered():
                    return reply.output
                case Failed():
                    raise WorkFailed(run, reply.problem)
                case Busy():
                    # The next one may be another instance.
                    await asyncio.sleep(_BUSY_PAUSE_S)
                case Recorded():
                    raise MalformedMessage(f"{task.capability!r} has stored what was not to be stored")

    async def _request(self, kind: str, run: str, capability: str, what: object, timeout_s: float) -> Reply:
        facts = served()
        message = envelope(
            kind,
            what,
            id=uuid4().hex,
            source=self.source,
            time=utc_now(),
            correlationid=facts.correlation if facts is not None else None,
            causationid=facts.causation if facts is not None else None,
            runid=run,
        )
        subject = self.subjects.hand(capability)
        return read_reply((await self.connection.request(subject, encode(message), timeout_s=timeout_s)).data)

    async def result(self, run: str, *, timeout_s: float) -> RunState:
        """The run once it has ended. Raises TimedOut if that takes longer; the run goes on. Raises NotFound."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ended(run)
        except TimeoutError:
            raise TimedOut(f"run {run} has not ended within {timeout_s:g} s") from None

    async def _ended(self, run: str) -> RunState:
        state = await self.runs.load(run)
        async with aclosing(self.ledger.follow(run, after=state.position)) as commits:
            while state.is_open:
                commit = await anext(commits)
                if any(is_ending(event) for event in commit.events):
                    state = await self.runs.load(run)
        return state

    def output(self, state: RunState, phase: str, gives: Any = None) -> Any:
        """A phase's output. Raises WorkFailed if it has none, MalformedMessage if it is not a `gives`."""
        return _decoded(_output(state, phase), gives, f"the output of {phase!r}")

    async def _unserved(self, capabilities: Sequence[str]) -> list[str]:
        offered = await asyncio.gather(
            *(
                is_offered(self.connection, self.subjects, each, self.settings.request_timeout_s)
                for each in capabilities
            )
        )
        return [each for each, is_there in zip(capabilities, offered, strict=True) if not is_there]


def _output(state: RunState, phase: str) -> msgspec.Raw:
    done = state.phases.get(phase)
    if done is None:
        raise NotFound(f"run {state.run} has no phase {phase!r}")
    if done.output is None:
        problem = done.problem or state.problem or Problem("expired", f"{phase} is {done.status}", "permanent")
        raise WorkFailed(state.run, problem)
    return done.output.raw


def _decoded(output: msgspec.Raw, gives: Any, what: str) -> Any:
    if gives is None:
        return msgspec.json.decode(output)
    try:
        return MESSAGES.decode(output, gives)
    except msgspec.ValidationError as error:
        wanted = getattr(gives, "__name__", repr(gives))
        raise MalformedMessage(f"{what} is not what was asked for ({wanted}): {error}") from error
