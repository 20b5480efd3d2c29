"""Commands: what can be asked of a run. Each is answered by events, or refused with a reason (`bus.decide`)."""

from __future__ import annotations

import msgspec

from bus.events import Cause
from bus.plan import Plan
from bus.problem import Problem


class Begin(msgspec.Struct, frozen=True):
    """Start the run."""

    plan: Plan
    input: msgspec.Raw


class Take(msgspec.Struct, frozen=True):
    """An instance takes a ready attempt. `timeout_s` is the capability's own bound, used if the plan has none."""

    phase: str
    item: int | None
    attempt: int
    capability: str
    agent: str
    instance: str
    timeout_s: float


class Offer(msgspec.Struct, frozen=True):
    """The holder's hands will be free: it takes more work for the capability with the same commit, if there is any."""

    capability: str
    agent: str
    timeout_s: float


class Complete(msgspec.Struct, frozen=True):
    """The holder hands in its result. With `offer` it goes on with one item that this very result makes ready."""

    phase: str
    item: int | None
    attempt: int
    instance: str
    output: msgspec.Raw
    offer: Offer | None = None


class Fail(msgspec.Struct, frozen=True):
    """The attempt is over without a result: said by its holder, or by whoever found it dead, late or unclaimed."""

    phase: str
    item: int | None
    attempt: int
    instance: str
    problem: Problem
    cause: Cause = "error"
    evidence: str = ""


class Progress(msgspec.Struct, frozen=True):
    """The holder says how far it is, 0 to 1."""

    phase: str
    item: int | None
    attempt: int
    instance: str
    fraction: float
    note: str


class Answer(msgspec.Struct, frozen=True):
    """Somebody, or the expiry rule, answers a gate."""

    phase: str
    approve: bool
    by: str
    comment: str = ""
    expired: bool = False


class Cancel(msgspec.Struct, frozen=True):
    """Somebody stops the run."""

    by: str
    reason: str = ""


class Expire(msgspec.Struct, frozen=True):
    """The run's own deadline has passed."""


class Redrive(msgspec.Struct, frozen=True):
    """Go on with a run that failed or was stopped: `phases`, or all that did not succeed."""

    by: str
    phases: tuple[str, ...] = ()


Command = Begin | Take | Complete | Fail | Progress | Answer | Cancel | Expire | Redrive
