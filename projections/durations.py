"""Durations: what past ones say about the next. Seconds on the outside, logarithms on the inside.

How long work takes is skewed: twice as long is as likely as half as long. On a logarithmic scale it is close to a
normal distribution, and a few past ones tell its centre and, with a margin for how few they are, its spread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from heapq import nlargest
from random import Random
from statistics import NormalDist

import msgspec

SHORTEST_S = 0.001
"""Clocks differ between machines: shorter, or ending before it began, counts as this."""

_PRIOR_SPREAD = 0.5
"""What one past duration, which shows no spread at all, is given: two in three are within a factor of 1.65."""

_DRAWS = 200
_NORMAL = NormalDist()
_DEVIATES = tuple(_NORMAL.inv_cdf((step + 0.5) / 256) for step in range(256))


class Durations(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """Past durations of one kind of work, at least one.

    `logs` are their natural logarithms (of seconds), `center` the mean of these. `spread` is the standard deviation
    of the population they come from, estimated as if one more of `_PRIOR_SPREAD` had been seen. `noise` is the part
    of the next one's deviation that resampling so few would not show. `mean_s` and `longest_s` are in seconds.
    """

    logs: tuple[float, ...]
    center: float
    spread: float
    noise: float
    mean_s: float
    longest_s: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Durations:
        """Raises ValueError if there are none."""
        values = [max(value, SHORTEST_S) for value in seconds]
        if not values:
            raise ValueError("no past durations")
        count = len(values)
        logs = tuple(map(math.log, values))
        center = sum(logs) / count
        squares = sum((log - center) ** 2 for log in logs)
        variance = (squares + _PRIOR_SPREAD**2) / count
        # The next one deviates from a center that is itself uncertain, by a `count`th of the variance.
        unseen = variance * (1 + 1 / count) - squares / count
        return cls(
            logs=logs,
            center=center,
            spread=math.sqrt(variance),
            noise=math.sqrt(max(unseen, 0.0)),
            mean_s=sum(values) / count,
            longest_s=max(values),
        )

    @property
    def count(self) -> int:
        return len(self.logs)

    @cached_property
    def draws(self) -> list[float]:
        """200 durations that the next one may have, in seconds and in order: past ones resampled, each blurred by
        `noise`. Always the same."""
        random = Random(self.count)  # noqa: S311 - a sample, not a secret
        logs, blurs = random.choices(self.logs, k=_DRAWS), deviates(random, _DRAWS)
        return sorted(math.exp(log + self.noise * blur) for log, blur in zip(logs, blurs, strict=True))

    @cached_property
    def second_longest_s(self) -> float:
        """The longest but one, or the only one."""
        return math.exp(nlargest(2, self.logs)[-1])

    @property
    def squares(self) -> float:
        """The sum of the squared deviations from the center."""
        return sum((log - self.center) ** 2 for log in self.logs)

    def upper_s(self, share: float, likeness: float | None = None, like: int = 0) -> float:
        """The seconds that this share of what comes next (0.5 to 1) will not exceed, wider the fewer there are.

        `likeness` is the variance of what is like it, which counts as `like` more of these.
        Source: prediction interval of a normal distribution, Student's t with `count - 1` degrees of freedom.
        """
        variance, freedom = self.spread**2, max(self.count - 1, 1)
        if likeness is not None:
            variance, freedom = (self.squares + like * likeness) / (freedom + like), freedom + like
        deviation = math.sqrt(variance * (1 + 1 / self.count))
        return math.exp(self.center + deviation * _student(share, freedom))


def deviates(random: Random, count: int) -> list[float]:
    """Standard normal ones."""
    return random.choices(_DEVIATES, k=count)


def _student(share: float, freedom: int) -> float:
    """The quantile of Student's t, to 1 % for 7 degrees of freedom or more. Source: Abramowitz and Stegun, 26.7.5."""
    z = _NORMAL.inv_cdf(share)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return math.fsum(term / math.pow(freedom, power) for power, term in enumerate(terms))
