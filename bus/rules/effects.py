"""Effects: what handlers do outside, each thing once, and how far they are. The rules of what is written down of both.

An effect is intended before and settled after. What is neither done nor known not to be is *unknown*: nobody repeats it
before a handler has found out, or a person vouches for it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from bus.errors import Refused
from bus.rules.commands import Intend, Save, Settle, Vouch
from bus.rules.draft import Draft
from bus.rules.events import PhaseEffectDone, PhaseEffectIntended, PhaseEffectNotDone, PhaseSaved
from bus.rules.holding import find, label, under_way
from bus.rules.run import Item, PhaseState


class Done(msgspec.Struct, frozen=True):
    """It happened, and this came of it: what `reconcile` returns, or a person says."""

    outcome: Any = None


class NotDone(Exception):
    """It did not happen, for certain: raised by an act, returned by `reconcile`, or said by a person.

    Whatever else an act raises may have come after it had its effect, a time-out above all.
    """


def intend(draft: Draft, command: Intend) -> None:
    phase, item = under_way(draft, command)
    if command.effect in item.effects:
        raise Refused(f"{command.effect!r} of {label(phase, item)} was begun before")
    draft.emit(PhaseEffectIntended(phase=phase.key, item=item.index, attempt=command.attempt, effect=command.effect))


def settle(draft: Draft, command: Settle) -> None:
    phase, item = under_way(draft, command)
    if command.effect not in item.unknown:
        raise Refused(f"{command.effect!r} of {label(phase, item)} is not under way")
    _conclude(draft, phase, item, command)


def vouch(draft: Draft, command: Vouch) -> None:
    phase, item = find(draft.state, command.phase, command.item)
    if command.effect not in item.unknown:
        known = ", ".join(map(repr, item.unknown)) or "none"
        raise Refused(f"{command.effect!r} of {label(phase, item)} is not an effect of unknown outcome: {known}")
    if item.holder is not None:
        raise Refused(f"attempt {item.attempt} of {label(phase, item)} is under way: its handler knows, or will ask")
    _conclude(draft, phase, item, command)


def save(draft: Draft, command: Save) -> None:
    phase, item = under_way(draft, command)
    draft.emit(PhaseSaved(phase=phase.key, item=item.index, attempt=command.attempt, state=command.state))


def _conclude(draft: Draft, phase: PhaseState, item: Item, command: Settle | Vouch) -> None:
    by = command.by if isinstance(command, Vouch) else ""
    if command.outcome is msgspec.UNSET:
        draft.emit(
            PhaseEffectNotDone(
                phase=phase.key,
                item=item.index,
                attempt=item.attempt,
                effect=command.effect,
                by=by,
                reason=command.reason,
            )
        )
        return
    draft.emit(
        PhaseEffectDone(
            phase=phase.key,
            item=item.index,
            attempt=item.attempt,
            effect=command.effect,
            outcome=command.outcome,
            by=by,
            reason=command.reason,
        )
    )
