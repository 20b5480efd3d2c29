"""Retention: how long each class of subjects stays in the log, and why something stays longer.

For ever, unless a policy gives an age. A run goes as a whole and only after its end; what somebody still has to look
at stays. Pure: what is due is told here, what is there is read in `bus.archives.outgoing`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

import msgspec

from bus.errors import SettingsError
from bus.format.subjects import KINDS
from bus.rules import dead
from bus.rules.dead import DeadLetter
from bus.rules.run import RunState

CLASSES = KINDS
_SECONDS = {"w": 604_800, "d": 86_400, "h": 3_600, "m": 60, "s": 1}
_AGE = re.compile(r"([0-9]{1,10})([smhdw])")
_LONGEST_S = 36_500 * 86_400


class Policy(msgspec.Struct, frozen=True):
    """The age at which records of a class may leave the log; a class that is not named stays for ever."""

    keep: Mapping[str, timedelta]

    @classmethod
    def of(cls, rules: Iterable[str]) -> Policy:
        """From rules such as `run=30d` (units s, m, h, d, w). Raises SettingsError."""
        keep: dict[str, timedelta] = {}
        for rule in rules:
            name, separator, text = rule.partition("=")
            if not separator:
                raise SettingsError(f"{rule!r} is no rule: write CLASS=AGE, such as run=30d")
            if name not in CLASSES:
                raise SettingsError(f"{rule!r}: there is no class {name!r}; classes are {', '.join(CLASSES)}")
            if name in keep:
                raise SettingsError(f"{rule!r}: class {name!r} has an age already")
            keep[name] = age(text)
        return cls(keep)

    def rules(self) -> list[str]:
        """As they are written."""
        return [f"{name}={_written(self.keep[name])}" for name in CLASSES if name in self.keep]

    def before(self, name: str, now: datetime) -> datetime | None:
        """What was stored, or has ended, before then may go; None: nothing of that class."""
        return now - self.keep[name] if name in self.keep else None


def age(text: str) -> timedelta:
    """A duration such as `30d`. Raises SettingsError."""
    found = _AGE.fullmatch(text)
    length_s = int(found[1]) * _SECONDS[found[2]] if found else None
    if length_s is None or length_s > _LONGEST_S:
        raise SettingsError(f"{text!r} is not an age: a number and s, m, h, d or w, such as 30d (a century at most)")
    return timedelta(seconds=length_s)


def class_of(subject: str) -> str:
    """The class of a subject of the log: its second token."""
    return subject.split(".", 2)[1]


def run_stays(state: RunState, letters: Iterable[DeadLetter], before: datetime) -> str | None:
    """Why a run stays; None: it may go."""
    if state.archived:
        return "is archived already"
    if state.ended_at is None:
        return "is open"
    if state.ended_at > before:
        return "ended too recently"
    if any(dead.is_open(letter, state) for letter in letters):
        return "has dead work"
    return None


def letter_stays(letter: DeadLetter, state: RunState | None) -> str | None:
    """Why a dead letter stays; None: it may go. Without its run nobody can do its work any more."""
    return "is still dead" if state is not None and dead.is_open(letter, state) else None


def _written(length: timedelta) -> str:
    seconds = int(length.total_seconds())
    if not seconds:
        return "0s"
    unit, size = next((unit, size) for unit, size in _SECONDS.items() if seconds % size == 0)
    return f"{seconds // size}{unit}"
