"""A tally: what the processes that use one service tell each other of their calls, while some of them fail.

Forty agents of one process each, with two calls a minute, would never see enough of a sick service alone. So whoever
counts a failure says how many of its latest calls went well and failed, and whoever hears of one does the same: what
counts is the sum. Nothing is said while all goes well. Each tally replaces the one before, so a lost one does no harm.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec
import structlog

from bus.broker.connection import Connection, Message
from bus.errors import BusError
from bus.format.envelope import UNDECODABLE
from bus.guards.window import Window

logger = structlog.get_logger(__name__)

_TELL_EVERY_S = 0.05
_MOST_TELLERS = 10_000


class Tally(msgspec.Struct, frozen=True, array_like=True):
    """So many of a process's calls of the last window went well, and failed; `since` is the breaker's version."""

    teller: str
    since: int
    well: int
    failed: int


_decoder = msgspec.json.Decoder(Tally)


class Tallies:
    """The calls of this process and of all others, within one window. `on_told` is called when others have failed."""

    def __init__(
        self, connection: Connection, subject: str, teller: str, window_s: float, on_told: Callable[[], None]
    ) -> None:
        self._connection = connection
        self._subject = subject
        self._teller = teller
        self._window_s = window_s
        self._own = Window(window_s)
        self._others: dict[str, tuple[float, Tally]] = {}
        self._told: tuple[int, int] = (0, 0)
        self._since = 0
        self._on_told = on_told
        self._timer: asyncio.TimerHandle | None = None
        self._subscription = connection.subscribe(subject, self._hear)

    def add(self, *, failed: bool) -> None:
        """Count a call that has ended."""
        self._own.add(time.monotonic(), not failed, failed)
        if failed:
            self._tell_soon()

    def totals(self) -> tuple[int, int]:
        """Of all processes: calls, and how many of them failed."""
        now_s = time.monotonic()
        well, failed = self._own.totals(now_s)
        self._others = {teller: told for teller, told in self._others.items() if told[0] > now_s - self._window_s}
        for _, other in self._others.values():
            well += other.well
            failed += other.failed
        return well + failed, failed

    def begin(self, since: int) -> None:
        """What was counted up to now counts no more: the breaker has changed, at this version."""
        self._since = since
        self._own.clear()
        self._others.clear()
        self._told = (0, 0)

    def close(self) -> None:
        self._subscription.unsubscribe()
        if self._timer is not None:
            self._timer.cancel()

    def _tell_soon(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_TELL_EVERY_S, self._tell)

    def _tell(self) -> None:
        self._timer = None
        well, failed = totals = self._own.totals(time.monotonic())
        if totals == self._told:
            return
        self._told = totals
        try:
            self._connection.publish(self._subject, msgspec.json.encode(Tally(self._teller, self._since, well, failed)))
        except BusError as error:
            logger.debug("tally not told", subject=self._subject, error=str(error))

    def _hear(self, message: Message) -> None:
        try:
            told = _decoder.decode(message.data)
        except UNDECODABLE:
            return  # anybody may publish here
        if told.teller == self._teller or told.since != self._since or min(told.well, told.failed) < 0:
            return
        if told.teller not in self._others and len(self._others) >= _MOST_TELLERS:
            return
        self._others[told.teller] = (time.monotonic(), told)
        if told.failed:
            self._tell_soon()
            self._on_told()
