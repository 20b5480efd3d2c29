"""Dead letters: what was given up, and what somebody decided about it.

How the work of a letter stands is not among that: it follows from its run, so it is asked of the run's row.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec
from msgspec.structs import replace

from bus.format.envelope import decode_data
from bus.history.happening import Happening
from bus.letters.causes import cause_of
from bus.letters.verdicts import LETTER_DISCARDED, LETTER_REDRIVEN, LetterDiscarded, LetterRedriven
from bus.problem import Problem
from bus.rules import dead
from bus.rules.dead import LETTER, UNREADABLE, DeadLetter, Standing, Unreadable
from bus.rules.run import RunState
from projections.projection import Projection, Rows


class Letter(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """A dead letter. `number` is its position in the log, `cause` the key of those that died alike.

    `discarded_by` said that nobody wants it any more; `redriven_by` sent bytes that nobody could read once more.
    """

    number: int
    capability: str
    cause: str
    problem: str
    died_at: datetime
    run: str = ""
    plan: str = ""
    phase: str = ""
    item: int | None = None
    attempt: int = 0
    passes: int = 1
    undoes: bool = False
    earlier: str = ""
    discarded_by: str = ""
    redriven_by: str = ""


def standing(letter: Letter, runs: Mapping[str, RunState]) -> Standing:
    """How a letter stands, given the rows of `runs` (or that of its run alone). Without its run, it is open."""
    state = runs.get(letter.run)
    if letter.redriven_by:
        return "redriven"
    if state is None:
        return "discarded" if letter.discarded_by else "open"
    return dead.standing(_as_sent(letter), state, discarded=bool(letter.discarded_by))


def _fold(rows: Rows[Letter], happening: Happening) -> None:
    message = happening.message
    assert message is not None, "what can't be read is set aside before"
    match message.type:
        case dead.LETTER | dead.UNREADABLE if message.id not in rows:
            rows[message.id] = _letter(dead.read(message), happening)
        case verdict if verdict == LETTER_DISCARDED:
            said = decode_data(message, _discarded, "a discard")
            _change(rows, said.letter, discarded_by=said.by)
        case verdict if verdict == LETTER_REDRIVEN:
            sent = decode_data(message, _redriven, "a redrive")
            _change(rows, sent.letter, redriven_by=sent.by, discarded_by="")
        case _:
            pass  # the same death, on record twice


def _letter(letter: DeadLetter | Unreadable, happening: Happening) -> Letter:
    found = Letter(
        number=happening.position,
        capability=letter.capability,
        cause=cause_of(letter).key,
        problem=str(letter.reason if isinstance(letter, Unreadable) else letter.problem)[:200],
        died_at=happening.at,
    )
    if isinstance(letter, Unreadable):
        return found
    names = ("run", "plan", "phase", "item", "attempt", "passes", "undoes", "earlier")
    return replace(found, **{name: getattr(letter, name) for name in names})


def _as_sent(letter: Letter) -> DeadLetter:
    """As much of it as its standing depends on."""
    return DeadLetter(
        capability=letter.capability,
        run=letter.run,
        plan=letter.plan,
        phase=letter.phase,
        problem=_UNSAID,
        item=letter.item,
        attempt=letter.attempt,
        passes=letter.passes,
        payload=msgspec.Raw(b"null"),
        undoes=letter.undoes,
    )


def _change(rows: Rows[Letter], id: str, **changes: str) -> None:
    row = rows.get(id)
    if row is not None:
        rows[id] = replace(row, **changes)


_UNSAID = Problem("handler_error", "")
_redriven = msgspec.json.Decoder(LetterRedriven)
_discarded = msgspec.json.Decoder(LetterDiscarded)

DEAD: Projection[Letter] = Projection(
    name="dead",
    version=1,
    row=Letter,
    fold=_fold,
    subjects=["dead.*", "ops.dead"],
    types=frozenset({LETTER, UNREADABLE, LETTER_REDRIVEN, LETTER_DISCARDED}),
)
"""Every dead letter, by the id of its record."""
