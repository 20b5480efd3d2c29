"""The answers to one request that gets many, up to the one that is the end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bus.broker.wire import Message
from bus.errors import BusError, Unavailable


class Answers:
    """Takes what arrives; `ended` is done with the last one, or raises Unavailable after `timeout_s` of silence."""

    def __init__(self, subject: str, is_end: Callable[[Message], bool], timeout_s: float) -> None:
        self.messages: list[Message] = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.subject = subject
        self._is_end = is_end
        self._timeout_s = timeout_s
        self._seen = 0
        self._timer = self.ended.get_loop().call_later(timeout_s, self._look)

    def take(self, message: Message) -> None:
        self.messages.append(message)
        if self._is_end(message) and not self.ended.done():
            self.ended.set_result(None)

    def lose(self) -> None:
        self.fail(Unavailable(f"the line was lost while {self.subject!r} was answered: ask again"))

    def fail(self, error: BusError) -> None:
        if not self.ended.done():
            self.ended.set_exception(error)

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        if len(self.messages) == self._seen:
            self.fail(Unavailable(f"{self.subject!r} stopped answering after {self._seen} messages"))
        self._seen = len(self.messages)
        self._timer = self.ended.get_loop().call_later(self._timeout_s, self._look)
