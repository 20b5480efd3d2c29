"""A fallback: providers of the same answer, in the order they are wanted; whose breaker is open is passed over.

The answer says which one gave it, whether it is a lesser one, and what was wrong with those before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

import msgspec
import structlog

from bus.clock import utc_now
from bus.diagnosis import Reject, problem_of
from bus.errors import BusError, SettingsError
from bus.guards.breaker import Breaker
from bus.guards.circuit import Circuit
from bus.guards.limit import Limit
from bus.problem import ErrorClass, Problem

logger = structlog.get_logger(__name__)

T = TypeVar("T")

_TOO_MANY_REQUESTS = 429
_HOPE: Sequence[ErrorClass] = ("transient", "dependency", "unknown", "configuration", "permanent")


class Provider(msgspec.Struct, Generic[T], frozen=True):
    """Somebody who can answer. `name` is also that of its breaker, whose policy is `breaker`.

    `cost` and `tokens` are what a call is charged with at its `limit`.
    """

    name: str
    call: Callable[..., Awaitable[T]]
    breaker: Breaker | None = None
    limit: Limit | None = None
    cost: float = 0.0
    tokens: float = 0.0


class Miss(msgspec.Struct, frozen=True):
    """A provider that has not answered, and why. `asked` is false if it was passed over."""

    provider: str
    problem: Problem
    asked: bool


class Fallback(msgspec.Struct, Generic[T], frozen=True, omit_defaults=True):
    """An answer, and who gave it: `degraded` if that is not the one that was wanted most.

    A handler may return it whole: then whoever reads the log can see it, too.
    """

    value: T
    provider: str
    degraded: bool = False
    cost: float = 0.0
    misses: tuple[Miss, ...] = ()


class NoProvider(BusError):
    """None of them has answered; `misses` says why. Worth trying again after `retry_after_s`, if that is known."""

    def __init__(self, misses: Sequence[Miss]) -> None:
        super().__init__(
            "no provider has answered: " + "; ".join(f"{each.provider}: {each.problem}" for each in misses)
        )
        self.misses = tuple(misses)
        # As a failure it is like the one that another try may help most.
        self.problem = min((each.problem for each in misses), key=lambda problem: _HOPE.index(problem.error_class))
        waits = [each.problem.retry_after_s for each in misses if each.problem.retry_after_s is not None]
        self.retry_after_s = min(waits, default=None)


async def first_answer(
    providers: Sequence[Provider[T]], circuit: Callable[[Provider[T]], Circuit], arguments: Sequence[Any]
) -> Fallback[T]:
    """Ask them in their order. Raises NoProvider, SettingsError; what is a `Reject` is raised as it is."""
    if not providers:
        raise SettingsError("fallback: there is no provider")
    misses: list[Miss] = []
    for provider in providers:
        is_last = provider is providers[-1]
        was_asked = False
        try:
            async with circuit(provider):
                if provider.limit is not None:
                    # Waiting is for the last one: before it, somebody else can answer now.
                    patience: dict[str, float] = {} if is_last else {"timeout_s": 0.0}
                    await provider.limit.take(tokens=provider.tokens, cost=provider.cost, **patience)
                was_asked = True
                value = await provider.call(*arguments)
        except Reject:
            raise
        except Exception as error:  # noqa: BLE001 - it is recorded on the answer, or raised when nobody answers
            problem = problem_of(error, utc_now())
            misses.append(Miss(provider.name, problem, was_asked))
            logger.warning("provider missed", provider=provider.name, error=str(problem), asked=was_asked)
            await _heed(provider, problem)
            failure = error
            continue
        return Fallback(value, provider.name, bool(misses), provider.cost, tuple(misses))
    raise NoProvider(misses) from failure


async def _heed(provider: Provider[T], problem: Problem) -> None:
    """A provider that says when to come back says it to all."""
    if provider.limit is None or problem.status != _TOO_MANY_REQUESTS or problem.retry_after_s is None:
        return
    try:
        await provider.limit.hold(problem.retry_after_s, reason=str(problem))
    except BusError as error:
        logger.warning("not held", limit=provider.limit.name, error=str(error))
