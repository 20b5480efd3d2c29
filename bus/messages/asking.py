"""Asking and sending: work for whoever has a capability, and what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, overload
from uuid import uuid4

import msgspec
import structlog

from bus.broker.connection import Connection, Message
from bus.clock import utc_now
from bus.errors import (
    BusError,
    MalformedMessage,
    NoLiveAgent,
    NoResponders,
    NotFound,
    Refused,
    ScheduleError,
    SettingsError,
    TimedOut,
    WorkFailed,
)
from bus.format.envelope import encode, envelope
from bus.format.messages import MESSAGES
from bus.format.subjects import Subjects, live_copy, mailbox, versioned
from bus.log.durability import Durability
from bus.log.log import Log
from bus.log.record import is_record, read_record
from bus.messages.handover import (
    ASKED,
    HANDED,
    Answered,
    Asked,
    Busy,
    Failed,
    Handed,
    Recorded,
    Reply,
    read_reply,
    read_story,
)
from bus.problem import Problem
from bus.registry.arrivals import who_is_there
from bus.registry.presence import is_offered
from bus.registry.versions import check_range, is_range, newest
from bus.rules.commands import Begin
from bus.rules.events import is_ending
from bus.rules.plan import DAY_S, TASK
from bus.rules.priority import NORMAL, Priority, checked
from bus.rules.run import RunState
from bus.runs.causality import served
from bus.runs.steering import Steering, as_json, new_run
from bus.runs.task import WORK, Task
from bus.settings import Settings

logger = structlog.get_logger(__name__)

T = TypeVar("T")

# Who has taken work that was handed over says so, or has the result, in a twentieth of that.
_FIRST_WORD_S = 0.5
_BUSY_PAUSE_S = 0.01
_FEW = 8
_GIVE_UP_S = (0.0, 0.05, 0.2, 0.5)
_LONGEST_S = 10 * 365 * DAY_S


class Receipt(msgspec.Struct, frozen=True):
    """What was accepted: it is in the log at `position`, as durable as `durability` says (see `bus.log.durability`).

    `unserved` names the capabilities nobody offers at this moment: the work waits for them. `duplicate`: it was
    accepted before, under the same id.
    """

    run: str
    position: int
    durability: Durability
    unserved: Sequence[str] = ()
    duplicate: bool = False


class Asking(Steering):
    """The verbs for single pieces of work; a part of the client."""

    connection: Connection
    log: Log
    subjects: Subjects
    settings: Settings
    source: str
    durability: Durability
    _asking = 0

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
        version: str | None = None,
        priority: Priority | None = None,
        sender: str | None = None,
    ) -> Receipt:
        """Hand work to whoever has `capability`; it is durable when this returns, and given up after `timeout_s`.

        What was sent under an `id` before is not done again: the receipt is that of the first time, and says so. It
        begins no earlier than `at` (with a time zone), or in `delay_s`; its time counts from then on. With a `key` it
        is done when all that was sent to the capability with the same key before has ended, by an instance that serves
        it `ordered`. With a `version` it is for instances of an agent of that one that serve it `versioned`, and waits
        for them; with a range (`>=1.2,<2`), for the newest in it that is there. `priority` (high, normal, low) says
        whether it is taken before other work that waits; within one, senders are served in turn, each client is one
        unless `sender` says on whose account this is (`bus.rules.priority`); within a handler both are those of what it
        serves. Raises Refused if the id was used for
        other work, NoLiveAgent if no version that is there is in the range.
        """
        if version is not None and key:
            raise SettingsError("say a key or a version: the order of a key is kept across versions")
        if version is not None:
            capability = await self._of_version(capability, version)
        task = Task(capability, timeout_s)
        run = new_run(task.plan) if id is None else _run_of(id)
        if key and priority is not None:
            raise SettingsError("say a key or a priority: work with a key is done in order of sending")
        level = level_of(priority)
        begin = Begin(task.plan, as_json(value), due_at=_due(at, delay_s), key=key, priority=level, sender=sender or "")
        if key and begin.due_at is not None:
            raise ScheduleError("work with a key is done in order of sending: it has no time of its own to begin at")
        submitted, unserved = await asyncio.gather(
            self.runs.submit(run, begin), self._unserved([capability], ordered=bool(key)), return_exceptions=True
        )
        if isinstance(unserved, BaseException):
            raise unserved
        if isinstance(submitted, Refused) and id is not None:
            return msgspec.structs.replace(await self._sent(run, id, begin), unserved=unserved)
        if isinstance(submitted, BaseException):
            raise submitted
        return Receipt(run, submitted.state.position, self.durability, unserved)

    async def _of_version(self, capability: str, wanted: str) -> str:
        """The capability of the version that is wanted, or of the newest in a range of them."""
        if not is_range(check_range(wanted)):
            return versioned(wanted, capability)
        there = await who_is_there(self.connection, self.log)
        fitting = [
            each.version
            for each in there
            if each.matches(capability=capability, version=wanted, tag=None) and each.capabilities[capability].versioned
        ]
        if not fitting:
            raise NoLiveAgent(capability)
        return versioned(newest(fitting), capability)

    async def tell(
        self,
        agent: str,
        value: object,
        *,
        timeout_s: float = DAY_S,
        id: str | None = None,
        at: datetime | None = None,
        delay_s: float | None = None,
        priority: Priority | None = None,
        sender: str | None = None,
    ) -> Receipt:
        """Send a message to one agent by name, which it hears with `@agent.mail()`; otherwise as `send`."""
        about: dict[str, Any] = {"id": id, "at": at, "delay_s": delay_s, "priority": priority, "sender": sender}
        return await self.send(mailbox(agent), value, timeout_s=timeout_s, **about)

    async def _sent(self, run: str, id: str, again: Begin) -> Receipt:
        """The receipt of what was sent before. Raises Refused if that was something else."""
        state = await self.runs.load(run)
        before, now = state.plan.capabilities, again.plan.capabilities
        if (before, state.key) != (now, again.key) or state.input.value != msgspec.json.decode(again.input):
            raise Refused(f"id {id!r} was used before, for other work: run {run} has it")
        async with aclosing(self.ledger.commits(run)) as commits:
            first = await anext(commits)
        return Receipt(run, first.position, self.durability, duplicate=True)

    @overload
    async def ask(
        self,
        capability: str,
        value: object,
        gives: type[T],
        *,
        timeout_s: float = ...,
        fast: bool = ...,
        priority: Priority | None = ...,
        sender: str | None = ...,
    ) -> T: ...

    @overload
    async def ask(
        self,
        capability: str,
        value: object,
        gives: None = ...,
        *,
        timeout_s: float = ...,
        fast: bool = ...,
        priority: Priority | None = ...,
        sender: str | None = ...,
    ) -> Any: ...

    async def ask(
        self,
        capability: str,
        value: object,
        gives: type[T] | None = None,
        *,
        timeout_s: float = 30.0,
        fast: bool = False,
        priority: Priority | None = None,
        sender: str | None = None,
    ) -> T | Any:
        """Have work done, and wait for the answer, decoded as `gives` (plain JSON values without it).

        Question and answer are in the log when this returns; with `fast` nothing is stored, and the work is done at
        most once. Raises NoLiveAgent at once if nobody offers the capability, WorkFailed if the work was given up,
        TimedOut after `timeout_s`, which is also the work's own deadline; within a handler, no more than is left of
        its own. Cancelling the task that waits for the answer cancels the work, if it is stored. Where nobody is free,
        it waits with `priority`, on the account of `sender`, as in `send`; a `fast` one waits nowhere.
        """
        given = as_json(value)
        if fast and (priority is not None or sender is not None):
            raise SettingsError("a fast question is not stored and waits nowhere: it has no priority and no sender")
        timeout_s = self._time_left(capability, timeout_s)
        task = Task(capability, timeout_s)
        run = new_run(task.plan)
        handed = self._handed(task, given, level_of(priority), sender)
        try:
            async with asyncio.timeout(timeout_s):
                if fast:
                    output = await self._answer(run, task, given)
                else:
                    output = await self._work(run, handed)
        except TimeoutError:
            raise TimedOut(f"{capability!r} has not answered within {timeout_s:g} s (run {run})") from None
        except asyncio.CancelledError:
            if not fast:
                self.runs.soon(self._give_up(run))
            raise
        return _decoded(output, gives, repr(capability))

    def _time_left(self, capability: str, timeout_s: float) -> float:
        """No more than is left of the handler that asks. Raises TimedOut if that is nothing."""
        if (facts := served()) is not None:
            timeout_s = round(facts.left_s(utc_now(), timeout_s), 3)
            if timeout_s <= 0:
                raise TimedOut(f"{capability!r} was not asked: the handler that asks has no time left")
        return timeout_s

    def _handed(self, task: Task, given: msgspec.Raw, level: Priority | None, sender: str | None) -> Handed:
        """The work as it is handed over; within a handler, it waits where that has."""
        facts = served()
        inherited = (facts.priority, facts.sender) if facts is not None else (NORMAL, "")
        return Handed(task, given, level or inherited[0], sender or inherited[1] or self.runs.sender)

    async def _work(self, run: str, handed: Handed) -> msgspec.Raw:
        """The result of work, as the log has it."""
        reply = await self._hand_over(run, handed)
        if isinstance(reply, Answered):
            return reply.output
        if not isinstance(reply, Recorded):
            # It was begun nevertheless if its word was lost: the run tells.
            with contextlib.suppress(Refused):
                begin = Begin(handed.task.plan, handed.input, priority=handed.priority, sender=handed.sender)
                await self.runs.submit(run, begin)
        state = await self._ended(run)
        return _output(state, WORK)

    async def _hand_over(self, run: str, handed: Handed) -> Reply | None:
        """What an instance says that was handed the work directly; None: nobody has it, as far as anybody knows.

        Raises NoLiveAgent.
        """
        try:
            return await self._put(HANDED, run, handed.task.capability, handed, _FIRST_WORD_S)
        except NoResponders:
            # An instance that stops takes nothing more this way, and still is one.
            if await self._unserved([handed.task.capability]):
                raise NoLiveAgent(handed.task.capability) from None
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
                reply = await self._put(ASKED, run, task.capability, question, task.timeout_s)
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

    async def _give_up(self, run: str) -> None:
        """Cancel a run that nobody waits for any more. It may be handed over, and not in the log yet."""
        for pause_s in _GIVE_UP_S:
            await asyncio.sleep(pause_s)
            try:
                if (await self.runs.load(run)).is_open:
                    await self.cancel(run, by=self.source, reason="nobody waits for the answer")
            except NotFound:
                continue
            except BusError as error:
                # Its own deadline ends it.
                logger.debug("not cancelled", run=run, error=str(error))
            return

    async def _put(self, kind: str, run: str, capability: str, what: object, timeout_s: float) -> Reply:
        """The word of an instance; of one that comes after others, if those are not there or have no hand free."""
        reply: Reply | None = None
        with contextlib.suppress(NoResponders):
            reply = await self._request(kind, run, self.subjects.hand(capability), what, timeout_s)
        if reply is None or (kind == ASKED and isinstance(reply, Busy)):
            with contextlib.suppress(NoResponders):
                return await self._request(kind, run, self.subjects.hand(capability, spare=True), what, timeout_s)
        if reply is None:
            raise NoResponders(self.subjects.hand(capability))
        return reply

    async def _request(self, kind: str, run: str, subject: str, what: object, timeout_s: float) -> Reply:
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
        told: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def take(copy: Message) -> None:
            if not told.done() and is_record(copy):
                told.set_result(copy)

        # The server tells of what it has stored sooner than who had it stored. Of many at once that costs too much:
        # then the instance's own word, which comes when the log has it, will do.
        story = live_copy(self.subjects.run(run))
        is_followed = kind == HANDED and self._asking < _FEW
        following = self.connection.subscribe(story, take) if is_followed else None
        self._asking += 1
        try:
            forget = self.connection.ask(told, subject, encode(message), timeout_s=timeout_s)
            try:
                answer = await told
            finally:
                forget()
        finally:
            self._asking -= 1
            if following is not None:
                following.unsubscribe()
        if answer.subject == story:
            return read_story(answer.data, read_record(answer).position)
        return read_reply(answer.data)

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
        return answer_of(state, phase, gives)

    async def _unserved(self, capabilities: Sequence[str], *, ordered: bool = False) -> list[str]:
        timeout_s = self.settings.request_timeout_s
        offered = await asyncio.gather(
            *(is_offered(self.connection, self.subjects, each, timeout_s, ordered=ordered) for each in capabilities)
        )
        return [each for each, is_there in zip(capabilities, offered, strict=True) if not is_there]


def level_of(priority: str | None) -> Priority | None:
    """The level that was asked for, if one was. Raises SettingsError."""
    try:
        return checked(priority) if priority is not None else None
    except ValueError as error:
        raise SettingsError(str(error)) from None


def _run_of(id: str) -> str:
    """The run of what is sent under an id: the same whoever sends it."""
    return f"{TASK}-{hashlib.blake2b(id.encode(), digest_size=16).hexdigest()}"


def _due(at: datetime | None, delay_s: float | None) -> datetime | None:
    """When it may begin; None: at once. Raises ScheduleError."""
    if at is not None and delay_s is not None:
        raise ScheduleError("say when by one of at and delay_s")
    if at is not None and at.tzinfo is None:
        raise ScheduleError("at is a time with a time zone")
    if delay_s is not None and not 0 <= delay_s <= _LONGEST_S:
        raise ScheduleError(f"delay_s is {delay_s}, it must be 0 or more, and at most 10 years")
    due_at = at if delay_s is None else utc_now() + timedelta(seconds=delay_s)
    return due_at.astimezone(UTC) if due_at is not None and due_at > utc_now() else None


def answer_of(state: RunState, phase: str, gives: Any = None) -> Any:
    """A phase's output. Raises WorkFailed, MalformedMessage."""
    return _decoded(_output(state, phase), gives, f"the output of {phase!r}")


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
