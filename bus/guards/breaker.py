"""A circuit breaker's rules: when it opens, who may try again, when it closes.

Each transition is an event that says all there is to know, so the newest one alone is the state; it is stored at the
version its writer had seen. That is what makes the probe of a half-open breaker one: of those who ask for it at the
same moment, only one can append. Pure: chance and time come in as arguments.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal, get_args

import msgspec

from bus.errors import CircuitOpen, SettingsError
from bus.format.envelope import Envelope, decode_data
from bus.problem import ErrorClass, Problem
from bus.rules.events import Instant

OPENED, PROBING, CLOSED = "breaker.opened.v1", "breaker.probing.v1", "breaker.closed.v1"

# Clocks agree to within this: nobody takes a probe over before its prober has surely given it up.
_GRACE = timedelta(seconds=2)
_LONGEST_S = 86_400.0
_TOO_MANY_REQUESTS = 429


class Breaker(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """When a breaker opens, and for how long. Raises SettingsError for what can't work.

    It opens when `failures` of the calls of the last `window_s` (a share, 0 to 1) have failed, and there were `calls`
    of them or more. After `cooldown_s`, which doubles up to `longest_s` as long as the probe fails, one call is let
    through for at most `probe_s`. `timeout_s` bounds every call. A call has failed if its error is of a class that
    `counts`; an HTTP 429 says that the service is well and busy.
    """

    failures: float = 0.5
    calls: int = 10
    window_s: float = 30.0
    cooldown_s: float = 5.0
    longest_s: float = 300.0
    probe_s: float = 30.0
    timeout_s: float | None = None
    counts: tuple[ErrorClass, ...] = ("dependency", "transient", "unknown")

    def __post_init__(self) -> None:
        if not 0 < self.failures <= 1:
            raise SettingsError(f"breaker: failures is a share over 0, at most 1, not {self.failures}")
        if self.calls < 1:
            raise SettingsError(f"breaker: calls must be 1 or more, not {self.calls}")
        for field in ("window_s", "cooldown_s", "longest_s", "probe_s", "timeout_s"):
            value = getattr(self, field)
            if value is not None and not 0 < value <= _LONGEST_S:
                raise SettingsError(f"breaker: {field} must be over 0, at most a day, not {value}")
        unknown = set(self.counts) - set(get_args(ErrorClass))
        if unknown:
            raise SettingsError(f"breaker: counts names no error class {min(unknown)!r}")

    def is_failure(self, problem: Problem) -> bool:
        return (
            problem.error_class in self.counts
            and problem.code not in ("retry_asked", "handed_back")
            and problem.status != _TOO_MANY_REQUESTS
        )

    def is_answer(self, problem: Problem) -> bool:
        """Whether the service was there and said no: a failure of the call, not of the service."""
        return problem.error_class not in self.counts and problem.code in ("handler_error", "rejected")

    def cooldown(self, trips: int, chance: float) -> timedelta:
        """How long it stays open after so many openings in a row; `chance` in [0, 1) adds up to a quarter."""
        return timedelta(seconds=min(self.cooldown_s * 2.0 ** min(trips - 1, 32), self.longest_s) * (1 + chance / 4))


class BreakerOpened(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """No call goes through until `retry_at`; without one, until somebody closes it. `trips` counts such times in a row.

    `failures` of `calls` is what was counted.
    """

    breaker: str
    by: str
    retry_at: Instant | None = None
    trips: int = 1
    failures: int = 0
    calls: int = 0
    reason: str = ""


class BreakerProbing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One call goes through, the one called `probe`; until `until`, no other does."""

    breaker: str
    by: str
    probe: str
    until: Instant
    trips: int = 1


class BreakerClosed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Every call goes through."""

    breaker: str
    by: str
    reason: str = ""


Transition = BreakerOpened | BreakerProbing | BreakerClosed
TYPES: dict[str, type[Transition]] = {OPENED: BreakerOpened, PROBING: BreakerProbing, CLOSED: BreakerClosed}
_WIRE = {type: wire for wire, type in TYPES.items()}
_DECODERS = {wire: msgspec.json.Decoder(type) for wire, type in TYPES.items()}


class BreakerState(msgspec.Struct, frozen=True, kw_only=True):
    """How a breaker stands since its newest transition, which is at `position` of the log; 0 for none."""

    breaker: str
    status: Literal["closed", "open", "half_open"] = "closed"
    since: datetime | None = None
    by: str = ""
    reason: str = ""
    trips: int = 0
    retry_at: datetime | None = None
    probe: str = ""
    position: int = 0

    def admits(self, now: datetime) -> bool:
        """Whether a call may go through, if need be as the probe."""
        if self.status == "closed":
            return True
        at = self.may_probe_at
        return at is not None and at <= now

    @property
    def may_probe_at(self) -> datetime | None:
        """When somebody may try; None: not before somebody closes it, or no need to."""
        if self.status == "half_open" and self.retry_at is not None:
            return self.retry_at + _GRACE
        return self.retry_at

    def refusal(self, policy: Breaker, now: datetime, chance: float) -> CircuitOpen:
        """What a call meets that is not let through. Whoever waits as long as it says comes back spread by chance."""
        at = self.may_probe_at
        left_s = max((at - now).total_seconds(), 0.0) if at is not None else policy.longest_s
        if self.status == "half_open":
            # The probe has probably ended long before its deadline.
            left_s = min(left_s, policy.cooldown_s)
        return CircuitOpen(self.breaker, left_s + chance * max(left_s, policy.cooldown_s) / 2, self.reason)


def wire_type(event: Transition) -> str:
    return _WIRE[type(event)]


def read(message: Envelope, breaker: str, position: int) -> BreakerState | None:
    """The state after a transition as it stands in the log; None if it is of a type not known here.

    Raises MalformedMessage.
    """
    decoder = _DECODERS.get(message.type)
    if decoder is None:
        return None
    return after(decode_data(message, decoder, "a breaker's transition"), message.time, position, breaker)


def after(event: Transition, at: datetime, position: int, breaker: str) -> BreakerState:
    """The state after a transition, whatever was before it."""
    match event:
        case BreakerOpened():
            return BreakerState(
                breaker=breaker,
                status="open",
                since=at,
                by=event.by,
                reason=event.reason,
                trips=event.trips,
                retry_at=event.retry_at,
                position=position,
            )
        case BreakerProbing():
            return BreakerState(
                breaker=breaker,
                status="half_open",
                since=at,
                by=event.by,
                trips=event.trips,
                retry_at=event.until,
                probe=event.probe,
                position=position,
            )
        case BreakerClosed():
            return BreakerState(breaker=breaker, since=at, by=event.by, reason=event.reason, position=position)


def trip(
    state: BreakerState,
    policy: Breaker,
    *,
    by: str,
    now: datetime,
    chance: float,
    failures: int,
    calls: int,
    problem: Problem | None = None,
) -> BreakerOpened | None:
    """Too many calls have failed. None: it is not closed any more."""
    if state.status != "closed":
        return None
    return BreakerOpened(
        breaker=state.breaker,
        by=by,
        retry_at=now + _wait(policy, 1, chance, problem),
        failures=failures,
        calls=calls,
        reason=str(problem) if problem is not None else "calls of other processes failed",
    )


def probe(
    state: BreakerState, policy: Breaker, *, by: str, now: datetime, chance: float, id: str
) -> BreakerProbing | None:
    """Somebody asks to be let through. None: it is closed, everybody is. Raises CircuitOpen."""
    if state.status == "closed":
        return None
    if not state.admits(now):
        raise state.refusal(policy, now, chance)
    until = now + timedelta(seconds=policy.probe_s)
    return BreakerProbing(breaker=state.breaker, by=by, probe=id, until=until, trips=max(state.trips, 1))


def succeeded(state: BreakerState, *, by: str, probe: str) -> BreakerClosed | None:
    """A probe has gone well, if late: that is what was to be known. None: it is not asked any more."""
    return BreakerClosed(breaker=state.breaker, by=by) if state.status == "half_open" and probe else None


def failed(
    state: BreakerState,
    policy: Breaker,
    *,
    by: str,
    now: datetime,
    chance: float,
    probe: str,
    problem: Problem,
) -> BreakerOpened | None:
    """The probe has failed as well: open again, for longer. None: it is not the one that is awaited."""
    if not _is_awaited(state, probe):
        return None
    trips = state.trips + 1
    retry_at = now + _wait(policy, trips, chance, problem)
    return BreakerOpened(breaker=state.breaker, by=by, retry_at=retry_at, trips=trips, reason=str(problem))


def abandoned(state: BreakerState, *, by: str, now: datetime, probe: str, after_s: float = 0.0) -> BreakerOpened | None:
    """The probe has ended without saying anything about the service: somebody else may try."""
    if not _is_awaited(state, probe):
        return None
    retry_at = now + timedelta(seconds=after_s)
    return BreakerOpened(
        breaker=state.breaker, by=by, retry_at=retry_at, trips=state.trips, reason="the probe proved nothing"
    )


def _wait(policy: Breaker, trips: int, chance: float, problem: Problem | None) -> timedelta:
    """As the policy says, or longer if the service has asked for it."""
    asked_s = problem.retry_after_s if problem is not None else None
    return max(policy.cooldown(trips, chance), timedelta(seconds=asked_s or 0.0))


def _is_awaited(state: BreakerState, probe: str) -> bool:
    return state.status == "half_open" and state.probe == probe
