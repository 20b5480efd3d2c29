"""Halts: an instance is told at once that the log no longer gives it an attempt it holds.

A halt is a hint, like work: it can be lost (the supervisor tells again, see `agents.supervisor`) or forged (the
instance looks into the log before it stops anything).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bus.format.envelope import UNDECODABLE
from bus.registry.presence import Held
from bus.rules.events import (
    Event,
    PhaseAttemptFailed,
    PhaseCancelled,
    PhaseCompleted,
    PhaseFailed,
    PhaseSkipped,
    RunCancelled,
    RunFailed,
)
from bus.rules.run import RunState


class Halt(msgspec.Struct, frozen=True):
    """What an instance need not go on with, and why."""

    held: Sequence[Held]
    reason: str


_ENDS = (PhaseAttemptFailed, PhaseFailed, PhaseSkipped, PhaseCancelled, RunCancelled, RunFailed)
_decoder = msgspec.json.Decoder(Halt)


def read_halt(data: bytes) -> Halt | None:
    """The halt in a message, or None: a malformed one is as good as lost."""
    try:
        return _decoder.decode(data)
    except UNDECODABLE:
        return None


def halts(before: RunState | None, after: RunState, happened: Sequence[Event]) -> dict[str, Halt]:
    """By instance, what these events took from it. What it has handed in was not taken."""
    ends = [event for event in happened if isinstance(event, _ENDS)]
    if before is None or not ends:
        return {}
    touched = {event.phase for event in ends if not isinstance(event, RunCancelled | RunFailed)}
    done = {(each.phase, each.item, each.attempt) for each in happened if isinstance(each, PhaseCompleted)}
    lost: dict[str, list[Held]] = {}
    for phase, item, attempt in before.held():
        held = Held(before.run, phase.key, item.index, attempt.number)
        is_done = (held.phase, held.item, held.attempt) in done
        if phase.key in touched and not is_done and not is_held(after, held, attempt.instance):
            lost.setdefault(attempt.instance, []).append(held)
    # What came last is what led to the rest: a run's end stands behind those of its phases.
    reason = _reason(ends[-1])
    return {instance: Halt(held, reason) for instance, held in lost.items()}


def is_held(state: RunState, held: Held, instance: str) -> bool:
    """Whether the log gives the attempt to the instance."""
    phase = state.phases.get(held.phase)
    item = phase.item(held.item) if phase is not None and state.is_open else None
    holder = item.holder if item is not None else None
    return holder is not None and (holder.number, holder.instance) == (held.attempt, instance)


def _reason(event: Event) -> str:
    match event:
        case RunCancelled():
            return f"the run was cancelled by {event.by}" + (f": {event.reason}" if event.reason else "")
        case RunFailed() | PhaseFailed() | PhaseAttemptFailed():
            return str(event.problem)
        case PhaseSkipped() | PhaseCancelled():
            return event.reason or "the phase was stopped"
        case _:
            return "the attempt is over"
