"""The vocabulary: every type this library puts on the wire, and those of the program it is part of.

Nothing reads messages through this table. It is what the schema document (`bus.schema.document`) is made of, and a
test holds it against whatever the library writes.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from bus.archives.notices import REMOVED, SEALED, STARTED, ArchiveRemoved, ArchiveSealed, ArchiveStarted
from bus.cache.cache import CACHED, FORGOTTEN, CacheForgotten
from bus.cache.cache import Entry as CacheEntry
from bus.coordination.barrier import EVENTS as BARRIERS
from bus.coordination.decision import EVENTS as DECISIONS
from bus.coordination.lease import EVENTS as LEASES
from bus.errors import SettingsError
from bus.format.envelope import Envelope
from bus.format.messages import MESSAGES
from bus.guards.breaker import TYPES as BREAKER_TYPES
from bus.guards.limit import HELD, SPENT, LimitHeld, LimitSpent
from bus.guards.quota import Standing
from bus.guards.tally import Tally
from bus.handlers.llm import LLM_CALLED, LLMCalled
from bus.history.rows import TYPES as ROW_TYPES
from bus.letters.verdicts import (
    CAPABILITY_RELEASED,
    LETTER_DISCARDED,
    LETTER_REDRIVEN,
    REDRIVE_BEGUN,
    REDRIVE_ENDED,
    CapabilityReleased,
    LetterDiscarded,
    LetterRedriven,
    RedriveBegun,
    RedriveEnded,
)
from bus.log.garbage import COLLECTED, PayloadsCollected
from bus.messages.handover import (
    ASKED,
    HANDED,
    LARGE_ANSWER,
    Answered,
    Asked,
    Busy,
    Enclosed,
    Failed,
    Handed,
    Recorded,
)
from bus.messages.parts import PARTS, Parts
from bus.messages.topics import PUBLISHED
from bus.registry.card import AGENT_DEREGISTERED, AGENT_LOST, AGENT_REGISTERED, AgentDeregistered, AgentLost, Card
from bus.registry.orders import (
    AGENT_DRAINED,
    AGENT_QUARANTINED,
    AGENT_RELEASED,
    AgentDrained,
    AgentQuarantined,
    AgentReleased,
)
from bus.registry.presence import Beat, Present
from bus.rules.dead import LETTERS
from bus.rules.events import COMMIT, EVENTS, Body, Known
from bus.runs.halts import Halt
from bus.runs.hearing import AGAIN, Again
from bus.runs.lane import PARKED, PLACED, RESUMED, UNPARKED, Parked, Resumed, Unparked
from bus.runs.ledger import WORK
from bus.runs.recovery import RECOVERED, STARVED, Recovery, Starved
from bus.runs.schedule import SCHEDULED, SKIPPED, UNSCHEDULED, OccurrenceSkipped, Scheduled, Unscheduled
from bus.runs.waiting import Bell
from bus.schema.document import Entry

# What is a whole message has a name here only: it is not in the bytes.
BEAT = "beat.v1"
HALT = "halt.v1"
TALLY = "tally.v1"
BELL = "bell.v1"
STANDING = "limit.standing.v1"
PRESENT = "present.v1"
REPLIES: dict[str, Any] = {
    "task.busy.v1": Busy,
    "task.recorded.v1": Recorded,
    "task.answered.v1": Answered,
    "task.enclosed.v1": Enclosed,
    "task.failed.v1": Failed,
}
ENVELOPE, COMPRESSED, REFERRING = "envelope.v1", "envelope.compressed.v1", "envelope.referring.v1"


class Commit(Body[Known], frozen=True):
    """What one append stored together: one or more events of a run, in order."""


class Placed(Body[Known], frozen=True):
    """A place in a lane: the first commit of the run that has it."""


def _with_form(name: str, says: str, *form: tuple[Any, ...]) -> Any:
    """The envelope with its data in another form (`bus.format.payload`)."""
    attributes = [
        (each.name, each.type) if each.required else (each.name, each.type, each.default)
        for each in msgspec.structs.fields(Envelope)
        if each.name != "data"
    ]
    return msgspec.defstruct(name, [*attributes, *form], kw_only=True, namespace={"__doc__": says})


CompressedEnvelope = _with_form(
    "CompressedEnvelope",
    "A message whose data is compressed; `datasize` is that of the JSON, in bytes.",
    ("data_base64", bytes),
    ("dataencoding", Literal["zstd"]),
    ("datasize", int),
)
ReferringEnvelope = _with_form(
    "ReferringEnvelope",
    "A message whose data is an object of the namespace's bucket; size and hash are those of the JSON.",
    ("dataref", str),
    ("datasize", int),
    ("datasha256", str),
    ("dataencoding", Literal["zstd"] | msgspec.UnsetType, msgspec.UNSET),
)


def vocabulary() -> dict[str, Entry]:
    """Every type by its wire name. Raises SettingsError if one of the program's has a name of the library's."""
    entries = {wire: Entry("event", type) for wire, type in EVENTS.types.items()}
    for catalogue in (LETTERS, LEASES, BARRIERS, DECISIONS):
        entries |= {wire: Entry("data", type) for wire, type in catalogue.types.items()}
    entries |= {
        ENVELOPE: Entry("body", Envelope),
        COMPRESSED: Entry("body", CompressedEnvelope),
        REFERRING: Entry("body", ReferringEnvelope),
        COMMIT: Entry("data", Commit),
        WORK: Entry("data", None),
        PLACED: Entry("data", Placed),
        PARKED: Entry("data", Parked),
        UNPARKED: Entry("data", Unparked),
        RESUMED: Entry("data", Resumed),
        AGENT_REGISTERED: Entry("data", Card),
        AGENT_DEREGISTERED: Entry("data", AgentDeregistered),
        AGENT_LOST: Entry("data", AgentLost),
        AGENT_DRAINED: Entry("data", AgentDrained),
        AGENT_QUARANTINED: Entry("data", AgentQuarantined),
        AGENT_RELEASED: Entry("data", AgentReleased),
        LETTER_REDRIVEN: Entry("data", LetterRedriven),
        LETTER_DISCARDED: Entry("data", LetterDiscarded),
        REDRIVE_BEGUN: Entry("data", RedriveBegun),
        REDRIVE_ENDED: Entry("data", RedriveEnded),
        CAPABILITY_RELEASED: Entry("data", CapabilityReleased),
        STARTED: Entry("data", ArchiveStarted),
        SEALED: Entry("data", ArchiveSealed),
        REMOVED: Entry("data", ArchiveRemoved),
        COLLECTED: Entry("data", PayloadsCollected),
        SCHEDULED: Entry("data", Scheduled),
        UNSCHEDULED: Entry("data", Unscheduled),
        SKIPPED: Entry("data", OccurrenceSkipped),
        CACHED: Entry("data", CacheEntry),
        FORGOTTEN: Entry("data", CacheForgotten),
        **{wire: Entry("data", type) for wire, type in BREAKER_TYPES.items()},
        HELD: Entry("data", LimitHeld),
        SPENT: Entry("data", LimitSpent),
        LLM_CALLED: Entry("data", LLMCalled),
        STANDING: Entry("body", Standing),
        TALLY: Entry("body", Tally),
        RECOVERED: Entry("data", Recovery),
        STARVED: Entry("data", Starved),
        PUBLISHED: Entry("data", Any),
        AGAIN: Entry("data", Again),
        PARTS: Entry("data", Parts),
        HANDED: Entry("data", Handed),
        ASKED: Entry("data", Asked),
        LARGE_ANSWER: Entry("data", Any),
        **{name: Entry("body", type) for name, type in (REPLIES | ROW_TYPES).items()},
        BEAT: Entry("body", Beat),
        PRESENT: Entry("body", Present),
        HALT: Entry("body", Halt),
        BELL: Entry("body", Bell),
    }
    for wire, type in MESSAGES.types.items():
        if wire in entries:
            raise SettingsError(f"the message type {wire!r} is one of the bus's own: give it another name")
        entries[wire] = Entry("value", type)
    return entries


def upcasters() -> dict[str, str]:
    """Every older wire type that can be read, and what it is read as."""
    return EVENTS.upcasters | LETTERS.upcasters | MESSAGES.upcasters
