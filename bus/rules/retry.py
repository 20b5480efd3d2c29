"""When to try again: one pure function of the policy, the problem and what has failed before."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import overload

import msgspec

from bus.errors import BusError, PlanError
from bus.problem import Problem

_LONGEST_DELAY_S = 3600.0
_LONGEST_POLICY_S = 7 * 86_400.0


class RetryPolicy(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, forbid_unknown_fields=True):
    """How often each class of failure is tried again, and the first delay, which doubles each time.

    Counts are retries: `transient=5` allows six attempts. `configuration` and `permanent` failures are never tried
    again: nothing changes until a person acts. `lost` counts attempts whose process died, hung or missed its
    deadline; the first of them is tried again at once, because the work was probably not at fault.
    """

    transient: int = 4
    dependency: int = 3
    unknown: int = 1
    lost: int = 3
    transient_s: float = 0.5
    dependency_s: float = 5.0
    unknown_s: float = 1.0
    lost_s: float = 0.5
    max_s: float = 300.0

    def __post_init__(self) -> None:
        for field, value in msgspec.structs.asdict(self).items():
            if not 0 <= value < float("inf"):
                raise ValueError(f"retry.{field} is {value}, it must be 0 or more")
        if self.max_s > _LONGEST_POLICY_S:
            raise ValueError(f"retry.max_s is {self.max_s}, it must be at most 1 week")


NAMED: dict[str, RetryPolicy] = {
    "default": RetryPolicy(),
    "source": RetryPolicy(
        transient=3,
        transient_s=60.0,
        dependency=3,
        dependency_s=300.0,
        unknown=1,
        unknown_s=60.0,
        max_s=1200.0,
    ),
}
"""Policies by name: `source` waits in minutes, for agents whose services take that long to come back: 1, 2 and 4 after
something transient, 5, 10 and 20 for a dependency."""


def named(name: str) -> RetryPolicy:
    """The policy of that name. Raises ValueError."""
    if name not in NAMED:
        raise ValueError(f"there is no retry policy {name!r}: use {', '.join(NAMED)}, or write one")
    return NAMED[name]


class RetryLater(BusError):
    """Raised by a handler: not now. Counts as a transient failure, tried again after `delay_s`."""

    def __init__(self, delay_s: float, reason: str = "") -> None:
        if not 0 <= delay_s < float("inf"):
            raise ValueError(f"a delay of {delay_s} s can't be waited")
        super().__init__(reason or f"again in {delay_s} s")
        self.delay_s = delay_s


@overload
def Retry(delay_s: float, reason: str = ...) -> RetryLater: ...


@overload
def Retry(name: str, /) -> RetryPolicy: ...


@overload
def Retry(
    *,
    transient: int = ...,
    dependency: int = ...,
    unknown: int = ...,
    lost: int = ...,
    transient_s: float = ...,
    dependency_s: float = ...,
    unknown_s: float = ...,
    lost_s: float = ...,
    max_s: float = ...,
) -> RetryPolicy: ...


def Retry(  # noqa: N802
    delay_s: float | str | None = None, reason: str = "", **policy: float
) -> RetryLater | RetryPolicy:
    """One word for both sides: `raise Retry(2.5)` in a handler, `Phase(..., retry=Retry(transient=5))` in a plan.

    `Retry("source")` is a policy by its name (`NAMED`). Raises PlanError for a policy that can't be one.
    """
    try:
        if isinstance(delay_s, str):
            return named(delay_s)
        if delay_s is None:
            return msgspec.convert(policy, RetryPolicy)
    except ValueError as error:
        raise PlanError(f"Retry: {error}") from None
    return RetryLater(delay_s, reason)


def delay_s(policy: RetryPolicy, problem: Problem, earlier: Iterable[Problem], *, seed: str) -> float | None:
    """Seconds to wait before the next attempt, or None: give up.

    `earlier` are the problems of the attempts before this one; only those of the same kind count against the
    policy. `seed` fixes the jitter (50-100 % of the delay), so that the same history gives the same decision.
    """
    if problem.code == "handed_back":
        return 0.0
    kind = _kind(problem)
    allowed, first_s = _allowance(policy, kind)
    tries = sum(1 for other in earlier if _kind(other) == kind)
    if tries >= allowed:
        return None
    if problem.retry_after_s is not None and not math.isnan(problem.retry_after_s):
        return min(max(problem.retry_after_s, 0.0), _LONGEST_DELAY_S)
    if kind == "lost" and tries == 0:
        return 0.0
    delay = min(first_s * 2.0 ** min(tries, 32), policy.max_s)
    return delay * (0.5 + _fraction(f"{seed}/{tries}") / 2)


def _kind(problem: Problem) -> str:
    if problem.code == "handed_back":
        return problem.code
    return "lost" if problem.code in {"lost", "timed_out", "silent"} else problem.error_class


def _allowance(policy: RetryPolicy, kind: str) -> tuple[int, float]:
    match kind:
        case "lost":
            return policy.lost, policy.lost_s
        case "transient":
            return policy.transient, policy.transient_s
        case "dependency":
            return policy.dependency, policy.dependency_s
        case "unknown":
            return policy.unknown, policy.unknown_s
        case _:
            return 0, 0.0


def _fraction(seed: str) -> float:
    """A number in [0, 1) that only depends on `seed`."""
    return int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=4).digest(), "big") / 2**32
