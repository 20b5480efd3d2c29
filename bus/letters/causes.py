"""Causes: which deaths are alike. Numbers, ids and what is quoted differ from one to the next, and don't count."""

from __future__ import annotations

import hashlib
import re

import msgspec

from bus.rules.dead import DeadLetter, Unreadable

_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`")
# A word with a digit in it, and the eight hex digits that end the name of an instance.
_NUMBERED = re.compile(r"[\w.:/-]*\d[\w.:/-]*")
_INSTANCE = re.compile(r"-[0-9a-f]{8}\b")
_TITLE_CHARACTERS = 200


class Cause(msgspec.Struct, frozen=True, order=True):
    """What deaths of one group have in common. `key` is short for all of it, to be typed."""

    capability: str
    error_class: str
    code: str
    title: str

    @property
    def key(self) -> str:
        said = "\n".join((self.capability, self.error_class, self.code, self.title))
        return hashlib.blake2b(said.encode(), digest_size=4).hexdigest()


def cause_of(letter: DeadLetter | Unreadable) -> Cause:
    """The cause of a death, as far as others may share it."""
    if isinstance(letter, Unreadable):
        return Cause(letter.capability, "permanent", "unreadable", alike(letter.reason))
    problem = letter.problem
    return Cause(letter.capability, problem.error_class, problem.code, alike(problem.title))


def alike(text: str) -> str:
    """`text` without what makes it different from others of its kind."""
    text = _QUOTED.sub("'…'", text[:_TITLE_CHARACTERS])
    return _NUMBERED.sub("#", _INSTANCE.sub("-#", text))
