"""Alarms: many wait as long for something that seldom does not come, with one timer for them all.

A timer of the event loop for each would cost more than what is waited for: most are cancelled at once, and lie in its
heap until their time has come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

Ring = Callable[[float], None]
"""Called with the time it was due at, by the event loop's clock."""


class Alarms:
    """Each rings `after_s` after it was set, unless it is cleared before. Of one event loop."""

    def __init__(self, after_s: float) -> None:
        self._after_s = after_s
        # They all wait as long, so that who was set first is due first.
        self._due_s: dict[Ring, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def set(self, ring: Ring) -> None:
        """Again, if it was set before."""
        loop = asyncio.get_running_loop()
        self.clear(ring)
        self._due_s[ring] = due_s = loop.time() + self._after_s
        if self._timer is None:
            self._timer = loop.call_at(due_s, self._look)

    def clear(self, ring: Ring) -> None:
        """Nothing, if it has rung or was never set."""
        self._due_s.pop(ring, None)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        due = [(ring, due_s) for ring, due_s in self._due_s.items() if due_s <= now_s]
        for ring, _ in due:
            self.clear(ring)
        next_s = next(iter(self._due_s.values()), None)
        self._timer = loop.call_at(next_s, self._look) if next_s is not None else None
        for ring, due_s in due:
            ring(due_s)
