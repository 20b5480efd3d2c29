"""The rhythm of what a process does again and again: at moments that it shares with others who know nothing of it.

A thousand beats a second, each at its own moment, wake the server as often; five times two hundred cost it a
quarter. So moments are those of a grid on the wall clock, and each name has a place of its own in it: the same for
every multiple of a time, so that what is done every third second meets what is done every second.

Pure. That clocks differ does no harm: only less meets then.
"""

from __future__ import annotations

from zlib import crc32

_GRID_S = 0.2
_TOO_SOON = 0.02
"""A moment that is nearer than this share of the time is the one that has just been."""


def until_next_s(now_s: float, every_s: float, whose: str) -> float:
    """How long it is from now (seconds on the wall clock) to the next moment of a name: at most `every_s`, about."""
    places = max(round(every_s / _GRID_S), 1)
    own_s = crc32(whose.encode()) % places * (every_s / places)
    left_s = (own_s - now_s) % every_s
    return left_s if left_s > every_s * _TOO_SOON else left_s + every_s
