"""The contract: a projection is a name, a version, a kind of row, and a pure fold of one event into its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from bus.history.happening import Happening, Said

R = TypeVar("R")
_ABSENT: Any = object()

MEMORY = "~"
"""A key that begins with it is a row the fold keeps for itself, of type `memory`: stored with the others, not shown."""


class Projection(msgspec.Struct, Generic[R], frozen=True, kw_only=True):
    """What is true, as a function of the log: rows by key, which each event may change.

    `fold(rows, happening)` reads and writes rows by key, and nothing else: no clock, no other state. A row is a value
    that is never changed in place. If the fold raises, nothing of that event counts: it is set aside, and the
    projection goes on. `subjects` are those it wants to see, without the namespace, and `types` the types of event, all
    if none is named. With `whole` it takes a commit at once: it is called with the first of its events, which has the
    commit. `glance` makes of a row the little that a list shows, which is stored beside it. `subject_of` a key is the
    one subject its row depends on, if there is one: nothing else is read then to tell what the row was. Rows under keys
    that begin with `~` are what the fold has to remember: of type `memory`, and never shown. `version` goes up when the
    fold makes something else of the same events: rows kept from an older one are built again.

    `stretch` is the same for many events, in order, and only faster: it may build each row once for all of them. If it
    raises, nothing of it counts, and `fold` is asked for each. `each_of` makes a fold of it, so that there is one rule.
    """

    name: str
    version: int
    row: Any
    memory: Any = None
    fold: Callable[[Rows[R], Happening], None]
    stretch: Callable[[Rows[R], Sequence[Happening]], None] | None = None
    subjects: Sequence[str] = (">",)
    types: frozenset[str] = frozenset()
    whole: bool = False
    glance: Callable[[R], Any] | None = None
    subject_of: Callable[[str], str] | None = None

    def takes(self, happening: Happening) -> bool:
        """Whether it is to fold this one. That something can't be read concerns whoever wanted to see it."""
        if happening.problem:
            return True
        if self.whole and happening.commit is not None:
            return not happening.index
        return not self.types or happening.type in self.types

    def wanted(self, saids: Iterable[Said]) -> list[Happening]:
        """What of some records it takes, in order."""
        if self.whole and not self.types:
            return [said.first for said in saids]
        if not self.types:
            return [each for said in saids for each in said.happenings]
        types, found = self.types, []
        for said in saids:
            if said.problem or (self.whole and said.commit is not None):
                found.append(said.first)
            elif not types.isdisjoint(said.types):
                pairs = zip(said.happenings, said.types, strict=True)
                found += [each for each, type in pairs if type in types]
        return found


def each_of(stretch: Callable[[Rows[R], Sequence[Happening]], None]) -> Callable[[Rows[R], Happening], None]:
    """The fold of one event that a fold of many is."""
    return lambda rows, happening: stretch(rows, (happening,))


class Aside(msgspec.Struct, frozen=True):
    """An event that was passed over: where it stands, and why."""

    position: int
    index: int
    subject: str
    reason: str


class Rows(Generic[R]):
    """Rows by key, as a fold sees them: what is stored, and the changes since.

    They can't be listed: a fold that looks at every row for each event takes the longer the more there are.
    """

    def __init__(self, stored: Callable[[str], R | None]) -> None:
        self._stored = stored
        self._new: set[str] = set()
        self._before: dict[str, R | None] = {}
        self.changes: dict[str, R | None] = {}
        """What has changed, by key. None: the row is gone."""

    def get(self, key: str) -> R | None:
        """The row, or None."""
        found = self.changes.get(key, _ABSENT)
        if found is not _ABSENT:
            row: R | None = found
            return row
        row = None if key in self._new else self._stored(key)
        if row is None:
            self._new.add(key)
        return row

    def __getitem__(self, key: str) -> R:
        row = self.get(key)
        if row is None:
            raise KeyError(key)
        return row

    def __contains__(self, key: str) -> bool:
        return self.get(key) is not None

    def __setitem__(self, key: str, row: R) -> None:
        if key not in self._before:
            self._before[key] = self.changes.get(key, _ABSENT)
        self.changes[key] = row

    def __delitem__(self, key: str) -> None:
        if key not in self._before:
            self._before[key] = self.changes.get(key, _ABSENT)
        self.changes[key] = None

    @property
    def told(self) -> dict[str, R | None]:
        """The changes, without rows that came and went: nobody has seen them."""
        return {key: row for key, row in self.changes.items() if row is not None or key not in self._new}

    def is_new(self, key: str) -> bool:
        """Whether nothing was stored under that key when it was first asked for."""
        return key in self._new

    def fold(self, projection: Projection[R], happenings: Sequence[Happening]) -> list[Aside]:
        """Fold events in, each whole or not at all. Says which had to be set aside."""
        if projection.stretch is not None and len(happenings) > 1 and not any(each.problem for each in happenings):
            self._before.clear()
            try:
                projection.stretch(self, happenings)
            except Exception:  # noqa: BLE001 - one of them can't be folded: it is found by folding each
                self._take_back()
            else:
                return []
        asides = [self._add(projection, each) for each in happenings]
        return [each for each in asides if each is not None]

    def _add(self, projection: Projection[R], happening: Happening) -> Aside | None:
        reason = happening.problem
        if not reason:
            self._before.clear()
            try:
                projection.fold(self, happening)
            except Exception as error:  # noqa: BLE001 - whatever a fold raises, the events behind it are not to blame
                reason = f"{type(error).__name__}: {error}"
                self._take_back()
            else:
                return None
        return Aside(happening.position, happening.index, happening.subject, reason)

    def _take_back(self) -> None:
        for key, row in self._before.items():
            if row is _ABSENT:
                del self.changes[key]
            else:
                self.changes[key] = row


class View(msgspec.Struct, Generic[R], frozen=True):
    """A projection's rows by key, in memory, as of `position` (0: nothing has been folded), and what was set aside."""

    rows: Mapping[str, R] = msgspec.field(default_factory=dict)
    position: int = 0
    asides: Sequence[Aside] = ()


def fold(projection: Projection[R], view: View[R], happenings: Iterable[Happening]) -> View[R]:
    """The view after these events; the one it is given stays as it is. Those at or before its position are ignored."""
    rows: Rows[R] = Rows(view.rows.get)
    new = [each for each in happenings if each.position > view.position]
    asides = [*view.asides, *rows.fold(projection, [each for each in new if projection.takes(each)])]
    position = max((each.position for each in new), default=view.position)
    after = dict(view.rows)
    for key, row in rows.changes.items():
        if row is None:
            after.pop(key, None)
        else:
            after[key] = row
    return View(after, position, tuple(asides))
