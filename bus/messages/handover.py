"""A handover: work that its asker gives to an instance directly, by a request that the log knows nothing of yet.

Whoever takes it stores the whole story as one commit: the beginning together with the result if that is there soon,
otherwise alone. So the log has the work before anybody relies on it, and an answer only after the log has it. Until
there is a word from the instance the asker keeps the work, and stores it himself if that word does not come: the first
commit on the run's subject wins, and the other is refused. The asker hears of the commit from the server itself, by the
live copy of what it has stored; the instance's own word, a moment later, is for when that is lost.

A question that the log never hears of is the same without the log. What no message can hold goes by reference, in both
directions, and who does not wait any more says so on the question's own subject.
"""

from __future__ import annotations

import msgspec

from bus.errors import MalformedMessage
from bus.format.envelope import UNDECODABLE, decode, decode_data
from bus.format.payload import is_inline
from bus.problem import Problem
from bus.rules.events import Body, Instant, PhaseCompleted, RunCompleted
from bus.rules.priority import NORMAL, Priority
from bus.runs.task import Task

HANDED = "task.handed.v1"
ASKED = "task.asked.v1"
LARGE_ANSWER = "task.answer.v1"


class Handed(msgspec.Struct, frozen=True, omit_defaults=True):
    """Work for the log: the envelope names its run and its story. If it has to wait, it does at this level, on the
    account of `sender`."""

    task: Task
    input: msgspec.Raw
    priority: Priority = NORMAL
    sender: str = ""


class Asked(msgspec.Struct, frozen=True, omit_defaults=True):
    """A question the log never hears of, worth an answer until `deadline_at`.

    An instance that has no hand free may let it wait for `patience_s`; then somebody else is asked.
    """

    input: msgspec.Raw
    deadline_at: Instant
    patience_s: float = 0.02


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


class Enclosed(_Reply, frozen=True, tag="enclosed"):
    """The result of what was asked without the log, where no message can hold it: an envelope that refers to it."""

    message: msgspec.Raw


class Failed(_Reply, frozen=True, tag="failed"):
    """Why there is no result, of what was asked without the log."""

    problem: Problem


class _Told(msgspec.Struct, frozen=True):
    """As much of an event as an asker looks at: its plan would cost more than all else."""

    type: str
    output: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


Reply = Busy | Recorded | Answered | Enclosed | Failed
handed_decoder = msgspec.json.Decoder(Handed)
asked_decoder = msgspec.json.Decoder(Asked)
_PHASE_COMPLETED, _RUN_COMPLETED = (str(each.__struct_config__.tag) for each in (PhaseCompleted, RunCompleted))
_story_decoder: msgspec.json.Decoder[Body[_Told]] = msgspec.json.Decoder(Body[_Told])
_reply_decoder: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


def read_story(body: bytes, position: int) -> Reply:
    """What the first commit of a run says: the result, or that it is begun. Raises MalformedMessage."""
    if is_inline(body):
        said = {each.type: each for each in decode_data(decode(body), _story_decoder, "the events of a commit").events}
        done = said.get(_PHASE_COMPLETED)
        if _RUN_COMPLETED in said and done is not None and done.output is not msgspec.UNSET:
            return Answered(done.output, position)
    return Recorded(position)


def read_reply(data: bytes) -> Reply:
    """Raises MalformedMessage."""
    try:
        return _reply_decoder.decode(data)
    except UNDECODABLE as error:
        raise MalformedMessage(f"not an answer to what was handed over: {error}") from error
