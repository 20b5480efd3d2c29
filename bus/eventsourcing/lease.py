"""A lease: one factory's share of the process's connection. Closing it wakes everybody who waits through it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from bus.broker.connection import Connection, Message
from bus.errors import Unavailable
from bus.eventsourcing.bridge import Bridge, bridge
from bus.eventsourcing.calls import Pending, Request, UnderWay
from bus.settings import Settings

T = TypeVar("T")


class Lease:
    """Opens the connection when it is first used, and again in a process that was forked."""

    def __init__(self, url: str, credentials: Path | None, settings: Settings) -> None:
        self._address = (url, credentials)
        self._settings = settings
        self._bridge: Bridge | None = None
        self._pid = 0
        self._is_closed = False
        self._under_way: UnderWay = set()
        self._guard = threading.Lock()
        # Every call has bounds of its own; this one is for what nobody thought of.
        self.bound_s = 2 * (settings.append_timeout_s + settings.request_timeout_s) + 10

    def call(self, work: Callable[[Connection], Coroutine[Any, Any, T]]) -> T:
        """Do `work` in the loop's thread and wait for what comes of it. Raises what it raises, and Unavailable."""
        pending = self.begin(work)
        try:
            if pending.wait(self.bound_s):
                return pending.result()
        except BaseException:
            pending.cancel()
            raise
        pending.cancel()
        raise Unavailable(f"no answer within {self.bound_s:g} s: what was to be stored may have been stored")

    def begin(self, work: Callable[[Connection], Coroutine[Any, Any, T]]) -> Pending[T]:
        """Start `work` without waiting. Raises Unavailable: closed, or there is no server."""
        return self._open_bridge().begin(work, self._under_way)

    def ask(self, request: Request) -> Message | None:
        """Send one request and wait for its answer; None if for whatever reason there was none."""
        return self._open_bridge().ask(request, self._under_way).wait(self.bound_s)

    def close(self) -> None:
        """Waits for nothing; may be called again."""
        self._is_closed = True
        found, self._bridge = self._bridge, None
        if found is not None and self._pid == os.getpid():
            found.cancel(self._under_way)

    def _open_bridge(self) -> Bridge:
        found = self._bridge
        if self._is_closed or found is None or self._pid != os.getpid() or not found.is_open:
            return self._open()
        return found

    def _open(self) -> Bridge:
        if self._pid not in {0, os.getpid()}:
            self._guard, self._under_way = threading.Lock(), set()  # a forked child's own
        with self._guard:
            if self._is_closed:
                raise Unavailable("closed: make a new application or factory (what was under way may have been stored)")
            self._bridge, self._pid = bridge(*self._address, self._settings), os.getpid()
            return self._bridge
