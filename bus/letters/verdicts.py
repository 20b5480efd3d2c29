"""Verdicts: what somebody decided about dead letters. Records on `bus.ops.dead`; letters are named by their ids.

By their ids, because a number is a position in one log: an import into another gives it a new one.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from bus.letters.wanted import Wanted

LETTER_REDRIVEN = "ops.letter_redriven.v1"
LETTER_DISCARDED = "ops.letter_discarded.v1"
REDRIVE_BEGUN = "ops.redrive_begun.v1"
REDRIVE_ENDED = "ops.redrive_ended.v1"
CAPABILITY_RELEASED = "ops.capability_released.v1"

Ending = Literal["done", "capped", "died_again"]
"""Why a redrive of many is over: nothing is left, its cap is reached, or what was tried first has died again."""


class LetterRedriven(msgspec.Struct, frozen=True, omit_defaults=True):
    """Somebody sent the bytes of an unreadable message again to where they came from; `letter` is its record's id."""

    by: str
    letter: str
    subject: str
    reason: str = ""
    operation: str = ""


class LetterDiscarded(msgspec.Struct, frozen=True, omit_defaults=True):
    """Nobody wants the work of this letter any more. It is kept, and can still be redriven."""

    by: str
    letter: str
    reason: str = ""


class Terms(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How many letters are redriven: at most `most`, `pace_per_s` of them, the first one tried alone with `try_one`.

    `transform` names the function that makes the new input of the old one.
    """

    most: int | None = None
    pace_per_s: float | None = None
    try_one: bool = False
    transform: str = ""


class RedriveBegun(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Somebody redrives the letters up to position `upto` that are `wanted`; each of its redrives names `operation`."""

    by: str
    operation: str
    wanted: Wanted
    upto: int
    terms: Terms = Terms()
    reason: str = ""


class RedriveEnded(msgspec.Struct, frozen=True, omit_defaults=True):
    """That operation is over: so many were redriven, by it and whoever resumed it, and so many could not be."""

    by: str
    operation: str
    ending: Ending
    redriven: int
    refused: int = 0


class CapabilityReleased(msgspec.Struct, frozen=True, omit_defaults=True):
    """A capability that takes nothing after a death (`on_dead="pause"`) goes on: letters up to here don't count."""

    by: str
    capability: str
    reason: str = ""
