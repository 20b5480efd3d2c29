"""A pipeline: appends that leave one behind the other, without waiting for the answer to the one before."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Self

from bus.broker.connection import Message
from bus.errors import BusError, Unavailable
from bus.log.appending import Appender, Part

_WINDOW_BYTES = 8 * 2**20


class Pipeline:
    """Made by `Log.pipeline`. Leaving its block waits for every answer, and raises the first failure."""

    def __init__(self, appender: Appender, window: int) -> None:
        self._appender = appender
        self._window = window
        self._unanswered = 0
        self._unanswered_bytes = 0
        self._answered = asyncio.Event()
        self._resends = asyncio.TaskGroup()
        self._failure: BusError | None = None
        self._is_open = False

    async def __aenter__(self) -> Self:
        await self._resends.__aenter__()
        self._is_open = True
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            while error is None and self._unanswered:
                await self._next_answer()
        except BaseException as cancelled:
            # Told why it ends, the group ends what is under way; otherwise it would wait for that.
            kind, error = type(cancelled), cancelled
            raise
        finally:
            self._is_open = False
            await self._resends.__aexit__(kind, error, None)
        if error is None and self._failure is not None:
            raise self._failure

    async def append(self, part: Part) -> asyncio.Future[int]:
        """Send one message now, or as soon as there is room; the future gets its position, or what `Log.append` raises.

        Without an expectation, messages stand in the order they were sent in, except those that had to be sent again.
        Raises TooLarge.
        """
        assert self._is_open, "a pipeline is used inside its block"
        while self._unanswered >= self._window or self._unanswered_bytes > _WINDOW_BYTES:
            await self._next_answer()
        sent = await self._appender.append_soon(part)
        self._unanswered += 1
        self._unanswered_bytes += len(part.message.data)
        position: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        sent.add_done_callback(partial(self._take, part, position))
        return position

    def _take(self, part: Part, position: asyncio.Future[int], sent: asyncio.Future[Message]) -> None:
        answered = self._appender.position_of(sent)
        if answered is not None:
            self._settle(part, position, answered)
        elif self._is_open:
            self._resends.create_task(self._resend(part, position))
        else:
            self._settle(part, position, Unavailable("the pipeline was left before the answer came"))

    async def _resend(self, part: Part, position: asyncio.Future[int]) -> None:
        try:
            self._settle(part, position, await self._appender.append(part))
        except BusError as error:
            self._failure = self._failure or error
            self._settle(part, position, error)

    def _settle(self, part: Part, position: asyncio.Future[int], outcome: int | BusError) -> None:
        self._unanswered -= 1
        self._unanswered_bytes -= len(part.message.data)
        self._answered.set()
        if position.done():
            return
        if isinstance(outcome, BusError):
            position.set_exception(outcome)
            position.exception()  # leaving the block raises it, whether or not somebody waits for this one
        else:
            position.set_result(outcome)

    async def _next_answer(self) -> None:
        self._answered.clear()
        await self._answered.wait()
