"""Dead letters: work that was given up for good, kept whole, so that nothing is lost and anything can be sent again.

A dead letter is stored in one atomic batch with the commit that gives the work up: there is no moment in which one
exists without the other. Its number is its position in the log. How it stands is not stored anywhere: that follows from
the run it belongs to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Literal

import msgspec

from bus.format.envelope import Envelope
from bus.format.schemas import Catalogue
from bus.problem import Problem
from bus.rules.events import Commit, Instant, PhaseFailed
from bus.rules.folding import Folding
from bus.rules.inputs import input_of
from bus.rules.references import Unresolved
from bus.rules.run import SUCCEEDED, Death, RunState

LETTER = "dead.letter.v1"
UNREADABLE = "dead.unreadable.v1"
LETTERS = Catalogue()

Standing = Literal["open", "redriven", "resolved", "died_again", "discarded"]
"""`open`: dead. `redriven`: on its way again. `resolved`: its handler has succeeded since. `died_again`: a newer letter
stands for it. `discarded`: somebody said so, or skipped, cancelled or rolled back what it was for."""


class Try(msgspec.Struct, frozen=True, omit_defaults=True):
    """One attempt of what died; `evidence` is what a recoverer had seen."""

    number: int
    agent: str
    instance: str
    started_at: Instant
    ended_at: Instant | None = None
    cause: str = ""
    problem: Problem | None = None
    evidence: str = ""


@LETTERS.message(LETTER)
class DeadLetter(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What was to be done, by whom it was tried, and why it was given up, in that pass of its run.

    `began` and `origin` are the positions of the run's start and of the commit that made this work ready; 0 if the same
    commit gave it up. With `earlier`, the id of another letter, the work had died before, and was redriven. With
    `undoes` it was to undo what the phase had done. With `shortened`, payload and traces were too large to be repeated
    here; the run's own events have them.
    """

    capability: str
    run: str
    plan: str
    phase: str
    problem: Problem
    item: int | None = None
    attempt: int = 0
    passes: int = 1
    payload: msgspec.Raw
    attempts: Sequence[Try] = ()
    began: int = 0
    origin: int = 0
    earlier: str = ""
    undoes: bool = False
    shortened: bool = False

    @property
    def cause(self) -> str:
        """How it ended: the cause of the last attempt, or what else the work was given up for."""
        last = self.attempts[-1] if self.attempts else None
        if last is None or last.number != self.attempt or last.problem != self.problem:
            return self.problem.code
        return self.problem.code if last.cause == "cancelled" else last.cause


@LETTERS.message(UNREADABLE)
class Unreadable(msgspec.Struct, frozen=True, omit_defaults=True):
    """A message nobody could decode: its subject, its headers and its bytes, whatever they are (base64 in JSON).

    Bytes of the subject that are not UTF-8 are escaped. `body` is the beginning of what had `size_bytes`, if the whole
    is over the server's limit for a message; `sha256` is that of the whole. `origin` was its position in the stream of
    work, and `delivered` how often it had been handed out.
    """

    capability: str
    subject: str
    body: bytes
    reason: str
    instance: str
    size_bytes: int = 0
    sha256: str = ""
    agent: str = ""
    headers: Mapping[str, str] = {}
    origin: int = 0
    stored_at: Instant | None = None
    delivered: int = 0

    @property
    def cause(self) -> str:
        return "unreadable"


def letters(before: RunState | None, commit: Commit) -> list[DeadLetter]:
    """The dead letters that belong to a commit; `before` is the run without it.

    Each is about the run as it was when the work was given up: what follows in the same commit may undo it.
    """
    events, found = list(commit.events), []
    if not any(isinstance(event, PhaseFailed) for event in events):
        return []
    upto = before.position if before is not None else 0
    folding = Folding(before)
    if before is None:
        folding.add(msgspec.structs.replace(commit, events=[events.pop(0)]))
    for event in events:
        folding.apply([event], commit.at)
        assert folding.state is not None, "a run has begun"
        if isinstance(event, PhaseFailed) and _is_work(folding.state, event):
            found.append(_letter_of(folding.state, event, upto))
    return found


def name_of(letter: DeadLetter) -> str:
    """The id of the letter's record: the same for the same death."""
    return _name(letter.run, letter.phase, letter.item, Death(letter.attempt, letter.passes))


def name_of_death(run: str, phase: str, item: int | None, death: Death) -> str:
    """The id of the record of that death's letter."""
    return _name(run, phase, item, death)


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
    capability: str,
    subject: str,
    body: bytes,
    reason: str,
    instance: str,
    *,
    limit_bytes: int,
    agent: str,
    headers: Mapping[str, str],
    origin: int,
    stored_at: datetime,
    delivered: int,
) -> Unreadable:
    """The record of a message nobody could decode, with at most `limit_bytes` of its body."""
    return Unreadable(
        capability=capability,
        subject=_text(subject),
        body=body[:limit_bytes],
        reason=_text(reason),
        instance=instance,
        size_bytes=len(body),
        sha256=hashlib.sha256(body).hexdigest(),
        agent=agent,
        headers={_text(name): _text(value) for name, value in headers.items()},
        origin=origin,
        stored_at=stored_at,
        delivered=delivered,
    )


def name_of_unreadable(letter: Unreadable) -> str:
    """The id of its record: the same for the same message of a capability, however often it is handed out."""
    stored = letter.stored_at.isoformat() if letter.stored_at is not None else ""
    # A fact on a topic is handed out to every agent that subscribes: each of them that can't read it has a letter.
    return _digest(letter.capability, letter.subject, letter.sha256, str(letter.origin), stored)


def read(message: Envelope) -> DeadLetter | Unreadable:
    """What a record on `bus.dead.*` says. Raises MalformedMessage."""
    letter: DeadLetter | Unreadable = LETTERS.read(message.type, message.data)
    return letter


def is_open(letter: DeadLetter, state: RunState) -> bool:
    """Whether the work is still dead: neither done since, nor on its way again."""
    phase = state.phases.get(letter.phase)
    if phase is None or (phase.status == "rolled_back" and state.is_open):
        # What the work did has been undone; it can be done again when the run has ended.
        return False
    return phase.death_of(letter.item) == Death(letter.attempt, letter.passes)


def standing(letter: DeadLetter, state: RunState, *, discarded: bool = False) -> Standing:
    """How the letter's work stands. What was discarded may have been redriven all the same: then that counts."""
    if is_open(letter, state):
        return "discarded" if discarded else "open"
    phase = state.phases.get(letter.phase)
    item = phase.item(letter.item) if phase is not None else None
    status = item.status if item is not None else (phase.status if phase is not None else "cancelled")
    if phase is not None and (letter.item, Death(letter.attempt, letter.passes)) in phase.buried:
        # It is being undone first.
        return "discarded" if discarded else "open"
    if phase is not None and letter.undoes != (phase.undoing is not None):
        # What is undone had been done before; and what is done again had been undone.
        return "resolved"
    if status in SUCCEEDED or (letter.undoes and status == "rolled_back"):
        return "resolved"
    if status == "failed":
        return "died_again"
    return "discarded" if status in {"cancelled", "skipped", "rolled_back"} else "redriven"


def _is_work(state: RunState, event: PhaseFailed) -> bool:
    """Of an `each` phase, the items are the work, not the phase."""
    node, phase = state.plan.graph[event.phase], state.phases[event.phase]
    is_one = node.each is None or not phase.items or phase.undoing is not None
    return node.phase.capability is not None and (event.item is not None or is_one)


def _letter_of(state: RunState, event: PhaseFailed, upto: int) -> DeadLetter:
    phase = state.phases[event.phase]
    item = phase.item(event.item)
    before = item.died if item is not None else phase.died
    # With the same commit it may have been redriven.
    death, before = (now, before) if (now := phase.death_of(event.item)) is not None else (before, None)
    assert death is not None, "what has failed was given up"
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
        attempt=death.attempt,
        passes=death.passes,
        payload=payload,
        attempts=[
            Try(a.number, a.agent, a.instance, a.started_at, a.ended_at, a.cause, a.problem, a.evidence) for a in tries
        ],
        began=state.origin if state.origin <= upto else 0,
        origin=item.origin if item is not None and item.origin <= upto else 0,
        earlier=_name(state.run, event.phase, event.item, before) if before is not None else "",
        undoes=phase.undoing is not None,
    )


def _name(run: str, phase: str, item: int | None, death: Death) -> str:
    return _digest(run, phase, "" if item is None else str(item), str(death.attempt), str(death.passes))


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()


def _text(text: str) -> str:
    """Without what JSON can't carry: bytes that were not UTF-8 as escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
