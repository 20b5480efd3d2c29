"""A selection: which of the log's events somebody wants to see. It says where to look, and what fits.

Pure: reading what a selection names is the work of `bus.history.feed`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime
from fnmatch import fnmatchcase

import msgspec

from bus.errors import SettingsError
from bus.format.subjects import Subjects, pattern
from bus.history.happening import Happening
from bus.rules.events import PhaseStarted

_VERSION = re.compile(r"\.v\d+$")


class Selection(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is wanted; what is left empty does not matter. All that is said has to hold.

    `subjects` may have wildcards. `runs`: the events of these runs and their dead letters. `phase`: `price`, or
    `price:3` for one item. `agent`: what it wrote, and what names it. `types`: `phase.failed.v1`, `phase.failed` of
    any version, `phase.*`. `correlation`: what carries this id. After `after`, up to and including `upto`; stored from
    `since` on and before `until`. At most `limit` events, with `backwards` the newest first.

    What can't be read fits unless its place in the log says otherwise: nobody can tell.
    """

    subjects: Sequence[str] = ()
    runs: Sequence[str] = ()
    phase: str | None = None
    agent: str | None = None
    types: Sequence[str] = ()
    correlation: str | None = None
    after: int = 0
    upto: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    limit: int | None = None
    backwards: bool = False

    def __post_init__(self) -> None:
        for name in ("subjects", "runs", "types"):
            if isinstance(getattr(self, name), str):
                raise SettingsError(f"{name} is a list of them: [{getattr(self, name)!r}]")
        for name in ("since", "until"):
            instant = getattr(self, name)
            if instant is not None and instant.tzinfo is None:
                raise SettingsError(f"{name} needs a time zone: {instant.isoformat()}")
        if self.limit is not None and self.limit < 1:
            raise SettingsError(f"limit is at least 1, not {self.limit}")

    @property
    def is_by_place(self) -> bool:
        """Whether subject, position and time of a record decide, so that nobody has to look into it."""
        return not (self.runs or self.phase or self.agent or self.types or self.correlation)

    def filters(self, subjects: Subjects) -> Sequence[str]:
        """The fewest subjects on which all of it is. Raises InvalidName for a run that can't be."""
        if self.runs:
            return [*map(subjects.run, self.runs), subjects.dead_letters]
        return self.subjects or [f"{subjects.namespace}.>"]

    def covers(self, position: int, subject: str, stored_at: datetime) -> bool:
        """Whether a record's place in the log fits."""
        return (
            self.after < position
            and (self.upto is None or position <= self.upto)
            and (self.since is None or self.since <= stored_at)
            and (self.until is None or stored_at < self.until)
            and (not self.subjects or any(pattern(each).fullmatch(subject) for each in self.subjects))
        )

    def fits(self, found: Happening) -> bool:
        """Whether an event is wanted."""
        if not self.covers(found.position, found.subject, found.stored_at):
            return False
        if self.runs and not _is_of_runs(found, self.runs):
            return False
        return bool(found.problem) or (
            (self.phase is None or self.phase in _places(found))
            and (self.agent is None or _names(found, self.agent))
            and (not self.types or _is_of_types(found.type, self.types))
            and (self.correlation is None or self.correlation == _correlation(found))
        )


def _is_of_runs(found: Happening, runs: Sequence[str]) -> bool:
    """Of other kinds of messages only dead letters count: to find all of them, the whole log would have to be read."""
    if found.kind == "dead" and found.problem:
        return True
    return found.kind in ("run", "dead") and found.run in runs


def _places(found: Happening) -> tuple[str | None, ...]:
    return found.phase, f"{found.phase}:{found.item}" if found.item is not None else found.phase


def _names(found: Happening, agent: str) -> bool:
    message = found.message
    assert message is not None, "what could be read has an envelope"
    # An agent's process connects under its name and its instance's, and an instance's name begins with its agent's.
    if message.source.startswith(f"/agent/{agent}/") or message.agent == agent:
        return True
    if isinstance(found.event, PhaseStarted) and found.event.agent == agent:
        return True
    instance: str | None = getattr(found.event, "instance", None)
    by_instance = instance is not None and instance.rpartition("-")[0] == agent[:50]
    return by_instance or (found.kind == "agent" and found.subject.split(".")[2] == agent)


def _is_of_types(name: str, types: Sequence[str]) -> bool:
    unversioned = _VERSION.sub("", name)
    return any(fnmatchcase(name, each) or fnmatchcase(unversioned, each) for each in types)


def _correlation(found: Happening) -> str | None:
    # A run's commits carry its id where nothing else was given.
    assert found.message is not None, "what could be read has an envelope"
    return found.message.correlationid or found.message.runid
