"""Dead letters: work that was given up for good, kept whole, so that nothing is lost and anything can be sent again.

A dead letter is stored in one atomic batch with the commit that gives the work up: there is no moment in which one
exists without the other. Its number is its position in the log.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from bus.envelope import Envelope
from bus.events import Commit, Instant, PhaseFailed
from bus.folding import Folding
from bus.inputs import input_of
from bus.problem import Problem
from bus.references import Unresolved
from bus.run import RunState
from bus.schemas import Catalogue

LETTER = "dead.letter.v1"
UNREADABLE = "dead.unreadable.v1"
LETTER_REDRIVEN = "ops.letter_redriven.v1"
LETTERS = Catalogue()


class Try(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attempt of what died."""

    number: int
    agent: str
    instance: str
    started_at: Instant
    ended_at: Instant | None = None
    cause: str = ""
    problem: Problem | None = None


@LETTERS.message(LETTER)
class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What was to be done, by whom it was tried, and why it was given up.

    With `shortened`, payload and traces were too large to be repeated here; the run's own events have them.
    """

    capability: str
    run: str
    plan: str
    phase: str
    problem: Problem
    item: int | None = None
    attempt: int = 0
    payload: msgspec.Raw
    attempts: Sequence[Try] = ()
    shortened: bool = False


@LETTERS.message(UNREADABLE)
class Unreadable(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message nobody could decode: its subject and its bytes, whatever they are (base64 in JSON).

    Bytes of the subject that are not UTF-8 are escaped. `body` is the beginning of what had `size_bytes`, if the whole
    is over the server's limit for a message; `sha256` is that of the whole.
    """

    capability: str
    subject: str
    body: bytes
    reason: str
    instance: str
    size_bytes: int = 0
    sha256: str = ""


class LetterRedriven(msgspec.Struct, frozen=True):
    """Somebody sent the bytes of an unreadable message again to where they came from; `letter` is its record's id."""

    by: str
    letter: str
    subject: str


def letters(before: RunState | None, commit: Commit) -> list[DeadLetter]:
    """The dead letters that belong to a commit; `before` is the run without it.

    Each is about the run as it was when the work was given up: what follows in the same commit may undo it.
    """
    events, found = list(commit.events), []
    if not any(isinstance(event, PhaseFailed) for event in events):
        return []
    folding = Folding(before)
    if before is None:
        folding.add(msgspec.structs.replace(commit, events=[events.pop(0)]))
    for event in events:
        folding.apply([event], commit.at)
        assert folding.state is not None, "a run has begun"
        if isinstance(event, PhaseFailed) and _is_work(folding.state, event):
            found.append(_letter_of(folding.state, event))
    return found


def shortened(letter: DeadLetter) -> DeadLetter:
    """The letter without what makes it large."""
    short = [
        msgspec.structs.replace(
            each, problem=each.problem and msgspec.structs.replace(each.problem, trace="", causes=())
        )
        for each in letter.attempts
    ]
    return msgspec.structs.replace(letter, payload=msgspec.Raw(b"null"), attempts=short, shortened=True)


def unreadable(
    capability: str, subject: str, body: bytes, reason: str, instance: str, *, limit_bytes: int
) -> Unreadable:
    """The record of a message nobody could decode, with at most `limit_bytes` of its body."""
    return Unreadable(
        capability=capability,
        subject=subject.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace"),
        body=body[:limit_bytes],
        reason=reason.encode("utf-8", "backslashreplace").decode(),
        instance=instance,
        size_bytes=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
    )


def read(message: Envelope) -> DeadLetter | Unreadable:
    """What a record on `bus.dead.*` says. Raises MalformedMessage."""
    letter: DeadLetter | Unreadable = LETTERS.read(message.type, message.data)
    return letter


def is_open(letter: DeadLetter, state: RunState) -> bool:
    """Whether the work is still dead: neither done since, nor on its way again."""
    phase = state.phases.get(letter.phase)
    item = phase.item(letter.item) if phase is not None else None
    if phase is None or item is None:
        return phase is not None and phase.status == "failed"
    if phase.undoing is not None and letter.capability == state.plan.graph[phase.key].phase.capability:
        # What the work did has been undone, or is about to be; it can be done again when the run has ended.
        return phase.status == "rolled_back" and not state.is_open
    return item.status == "failed" and item.attempt == letter.attempt


def _is_work(state: RunState, event: PhaseFailed) -> bool:
    """Of an `each` phase, the items are the work, not the phase."""
    node, phase = state.plan.graph[event.phase], state.phases[event.phase]
    is_one = node.each is None or not phase.items or phase.undoing is not None
    return node.phase.capability is not None and (event.item is not None or is_one)


def _letter_of(state: RunState, event: PhaseFailed) -> DeadLetter:
    phase = state.phases[event.phase]
    item = phase.item(event.item)
    tries = [] if item is None else item.attempts
    try:
        payload = msgspec.Raw(msgspec.json.encode(input_of(state, event.phase, event.item)))
    except Unresolved:
        payload = msgspec.Raw(b"null")
    return DeadLetter(
        capability=state.capability(event.phase) or "",
        run=state.run,
        plan=state.plan.name,
        phase=event.phase,
        item=event.item,
        problem=event.problem,
        attempt=0 if item is None else item.attempt,
        payload=payload,
        attempts=[Try(a.number, a.agent, a.instance, a.started_at, a.ended_at, a.cause, a.problem) for a in tries],
    )
