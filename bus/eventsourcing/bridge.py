"""The way from the library's threads to a connection: one event loop in a daemon thread, shared by all that need it.

Callers wait on a lock each, so the saves of many threads leave in one write. Nothing here blocks when a process ends:
closing only tells the thread to.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from bus.broker.connection import Connection
from bus.errors import BusError, Unavailable
from bus.eventsourcing.calls import Asked, Pending, Request, UnderWay
from bus.log.durability import prove
from bus.settings import Settings

T = TypeVar("T")

_START_S = 10.0
_NAME = "eventsourcing"


class _Thread:
    """The loop, its connection and how it ended. Nothing that runs in the thread refers to a Bridge."""

    def __init__(self, url: str, credentials: Path | None, settings: Settings) -> None:
        self.loop = asyncio.new_event_loop()
        self.connection: Connection | None = None
        self.error: BusError | None = None
        self.is_open = True
        self._posted: deque[Callable[[], None]] = deque()
        self._is_rung = False
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

    def post(self, start: Callable[[], None]) -> None:
        """Call `start` in the loop's thread, from any other. Raises Unavailable if it has ended."""
        # No lock: the threads of a busy application would queue for it, each woken by a switch of its own. And the
        # loop is rung once for all that were posted until it looks, so what they send leaves in one write.
        self._posted.append(start)
        if not self._is_rung and self.is_open:
            try:
                self._is_rung = True
                self.loop.call_soon_threadsafe(self._begin)
            except RuntimeError:
                pass  # it has ended, see below
            except BaseException:
                self._is_rung = False  # Ctrl-C just here must not keep others from ringing
                raise
        if not self.is_open:
            with suppress(ValueError):  # begun by the last look, and so woken by the end
                self._posted.remove(start)
                raise Unavailable("the connection of this process was closed")

    def stop(self) -> None:
        """From any thread; does not wait."""
        # The parent's goes on after a fork.
        if self._pid == os.getpid() and self.is_open:
            self.is_open = False
            with suppress(RuntimeError):
                self.loop.call_soon_threadsafe(self._stop.set)

    def _begin(self) -> None:
        self._is_rung = False  # first: what is posted from here on rings again
        while self._posted:
            self._posted.popleft()()

    def _run(self, url: str, credentials: Path | None, settings: Settings) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
                runner.run(self._serve(url, credentials, settings))
        finally:
            if self.connection is None and self.error is None:
                self.error = Unavailable("connecting failed, see the traceback of thread phasebus-eventsourcing")
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
            # The last look; asyncio.Runner cancels what it begins.
            self.is_open = False
            self._begin()


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
        connection = self._thread.connection
        assert connection is not None, "there is no bridge before there is a connection"
        pending: Pending[T] = Pending(self._thread.loop)
        self._thread.post(lambda: pending.begin(work(connection), under_way))
        return pending

    def ask(self, request: Request, under_way: UnderWay) -> Asked:
        """Send one request. Raises Unavailable if the thread has ended."""
        connection = self._thread.connection
        assert connection is not None, "there is no bridge before there is a connection"
        asked = Asked(under_way)
        self._thread.post(lambda: asked.begin(connection, request))
        return asked

    def cancel(self, under_way: UnderWay) -> None:
        """Cancel these calls. From any thread; does not wait."""

        def cancel_all() -> None:
            for each in list(under_way):
                each.cancel()

        with suppress(Unavailable):
            self._thread.post(cancel_all)


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
