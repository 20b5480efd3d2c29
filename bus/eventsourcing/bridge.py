"""The way from the library's threads to a connection: one event loop in a daemon thread, shared by all that need it.

Callers wait on a lock each, so the saves of many threads leave in one write. Nothing here blocks when a process ends:
closing only tells the thread to.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from bus.connection import Connection, Message
from bus.durability import prove
from bus.errors import BusError, Unavailable
from bus.settings import Settings

T = TypeVar("T")

_START_S = 10.0
_NAME = "eventsourcing"


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


class _Thread:
    """The loop, its connection and how it ended. Nothing that runs in the thread refers to a Bridge."""

    def __init__(self, url: str, credentials: Path | None, settings: Settings) -> None:
        self.loop = asyncio.new_event_loop()
        self.connection: Connection | None = None
        self.error: BusError | None = None
        self.is_open = True
        self.guard = threading.Lock()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._pid = os.getpid()
        threading.Thread(
            target=self._run, args=(url, credentials, settings), name="phasebus-eventsourcing", daemon=True
        ).start()

    def wait_until_ready(self) -> None:
        """Raises what connecting raised."""
        if not self._ready.wait(_START_S + 2):
            raise Unavailable(f"no connection within {_START_S:g} s")
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """From any thread; does not wait."""
        if self._pid != os.getpid():
            return  # the parent's, which still uses it
        with self.guard:
            was_open, self.is_open = self.is_open, False
            if was_open:
                self.loop.call_soon_threadsafe(self._stop.set)

    def _run(self, url: str, credentials: Path | None, settings: Settings) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                runner.run(self._serve(url, credentials, settings))
        finally:
            self._ready.set()

    async def _serve(self, url: str, credentials: Path | None, settings: Settings) -> None:
        system_url = settings.system_url.get_secret_value() if settings.system_url else None
        try:
            async with asyncio.timeout(_START_S):
                await prove(system_url, settings.durability, settings.request_timeout_s)
            opening = Connection.open(
                url, name=_NAME, credentials=credentials, connect_timeout_s=settings.request_timeout_s
            )
            async with opening as self.connection:
                self._ready.set()
                await self._stop.wait()
        except BusError as error:
            self.error = error
        except TimeoutError:
            self.error = Unavailable("the system account did not answer")
        finally:
            with self.guard:
                # From here on nobody adds a call; asyncio.Runner cancels those that are under way.
                self.is_open = False


class Bridge:
    """One connection of this process to one server with one login. It ends when nobody refers to it any more."""

    def __init__(self, url: str, credentials: Path | None, settings: Settings) -> None:
        self._thread = thread = _Thread(url, credentials, settings)
        thread.wait_until_ready()
        weakref.finalize(self, thread.stop)

    @property
    def is_open(self) -> bool:
        return self._thread.is_open

    def begin(self, work: Callable[[Connection], Coroutine[Any, Any, T]], under_way: UnderWay) -> Pending[T]:
        """Start a call. Raises Unavailable if the thread has ended."""
        thread = self._thread
        connection = thread.connection
        assert connection is not None, "there is no bridge before there is a connection"
        pending: Pending[T] = Pending(thread.loop)

        self._post(lambda: pending.begin(work(connection), under_way))
        return pending

    def ask(self, request: Request, under_way: UnderWay) -> Asked:
        """Send one request. Raises Unavailable if the thread has ended."""
        connection = self._thread.connection
        assert connection is not None, "there is no bridge before there is a connection"
        asked = Asked(under_way)
        self._post(lambda: asked.begin(connection, request))
        return asked

    def cancel(self, under_way: UnderWay) -> None:
        """Cancel these calls. From any thread; does not wait."""

        def cancel_all() -> None:
            for each in list(under_way):
                each.cancel()

        with suppress(Unavailable):
            self._post(cancel_all)

    def _post(self, start: Callable[[], None]) -> None:
        thread = self._thread
        # What is posted before the thread is told to end is begun before it ends, and so is woken by it.
        with thread.guard:
            if not thread.is_open:
                raise Unavailable("the connection of this process was closed")
            thread.loop.call_soon_threadsafe(start)


_bridges: weakref.WeakValueDictionary[tuple[object, ...], Bridge] = weakref.WeakValueDictionary()
_opening = threading.Lock()
# What a child process got by fork: its threads are not running. Kept, because closing it would write to the parent's.
_inherited: list[Bridge] = []


def bridge(url: str, credentials: Path | None, settings: Settings) -> Bridge:
    """The bridge to this server with this login, opened if there is none. Raises Unavailable, SettingsError."""
    key = (url, credentials)
    with _opening:
        found = _bridges.get(key)
        if found is None or not found.is_open:
            _bridges[key] = found = Bridge(url, credentials, settings)
        return found


def _after_fork() -> None:
    global _opening, _bridges  # noqa: PLW0603
    _inherited.extend(_bridges.values())
    _opening = threading.Lock()
    _bridges = weakref.WeakValueDictionary()


os.register_at_fork(after_in_child=_after_fork)
