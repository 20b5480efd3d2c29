"""A sketch: how long things took, as counts of durations that are about equal. Small, and two of them can be added up.

Each bucket is a tenth wider than the one before, from a millisecond to more than a day, so a percentile read from it is
off by 5 % at most, and there are at most 194 buckets, of which only those that hold something are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

_GROWTH = math.log(1.1)
_SHORTEST_S = 0.001
_BUCKETS = 194
_MIDDLE = 2 / (1 + 1.1)


class Sketch(msgspec.Struct, frozen=True, gc=False):
    """How many durations fell into each bucket, and the sum and the longest of all, in seconds."""

    counts: Mapping[int, int] = {}
    sum_s: float = 0.0
    longest_s: float = 0.0

    @property
    def count(self) -> int:
        return sum(self.counts.values())

    @property
    def mean_s(self) -> float | None:
        """None: there was nothing."""
        return self.sum_s / self.count if self.counts else None

    def with_one(self, duration_s: float) -> Sketch:
        """One more. A negative duration, of two clocks that disagree, is one of nothing."""
        adding = Adding(self)
        adding.add(duration_s)
        return adding.sketch

    def percentile(self, share: float) -> float | None:
        """The duration that `share` (0 to 1) of all do not exceed, in seconds. None: there was nothing."""
        rank, seen = math.ceil(share * self.count), 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                # In the middle of the bucket, as far as it goes.
                return min(_SHORTEST_S * math.exp(bucket * _GROWTH) * _MIDDLE if bucket else 0.0, self.longest_s)
        return None


class Adding:
    """A sketch while durations are added to it."""

    __slots__ = ("_before", "_counts", "_longest_s", "_sum_s")

    def __init__(self, before: Sketch) -> None:
        self._before = before
        self._counts: dict[int, int] | None = None
        self._sum_s, self._longest_s = before.sum_s, before.longest_s

    def add(self, duration_s: float) -> None:
        """One more, as `Sketch.with_one`."""
        if self._counts is None:
            self._counts = dict(self._before.counts)
        bucket = 0
        if duration_s > _SHORTEST_S:
            bucket = min(math.ceil(math.log(duration_s / _SHORTEST_S) / _GROWTH), _BUCKETS - 1)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        if duration_s > 0.0:
            self._sum_s += duration_s
            self._longest_s = max(self._longest_s, duration_s)

    @property
    def sketch(self) -> Sketch:
        return self._before if self._counts is None else Sketch(self._counts, self._sum_s, self._longest_s)


def together(sketches: Iterable[Sketch]) -> Sketch:
    """One sketch of all durations that any of them has."""
    counts: dict[int, int] = {}
    sum_s = longest_s = 0.0
    for each in sketches:
        for bucket, count in each.counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
        sum_s += each.sum_s
        longest_s = max(longest_s, each.longest_s)
    return Sketch(counts, sum_s, longest_s)
