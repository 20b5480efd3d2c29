"""Dead letters: what was given up, and what became of it since, as far as the events of its run and operators say."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from bus.causes import cause_of
from bus.dead import LETTER, UNREADABLE, Standing, Unreadable, read
from bus.envelope import Envelope, decode_data
from bus.events import (
    Event,
    PhaseCancelled,
    PhaseCompleted,
    PhaseSkipped,
    PhaseUndoing,
    RunArchived,
    RunRedriven,
)
from bus.happening import Happening
from bus.verdicts import LETTER_DISCARDED, LETTER_REDRIVEN, LetterDiscarded, LetterRedriven
from projections.projection import MEMORY, Projection, Rows


class Letter(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A dead letter; `number` is its position in the log, `cause` the key of those that died alike.

    Of bytes that nobody could read there is no run. `settled_at` is when its standing last changed, `by` who did that.
    """

    number: int
    capability: str
    cause: str
    problem: str
    standing: Standing = "open"
    run: str = ""
    plan: str = ""
    phase: str = ""
    item: int | None = None
    attempt: int = 0
    died_at: datetime
    settled_at: datetime | None = None
    by: str = ""


Deaths = Mapping[str, str]
"""Of a run, by phase, or by phase and item: the id of the newest letter, unless it is resolved."""


def _fold(rows: Rows[Any], happening: Happening) -> None:
    message = happening.message
    assert message is not None, "what can't be read is set aside before"
    if happening.event is not None:
        _told(rows, happening, happening.event)
    elif happening.kind == "dead":
        _died(rows, happening, message)
    elif message.type == LETTER_REDRIVEN:
        redriven = decode_data(message, _redriven, "a redrive")
        _settle(rows, redriven.letter, "redriven", happening.at, redriven.by)
    elif message.type == LETTER_DISCARDED:
        discarded = decode_data(message, _discarded, "a discard")
        _settle(rows, discarded.letter, "discarded", happening.at, discarded.by)


def _died(rows: Rows[Any], happening: Happening, message: Envelope) -> None:
    letter = read(message)
    if message.id in rows:
        return  # the same death, put on record once more
    found = Letter(
        number=happening.position,
        capability=letter.capability,
        cause=cause_of(letter).key,
        problem="",
        died_at=happening.at,
    )
    if isinstance(letter, Unreadable):
        rows[message.id] = replace(found, problem=letter.reason[:200])
        return
    rows[message.id] = replace(
        found,
        problem=str(letter.problem)[:200],
        run=letter.run,
        plan=letter.plan,
        phase=letter.phase,
        item=letter.item,
        attempt=letter.attempt,
    )
    memory = MEMORY + letter.run
    deaths: Deaths = rows.get(memory) or {}
    place = _place(letter.phase, letter.item)
    if place in deaths:
        _settle(rows, deaths[place], "died_again", happening.at)
    rows[memory] = {**deaths, place: message.id}


def _told(rows: Rows[Any], happening: Happening, event: Event) -> None:
    """What an event of a run means for the letters of that run."""
    memory = f"{MEMORY}{happening.run}"
    deaths: Deaths | None = rows.get(memory)
    if not deaths:
        return
    at = happening.at
    match event:
        case RunRedriven():
            for place in _places(deaths, event.phases):
                is_meant = event.item is None or place in (_place(event.phases[0], event.item), *event.phases[1:])
                if is_meant:
                    _settle(rows, deaths[place], "redriven", at, event.by)
        case PhaseCompleted():
            # Once all items are done, none of them is dead any more.
            _forget(rows, memory, [_place(event.phase, event.item)], "resolved", at)
        case PhaseUndoing():
            _forget(rows, memory, _places(deaths, [event.phase]), "resolved", at)
        case PhaseSkipped():
            _forget(rows, memory, _places(deaths, [event.phase]), "discarded", at, event.by)
        case PhaseCancelled():
            places = [_place(event.phase, event.item)] if event.item is not None else _places(deaths, [event.phase])
            _forget(rows, memory, places, "discarded", at)
        case RunArchived():
            for place in deaths:
                del rows[deaths[place]]
            del rows[memory]
        case _:
            pass


def _forget(rows: Rows[Any], memory: str, places: list[str], standing: Standing, at: datetime, by: str = "") -> None:
    deaths: Deaths = rows[memory]
    for place in places:
        if place in deaths:
            _settle(rows, deaths[place], standing, at, by)
    left = {place: id for place, id in deaths.items() if place not in places}
    if left:
        rows[memory] = left
    else:
        del rows[memory]


def _settle(rows: Rows[Any], id: str, standing: Standing, at: datetime, by: str = "") -> None:
    row: Letter | None = rows.get(id)
    if row is not None:
        rows[id] = replace(row, standing=standing, settled_at=at, by=by)


def _places(deaths: Deaths, phases: object) -> list[str]:
    """Those of these phases, their items included."""
    assert isinstance(phases, tuple | list), "events hold lists of phases"
    return [place for place in deaths if place.partition(":")[0] in phases]


def _place(phase: str, item: int | None) -> str:
    return phase if item is None else f"{phase}:{item}"


_redriven = msgspec.json.Decoder(LetterRedriven)
_discarded = msgspec.json.Decoder(LetterDiscarded)

DEAD: Projection[Any] = Projection(
    name="dead",
    version=1,
    row=Letter,
    memory=dict[str, str],
    fold=_fold,
    subjects=["run.*", "dead.*", "ops.dead"],
    types=frozenset({LETTER, UNREADABLE, LETTER_REDRIVEN, LETTER_DISCARDED})
    | {
        str(each.__struct_config__.tag)
        for each in (PhaseCompleted, PhaseCancelled, PhaseSkipped, PhaseUndoing, RunArchived, RunRedriven)
    },
)
"""Every dead letter by its id, and how it stands."""
