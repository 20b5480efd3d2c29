"""A happening: what a record of the log says, one event at a time. Of anything but a run, the message is the event.

What can't be read is a happening as well, with the reason: bytes that anybody could publish are shown, not passed over.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from bus.errors import MalformedMessage
from bus.format.envelope import Envelope, decode
from bus.rules.events import Commit, Event, commit, type_of

MALFORMED = "malformed"


class Happening(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One event: its position (the record's, and its index in it, from 0), where and when it was stored.

    `event` and `commit` are there for an event of a run, `message` unless the bytes are no envelope, and `problem`
    says why a record can't be read.
    """

    position: int
    subject: str
    stored_at: datetime
    index: int = 0
    message: Envelope | None = None
    commit: Commit | None = None
    event: Event | None = None
    problem: str = ""

    @property
    def type(self) -> str:
        """Such as `phase.completed.v1`, or `malformed`."""
        if self.event is not None:
            return type_of(self.event)
        return MALFORMED if self.problem or self.message is None else self.message.type

    @property
    def at(self) -> datetime:
        """When it happened, by the clock of whoever wrote it; of what can't be read, when it was stored."""
        return self.message.time if self.message is not None else self.stored_at

    @property
    def kind(self) -> str:
        """The second token of the subject: run, agent, dead, ops, mail or topic."""
        return self.subject.split(".", 2)[1]

    @property
    def run(self) -> str | None:
        """The run it belongs to, if it does."""
        if self.kind == "run":
            return self.subject.split(".", 2)[2]
        return self.message.runid if self.message is not None else None

    @property
    def phase(self) -> str | None:
        """The phase it is about, if it is about one."""
        said: str | None = getattr(self.event, "phase", None)
        return said or (self.message.phase if self.message is not None else None)

    @property
    def item(self) -> int | None:
        """The item of that phase, if it is about one."""
        found: int | None = getattr(self.event, "item", None)
        return found


class Said:
    """A record, decoded once; it is taken apart into its happenings when somebody wants them."""

    __slots__ = ("_all", "_first", "_types", "commit", "message", "position", "problem", "stored_at", "subject")

    def __init__(self, position: int, subject: str, stored_at: datetime, body: bytes) -> None:
        self._all: Sequence[Happening] = ()
        self._first: Happening | None = None
        self._types: Sequence[str] = ()
        self.position = position
        self.subject = subject
        self.stored_at = stored_at
        self.message: Envelope | None = None
        self.commit: Commit | None = None
        self.problem = ""
        try:
            self.message = decode(body)
            _, kind, *rest = subject.split(".", 2)
            if kind == "run":
                self.commit = _commit_of(self.message, position, rest[0])
        except MalformedMessage as error:
            self.problem = str(error)

    @property
    def types(self) -> Sequence[str]:
        """The type of each of its happenings."""
        if not self._types:
            if self.commit is not None:
                self._types = [type_of(event) for event in self.commit.events]
            else:
                self._types = [MALFORMED if self.problem or self.message is None else self.message.type]
        return self._types

    @property
    def first(self) -> Happening:
        """The first of them alone. What it shares with the others it has: message, commit."""
        first = self._first
        if first is None:
            first = self._first = self._one(0, self.commit.events[0] if self.commit is not None else None)
        return first

    @property
    def happenings(self) -> Sequence[Happening]:
        """All of them, at least one."""
        if self.commit is None or len(self.commit.events) == 1:
            return (self.first,)
        if not self._all:
            self._all = [self._one(index, event) for index, event in enumerate(self.commit.events)]
        return self._all

    def _one(self, index: int, event: Event | None) -> Happening:
        return Happening(
            position=self.position,
            subject=self.subject,
            stored_at=self.stored_at,
            index=index,
            message=self.message,
            commit=self.commit,
            event=event,
            problem=self.problem,
        )


def happenings(position: int, subject: str, stored_at: datetime, body: bytes) -> Sequence[Happening]:
    """What a record says: at least one happening. Never raises."""
    return Said(position, subject, stored_at, body).happenings


def _commit_of(message: Envelope, position: int, on: str) -> Commit:
    """Raises MalformedMessage, also for another run's commit."""
    found = commit(message, position)
    if found.run != on:
        raise MalformedMessage(f"position {position} holds a commit of {found.run!r} on the subject of {on!r}")
    return found
