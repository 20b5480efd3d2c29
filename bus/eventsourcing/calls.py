"""Calls under way in the loop's thread, and the threads that wait for them, each on a lock of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Generic, NamedTuple, TypeVar

from bus.broker.connection import Connection, Message
from bus.errors import BusError, Unavailable

T = TypeVar("T")


class Pending(Generic[T]):
    """A call under way in the loop's thread."""

    __slots__ = ("_done", "_loop", "_task")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._task: asyncio.Task[T] | None = None
        self._done = threading.Lock()
        self._done.acquire()

    def begin(self, work: Coroutine[Any, Any, T], under_way: UnderWay) -> None:
        """In the loop's thread."""
        self._task = task = self._loop.create_task(work)
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        task.add_done_callback(self._end)

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended within `timeout_s`. To be called by one thread, until it has."""
        return self._done.acquire(timeout=timeout_s)

    def result(self) -> T:
        """What came of it, once it has ended. Raises what it raised, and Unavailable if it was closed."""
        assert self._task is not None, "it has ended, so it has begun"
        try:
            return self._task.result()
        except asyncio.CancelledError:
            raise Unavailable("closed while a call was under way: what it was to store may have been stored") from None

    def cancel(self) -> None:
        """From any thread; does not wait."""
        with suppress(RuntimeError):  # the loop has ended, and with it what was under way
            self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task:
            self._task.cancel()

    def _end(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # whoever waits may have gone; then nobody else looks
        self._done.release()


class Request(NamedTuple):
    """What `Connection.ask` sends."""

    subject: str
    data: bytes
    headers: dict[str, str]
    timeout_s: float


class Asked:
    """One request under way, without a task: what most saves are. An `Answer` of `Connection`."""

    __slots__ = ("_forget", "_is_done", "_under_way", "_woken", "message")

    def __init__(self, under_way: UnderWay) -> None:
        self.message: Message | None = None
        self._under_way = under_way
        self._forget: Callable[[], None] | None = None
        self._is_done = False
        self._woken = threading.Lock()
        self._woken.acquire()

    def begin(self, connection: Connection, request: Request) -> None:
        """In the loop's thread. Whatever prevents it is for the caller to meet again, in a call."""
        self._under_way.add(self)
        try:
            if connection.is_connected:
                self._forget = connection.ask(
                    self, request.subject, request.data, headers=request.headers, timeout_s=request.timeout_s
                )
                return
        except BusError:
            pass
        self.cancel()

    def wait(self, timeout_s: float) -> Message | None:
        """The answer, or None if there is none to be had."""
        self._woken.acquire(timeout=timeout_s)
        return self.message

    def done(self) -> bool:
        return self._is_done

    def set_result(self, message: Message) -> None:
        self.message = message
        self.cancel()

    def set_exception(self, _: BaseException) -> None:
        self.cancel()

    def cancel(self) -> None:
        """In the loop's thread: whoever waits has what there is."""
        self._under_way.discard(self)
        if self._forget:
            self._forget()
            self._forget = None
        if not self._is_done:
            self._is_done = True
            self._woken.release()


# What a close has to wake: to be touched in the loop's thread only.
UnderWay = set["asyncio.Task[Any] | Asked"]
