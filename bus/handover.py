"""A handover: work that its asker gives to an instance directly, by a request that the log knows nothing of yet.

Whoever takes it stores the whole story as one commit: the beginning together with the result if that is there soon,
otherwise alone. So the log has the work before anybody relies on it, and an answer only after the log has it. Until
there is a word from the instance the asker keeps the work, and stores it himself if that word does not come: the first
commit on the run's subject wins, and the other is refused.
"""

from __future__ import annotations

import msgspec

from bus.envelope import UNDECODABLE
from bus.errors import MalformedMessage
from bus.events import Instant
from bus.problem import Problem
from bus.task import Task

HANDED = "task.handed.v1"
ASKED = "task.asked.v1"


class Handed(msgspec.Struct, frozen=True, omit_defaults=True):
    """Work for the log: the envelope names its run and its story."""

    task: Task
    input: msgspec.Raw


class Asked(msgspec.Struct, frozen=True, omit_defaults=True):
    """A question the log never hears of, worth an answer until `deadline_at`."""

    input: msgspec.Raw
    deadline_at: Instant


class _Reply(msgspec.Struct, frozen=True, tag_field="reply"):
    pass


class Busy(_Reply, frozen=True, tag="busy"):
    """Not here, not now: nothing was done that counts."""


class Recorded(_Reply, frozen=True, tag="recorded"):
    """The log has the run since `position`, and tells the rest."""

    position: int


class Answered(_Reply, frozen=True, tag="answered"):
    """The result; the log has it at `position` (0: it was asked for without the log)."""

    output: msgspec.Raw
    position: int = 0


class Failed(_Reply, frozen=True, tag="failed"):
    """Why there is no result, of what was asked without the log."""

    problem: Problem


Reply = Busy | Recorded | Answered | Failed
handed_decoder = msgspec.json.Decoder(Handed)
asked_decoder = msgspec.json.Decoder(Asked)
_reply_decoder: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


def read_reply(data: bytes) -> Reply:
    """Raises MalformedMessage."""
    try:
        return _reply_decoder.decode(data)
    except UNDECODABLE as error:
        raise MalformedMessage(f"not an answer to what was handed over: {error}") from error
