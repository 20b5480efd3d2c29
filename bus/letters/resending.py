"""Resending: one dead letter goes back to where it came from, and whatever is decided about letters goes on record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol
from uuid import uuid4

import msgspec

from bus.broker.connection import Connection
from bus.clock import utc_now
from bus.errors import Refused
from bus.format.envelope import envelope
from bus.letters import verdicts
from bus.letters.letters import Letter
from bus.letters.verdicts import LetterRedriven
from bus.log.log import Log, Part
from bus.rules.commands import Revive
from bus.rules.dead import DeadLetter, Unreadable
from bus.runs.hearing import AGAIN, Again
from bus.runs.ledger import Ledger
from bus.runs.runs import Runs
from bus.runs.steering import as_json


class Bus(Protocol):
    """What of a client this needs."""

    connection: Connection
    ledger: Ledger
    log: Log
    runs: Runs
    source: str


async def send_again(
    bus: Bus,
    found: Letter,
    *,
    by: str,
    reason: str = "",
    payload: Any = msgspec.UNSET,
    transform: str = "",
    operation: str = "",
) -> None:
    """Let the letter's work go on, with `payload` if one is given. The run's version decides who of several does it.

    Raises Refused, MalformedMessage if the payload is not JSON, TooLarge, Unavailable.
    """
    letter = found.letter
    given = payload if payload is msgspec.UNSET else as_json(payload)
    if isinstance(letter, Unreadable):
        if given is not msgspec.UNSET:
            raise Refused(f"dead letter {found.number} is a message nobody could read: it has no input to replace")
        await _resend(bus, found, letter, by, reason, operation)
        return
    assert isinstance(letter, DeadLetter), "there is no other kind"
    command = Revive(
        by=by,
        letter=found.id,
        phase=letter.phase,
        item=letter.item,
        attempt=letter.attempt,
        passes=letter.passes,
        input=given,
        reason=reason,
        transform=transform,
        operation=operation,
    )
    await bus.runs.submit(letter.run, command, causation=found.id)


async def say(bus: Bus, kind: str, what: object, *, area: str = "dead", together: Sequence[Part] = ()) -> None:
    """Put on record what was decided, `together` with what has to be there if that is. Raises Unavailable."""
    record = envelope(kind, what, id=uuid4().hex, source=bus.source, time=utc_now())
    subject = bus.log.subjects.ops(area)
    if together:
        await bus.log.append_together([Part(subject, record), *together])
    else:
        await bus.log.append(subject, record)


async def _resend(bus: Bus, found: Letter, letter: Unreadable, by: str, reason: str, operation: str) -> None:
    if letter.size_bytes > len(letter.body):
        raise Refused(
            f"dead letter {found.number} is the beginning of {letter.size_bytes} bytes: it can't be sent again"
        )
    # By its id: its number is its position in this log, and an import into another gives it a new one.
    redriven = LetterRedriven(by, found.id, letter.subject, reason, operation)
    # A letter that was imported names a subject of the bus it comes from.
    subjects = bus.log.subjects
    subject = subjects.ours(letter.subject)
    if subjects.is_topic(subject):
        # The others who subscribe have heard it.
        again = Again(found.id, subject, letter.origin, letter.body)
        record = envelope(AGAIN, again, id=uuid4().hex, source=bus.source, time=utc_now(), causationid=found.id)
        told = Part(subjects.again(letter.capability), record)
        await say(bus, verdicts.LETTER_REDRIVEN, redriven, together=[told])
        return
    await say(bus, verdicts.LETTER_REDRIVEN, redriven)
    bus.connection.publish(subject, letter.body)
