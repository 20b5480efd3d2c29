"""Streaming: partial results of work as they come, and then its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Generic, NamedTuple, TypeVar, overload

import msgspec
import structlog

from bus.errors import MalformedMessage, NoLiveAgent, SettingsError, TimedOut
from bus.format.envelope import UNDECODABLE, decode_data
from bus.format.messages import MESSAGES
from bus.log.log import Log
from bus.log.record import Record
from bus.messages.answers import answer_of
from bus.messages.asking import Asking
from bus.messages.parts import PARTS, Parts
from bus.messages.sending import level_of
from bus.messages.ways import go_on
from bus.rules.commands import Begin
from bus.rules.events import is_ending
from bus.rules.priority import Priority
from bus.rules.run import RunState
from bus.runs.ledger import commit_in
from bus.runs.steering import as_json, new_run
from bus.runs.task import WORK, Task

logger = structlog.get_logger(__name__)

T = TypeVar("T")
_parts = msgspec.json.Decoder(Parts)


class Cursor(NamedTuple):
    """All up to a position has been told, and of the record right behind it so many parts."""

    position: int
    told: int = 0

    def __str__(self) -> str:
        return f"{self.position}+{self.told}"

    @classmethod
    def read(cls, text: str) -> Cursor:
        """Raises SettingsError."""
        position, plus, told = text.partition("+")
        if not (plus and position.isdecimal() and told.isdecimal()):
            raise SettingsError(f"after is a position of the log or the cursor of a part, not {text!r}")
        return cls(int(position), int(told))


class Part(msgspec.Struct, Generic[T], frozen=True):
    """One partial result. `index` counts from 0 in each attempt: what a lost attempt gave is told again by the next.

    `cursor` is where to go on from, `parts(..., after=part.cursor)`: right behind it, also within a record of the log,
    which holds some milliseconds' worth of parts. `position` is where that record stands.
    """

    value: T
    index: int
    attempt: int
    position: int
    cursor: str
    phase: str


class Streaming(Asking):
    """The verbs about partial results; a part of the client."""

    log: Log

    @overload
    def stream(
        self,
        capability: str,
        value: object,
        chunk: type[T],
        *,
        timeout_s: float = ...,
        priority: Priority | None = ...,
        sender: str | None = ...,
        sticky: str = ...,
    ) -> Stream[T]: ...

    @overload
    def stream(
        self,
        capability: str,
        value: object,
        chunk: None = ...,
        *,
        timeout_s: float = ...,
        priority: Priority | None = ...,
        sender: str | None = ...,
        sticky: str = ...,
    ) -> Stream[Any]: ...

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
        """Have work done, and get what its handler emits, decoded as `chunk`, while it is done: `async for`.

        The work is sent when that begins, durably; `timeout_s` bounds it, and the waiting. `priority`, `sender` and
        `sticky` as in `send`.
        """
        task = Task(capability, self._time_left(capability, timeout_s))
        begin = Begin(task.plan, as_json(value), priority=level_of(priority), sender=sender or "", sticky=sticky)
        return Stream(self, new_run(task.plan), chunk, begin, after=Cursor(0), timeout_s=task.timeout_s)

    @overload
    def parts(self, run: str, chunk: type[T], *, after: int | str = ..., timeout_s: float = ...) -> Stream[T]: ...

    @overload
    def parts(self, run: str, chunk: None = ..., *, after: int | str = ..., timeout_s: float = ...) -> Stream[Any]: ...

    def parts(self, run: str, chunk: Any = None, *, after: int | str = 0, timeout_s: float = 300.0) -> Stream[Any]:
        """What the handlers of a run emit and have emitted, from behind a position of the log, or behind a part by its
        cursor; ends with the run. Raises SettingsError for what is neither.
        """
        where = Cursor(after) if isinstance(after, int) else Cursor.read(after)
        return Stream(self, run, chunk, None, after=where, timeout_s=timeout_s)


class Stream(AsyncIterator[Part[T]]):
    """Partial results in order. Leaving it early does not stop the work; `client.cancel(stream.run)` does."""

    def __init__(
        self,
        client: Streaming,
        run: str,
        chunk: Any,
        begin: Begin | None,
        *,
        after: Cursor,
        timeout_s: float,
    ) -> None:
        self.run = run
        self._client = client
        self._chunk = chunk
        self._to_begin = begin
        self._after = after
        self._timeout_s = timeout_s
        self._state: RunState | None = None
        self._coming = self._parts()

    async def __anext__(self) -> Part[T]:
        return await anext(self._coming)

    async def aclose(self) -> None:
        """Leave it."""
        await self._coming.aclose()

    async def answer(self, gives: Any = None) -> Any:
        """The work's answer, waited for, decoded as `gives`. Raises as `ask`."""
        if self._to_begin is not None:
            await self._begin(self._to_begin)
        state = self._state or await self._client.result(self.run, timeout_s=self._timeout_s)
        return answer_of(state, WORK, gives)

    async def _begin(self, begin: Begin) -> None:
        client = self._client
        if missing := await client._unserved(begin.plan.capabilities):
            raise NoLiveAgent(missing[0])
        state = (await client.runs.submit(self.run, begin)).state
        self._to_begin, self._after = None, Cursor(state.position)
        await go_on(client.signposts, client.runs, state, client.settings.request_timeout_s)

    async def _parts(self) -> AsyncGenerator[Part[T], None]:
        client, subjects = self._client, self._client.subjects
        deadline_s = asyncio.get_running_loop().time() + self._timeout_s
        if self._to_begin is not None:
            await self._begin(self._to_begin)
        else:
            state = await client.runs.load(self.run)
            if state.position <= self._after.position and not state.is_open:
                self._state = state
                return
        follow = client.log.follow(subjects.parts(self.run), subjects.run(self.run), after=self._after.position)
        async with aclosing(follow) as records:
            while self._state is None:
                try:
                    async with asyncio.timeout_at(deadline_s):
                        record = await anext(records)
                        if record.subject == subjects.run(self.run):
                            await self._note(record)
                            continue
                except TimeoutError:
                    raise TimedOut(f"run {self.run} has not ended within {self._timeout_s:g} s") from None
                for part in self._read(record):
                    yield part

    async def _note(self, record: Record) -> None:
        """The run has gone on; perhaps it has ended."""
        try:
            commit = commit_in(self.run, record)
        except MalformedMessage as error:
            logger.warning("record set aside", run=self.run, position=record.position, error=str(error))
            return
        if any(map(is_ending, commit.events)):
            state = await self._client.runs.load(self.run)
            # A run that was redriven goes on after an ending.
            if not state.is_open and state.ended_at == commit.at:
                self._state = state

    def _read(self, record: Record) -> list[Part[T]]:
        try:
            message = record.envelope()
            said = decode_data(message, _parts, PARTS)
            values = [
                MESSAGES.decode(each, self._chunk) if self._chunk is not None else msgspec.json.decode(each)
                for each in said.chunks
            ]
        except (MalformedMessage, *UNDECODABLE) as error:
            logger.warning("record set aside", run=self.run, position=record.position, error=str(error))
            return []
        told = self._after.told if record.position == self._after.position + 1 else 0
        return [
            Part(
                value=value,
                index=said.first + place,
                attempt=said.attempt,
                position=record.position,
                cursor=str(Cursor(record.position - 1, place + 1)),
                phase=message.phase or WORK,
            )
            for place, value in enumerate(values)
            if place >= told
        ]
