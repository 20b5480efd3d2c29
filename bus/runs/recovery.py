"""What a supervisor says of its own work: what it recovered and why, and what waits because nobody offers to do it.

An attempt's own end is an event of its run, with its cause. This is the same seen from the other side: one place in the
log (`bus.ops.recovery`) that tells what happened across all runs, also of work that was only sent again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from bus.rules.events import Cause, Instant

RECOVERED = "ops.recovered.v1"
STARVED = "ops.starved.v1"
AREA = "recovery"

_LISTED = 100


class Recovered(msgspec.Struct, frozen=True, omit_defaults=True):
    """One piece of work that goes on, and why it did not: its attempt's cause, or `work_lost`, if its message was."""

    run: str
    phase: str
    attempt: int
    cause: Cause | Literal["work_lost"]
    item: int | None = None
    instance: str = ""
    evidence: str = ""


class Recovery(msgspec.Struct, frozen=True, omit_defaults=True):
    """What supervisor `by` recovered in one go; `others` counts those that are not listed.

    With `on_start`, it had happened before this supervisor began to lead.
    """

    by: str
    recovered: tuple[Recovered, ...]
    others: int = 0
    on_start: bool = False


class Starved(msgspec.Struct, frozen=True, omit_defaults=True):
    """No live agent offers the capability, and `waiting` pieces of work need it; the oldest, `phase` of `run`, since
    then. It is said once, until somebody offers it. With `versions`, nobody of those whom its route gives any work."""

    by: str
    capability: str
    since: Instant
    run: str
    phase: str
    waiting: int
    versions: str = ""


def recovery(by: str, recovered: Sequence[Recovered], *, on_start: bool) -> Recovery:
    """The record of these."""
    return Recovery(by, tuple(recovered[:_LISTED]), max(len(recovered) - _LISTED, 0), on_start)
