"""The vocabulary: every type this library puts on the wire, and those of the program it is part of.

Nothing reads messages through this table. It is what the schema document (`bus.document`) is made of, and a test holds
it against whatever the library writes.
"""

from __future__ import annotations

from bus.dead import LETTER_REDRIVEN, LETTERS, LetterRedriven
from bus.document import Entry
from bus.envelope import Envelope
from bus.errors import SettingsError
from bus.events import COMMIT, EVENTS, Body, Known
from bus.ledger import WORK
from bus.messages import MESSAGES
from bus.presence import Beat
from bus.worker import AGENT_DEREGISTERED, AGENT_REGISTERED

BEAT = "beat.v1"
"""A beat's name. It goes without an envelope, so this is not in its bytes."""


class Commit(Body[Known], frozen=True):
    """What one append stored together: one or more events of a run, in order."""


def vocabulary() -> dict[str, Entry]:
    """Every type by its wire name. Raises SettingsError if one of the program's has a name of the library's."""
    entries = {wire: Entry("event", type) for wire, type in EVENTS.types.items()}
    entries |= {wire: Entry("data", type) for wire, type in LETTERS.types.items()}
    entries |= {
        "envelope.v1": Entry("body", Envelope),
        COMMIT: Entry("data", Commit),
        WORK: Entry("data", None),
        AGENT_REGISTERED: Entry("data", Beat),
        AGENT_DEREGISTERED: Entry("data", Beat),
        LETTER_REDRIVEN: Entry("data", LetterRedriven),
        BEAT: Entry("body", Beat),
    }
    for wire, type in MESSAGES.types.items():
        if wire in entries:
            raise SettingsError(f"the message type {wire!r} is one of the bus's own: give it another name")
        entries[wire] = Entry("value", type)
    return entries


def upcasters() -> dict[str, str]:
    """Every older wire type that can be read, and what it is read as."""
    return EVENTS.upcasters | LETTERS.upcasters | MESSAGES.upcasters
