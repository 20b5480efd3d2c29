"""Hearing: what is published on a topic becomes work of each agent that subscribes, a run whose name follows from both.

So what is heard twice has one run. What a subscription could not read is told to it alone once more, on a subject of
its own: the others have heard it.
"""

from __future__ import annotations

import hashlib

import msgspec

from bus.format.envelope import Envelope, decode_data
from bus.rules.plan import TASK

AGAIN = "topic.again.v1"


class Again(msgspec.Struct, frozen=True, omit_defaults=True):
    """A fact that could not be read, for one subscription to try once more: what was on `subject` at `origin`."""

    letter: str
    subject: str
    origin: int
    body: bytes


def heard_as(capability: str, position: int) -> str:
    """The run that stands for the fact at a position, of the subscription with that capability."""
    return f"{TASK}-{hashlib.blake2b(f'{capability}/{position}'.encode(), digest_size=10).hexdigest()}"


def read_again(message: Envelope) -> Again:
    """Raises MalformedMessage."""
    return decode_data(message, _again, "a fact that is told again")


_again = msgspec.json.Decoder(Again)
