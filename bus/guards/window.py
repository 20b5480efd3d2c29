"""A window: how many calls of the last seconds went well, and how many failed."""

from __future__ import annotations

from collections import deque

_SLOTS = 10


class Window:
    """The last `window_s` seconds, in slots of a tenth of it. Times are monotonic seconds."""

    def __init__(self, window_s: float) -> None:
        self._slot_s = window_s / _SLOTS
        self._slots: deque[list[int]] = deque()

    def add(self, now_s: float, well: int, failed: int) -> None:
        slot = int(now_s / self._slot_s)
        if self._slots and self._slots[-1][0] == slot:
            self._slots[-1][1] += well
            self._slots[-1][2] += failed
        else:
            self._slots.append([slot, well, failed])
            self._forget(slot)

    def totals(self, now_s: float) -> tuple[int, int]:
        """Went well, failed."""
        self._forget(int(now_s / self._slot_s))
        return sum(slot[1] for slot in self._slots), sum(slot[2] for slot in self._slots)

    def clear(self) -> None:
        self._slots.clear()

    def _forget(self, slot: int) -> None:
        while self._slots and self._slots[0][0] <= slot - _SLOTS:
            self._slots.popleft()
