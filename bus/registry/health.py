"""Health: how well an instance is, by its own numbers, and what it therefore asks for.

Pure. A healthy instance is served first, a degraded one when no healthy one asks, an unwell one takes nothing until it
is better. It gets worse at once, and better one step at a time, when it has been so for a while: no flapping.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

Level = Literal["healthy", "degraded", "unwell"]
STANDBY_RANK = 9
"""Of a standby instance: it is served when nobody else asks."""

_LEVELS: tuple[Level, ...] = ("healthy", "degraded", "unwell")
_RANKS: dict[Level, int | None] = {"healthy": 0, "degraded": 5, "unwell": None}
# So late may the event loop be, and so much of its limit may the memory be, before it is degraded, and unwell.
_LAG_S = (0.5, 2.0)
_MEMORY = (0.8, 0.95)
# Better means clearly better, this often in a row.
_BETTER = 0.8
_CALM_LOOKS = 3


class Vitals(msgspec.Struct, frozen=True):
    """What is measured. `memory_limit_mb` None: there is none. `open_breakers` are those that its handlers use."""

    lag_s: float
    memory_mb: int = 0
    memory_limit_mb: int | None = None
    open_breakers: Sequence[str] = ()


class Health(msgspec.Struct, frozen=True):
    """How well it is, `why`, and for how many looks in a row it has been better than that."""

    level: Level = "healthy"
    why: str = ""
    calm: int = 0

    def rank(self, *, standby: bool) -> int | None:
        """The number to ask with, from 0 on, lower ones being served first; None: not at all."""
        rank = _RANKS[self.level]
        return STANDBY_RANK if standby and rank is not None else rank


def examined(before: Health, vitals: Vitals) -> Health:
    """The health after one more look."""
    worst, why = max(_findings(vitals, 1.0), key=_severity, default=("healthy", ""))
    if _LEVELS.index(worst) >= _LEVELS.index(before.level):
        return Health(worst, why if worst != "healthy" else "")
    near, _ = max(_findings(vitals, _BETTER), key=_severity, default=("healthy", ""))
    if _LEVELS.index(near) >= _LEVELS.index(before.level):
        return Health(before.level, before.why)
    if before.calm + 1 < _CALM_LOOKS:
        return Health(before.level, before.why, before.calm + 1)
    level = _LEVELS[_LEVELS.index(before.level) - 1]
    return Health(level, (why or f"it was {before.level}: {before.why}") if level != "healthy" else "")


def _findings(vitals: Vitals, share: float) -> Iterator[tuple[Level, str]]:
    """Everything that is wrong, measured against this share of each bound."""
    yield _over(vitals.lag_s, _LAG_S, share), f"its event loop is {vitals.lag_s:.1f} s late"
    if vitals.memory_limit_mb is not None:
        used = vitals.memory_mb / vitals.memory_limit_mb
        yield _over(used, _MEMORY, share), f"it takes {vitals.memory_mb} of {vitals.memory_limit_mb} MB"
    if vitals.open_breakers:
        yield "degraded", f"breaker {', '.join(sorted(vitals.open_breakers))} is open"


def _over(value: float, bounds: tuple[float, float], share: float) -> Level:
    return _LEVELS[sum(value >= bound * share for bound in bounds)]


def _severity(finding: tuple[Level, str]) -> int:
    return _LEVELS.index(finding[0])
