"""Alarms: for many things that are waited for and nearly always come, with one timer of the event loop for them all.

A timer for each costs more than what is waited for: the event loop compares its timers in Python, and one that is
cancelled lies among them until its time has come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import copy_context
from heapq import heapify, heappop, heappush
from itertools import count

_FEW = 64


class Alarms:
    """Each rings once, after its own time, unless it is cleared before. Of one event loop."""

    def __init__(self) -> None:
        self._rings: dict[int, Callable[[], None]] = {}
        # With those that were cleared, until they come up or are too many.
        self._due: list[tuple[float, int]] = []
        self._numbers = count()
        self._timer: asyncio.TimerHandle | None = None
        # One timer for all of them is in nobody's context: it would keep that of whoever was first, and ring in it.
        self._context = copy_context()

    def set(self, after_s: float, ring: Callable[[], None]) -> int:
        """Returns what clears it."""
        loop = asyncio.get_running_loop()
        now_s, number = loop.time(), next(self._numbers)
        # What is no number is due now: it would be in no order with the others, and they would not ring.
        due_s = max(now_s, now_s + after_s)
        self._rings[number] = ring
        heappush(self._due, (due_s, number))
        if self._timer is None or due_s < self._timer.when():
            self._wake_at(due_s)
        return number

    def clear(self, number: int) -> None:
        """Nothing, if it has rung or was cleared."""
        self._rings.pop(number, None)
        if len(self._due) > 2 * len(self._rings) + _FEW:
            self._due = [each for each in self._due if each[1] in self._rings]
            heapify(self._due)

    def _wake_at(self, due_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(due_s, self._look, context=self._context)

    def _look(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        while self._due and (self._due[0][0] <= now_s or self._due[0][1] not in self._rings):
            # Each by itself: whatever one raises, the others ring.
            loop.call_soon(self._ring, heappop(self._due)[1], context=self._context)
        if self._due:
            self._wake_at(self._due[0][0])

    def _ring(self, number: int) -> None:
        ring = self._rings.pop(number, None)
        if ring is not None:
            ring()
