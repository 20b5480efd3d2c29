"""The card of an instance: what does not change while it lives, and the events that say that it came and went.

Whoever becomes ready writes its card into the log; a beat says only what changes. So a thousand beats a second stay
cheap, and schemas are read from the log by whoever wants to see them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from bus.format.envelope import Envelope, decode_data

AGENT_REGISTERED = "agent.registered.v1"
AGENT_DEREGISTERED = "agent.deregistered.v1"
AGENT_LOST = "agent.lost.v1"

Loss = Literal["crashed", "frozen", "blocked"]


class Offering(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A capability as an instance has it: how many attempts it holds at once, and how long one may take.

    `takes` and `gives` are JSON Schemas; they stand in the log, and are left out of an answer to everybody's question.
    """

    concurrency: int
    timeout_s: float
    tags: tuple[str, ...] = ()
    ordered: bool = False
    broadcast: bool = False
    versioned: bool = False
    takes: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    gives: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Card(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One instance of an agent: who and where it is, and what it can do."""

    agent: str
    version: str
    instance: str
    host: str
    pid: int
    capabilities: Mapping[str, Offering]
    tags: tuple[str, ...] = ()
    standby: bool = False


class AgentDeregistered(msgspec.Struct, frozen=True, omit_defaults=True):
    """The instance has ended in good order; `handed_back` attempts were not finished in time, and go on elsewhere."""

    agent: str
    instance: str
    reason: str
    handed_back: int = 0


class AgentLost(msgspec.Struct, frozen=True):
    """The instance is gone without a word: its process is, or it does not answer. It registers again if it comes back.

    `evidence` is what made somebody ask, `held` how many attempts were taken back from it.
    """

    agent: str
    instance: str
    cause: Loss
    evidence: str
    held: int


def read_event(message: Envelope) -> Card | AgentDeregistered | AgentLost | None:
    """What a message about an agent says, None for a type that is not known here. Raises MalformedMessage."""
    decoder = _decoders.get(message.type)
    event: Card | AgentDeregistered | AgentLost | None = None
    if decoder is not None:
        event = decode_data(message, decoder, "an event of an agent")
    return event


def ended(end: AgentDeregistered | AgentLost) -> str:
    """How an instance has ended, in words."""
    return end.reason if isinstance(end, AgentDeregistered) else f"{end.cause}: {end.evidence}"


_decoders: dict[str, msgspec.json.Decoder[Any]] = {
    AGENT_REGISTERED: msgspec.json.Decoder(Card),
    AGENT_DEREGISTERED: msgspec.json.Decoder(AgentDeregistered),
    AGENT_LOST: msgspec.json.Decoder(AgentLost),
}


def without_schemas(whole: Card) -> Card:
    """The card as it is told to everybody who asks for everyone."""
    bare = {
        name: msgspec.structs.replace(each, takes=msgspec.UNSET, gives=msgspec.UNSET)
        for name, each in whole.capabilities.items()
    }
    return msgspec.structs.replace(whole, capabilities=bare)
