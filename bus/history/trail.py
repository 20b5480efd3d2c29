"""A trail: a run's events in order, and the run as it was before and after each of them.

States are folded from the nearest one that is kept, so a step in either direction takes the same short time, however
long the run is. Pure: where somebody stands on the trail is theirs to remember.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import datetime
from fnmatch import fnmatchcase

from msgspec.structs import replace

from bus.errors import NotFound
from bus.history.happening import Happening
from bus.rules.events import Commit, archived
from bus.rules.folding import Folding
from bus.rules.run import RunState

_KEPT_EVERY = 64
# How bytes that anybody could publish fail to follow from what was before.
_NOT_FOLLOWING = (AssertionError, LookupError, ValueError, TypeError, AttributeError, OverflowError)


class Trail:
    """The `happenings` of one run, all of them and in order. Places on it count from 0."""

    def __init__(self, run: str, happenings: Sequence[Happening]) -> None:
        """Raises NotFound if there is nothing to walk along."""
        if not happenings:
            raise NotFound(f"there is nothing of run {run!r} in this log")
        self.run = run
        self.happenings = happenings
        self._spots = [(each.position, each.index) for each in happenings]
        # Where each record begins: what was stored together is folded together, or set aside together.
        self._begins = [place for place, each in enumerate(happenings) if each.index == 0]
        self._kept: dict[int, RunState | None] = {0: None}
        self._asides: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.happenings)

    @property
    def asides(self) -> dict[int, str]:
        """Positions of records that say nothing about the run, as far as was looked, with the reason."""
        return self._asides

    def before(self, place: int) -> RunState | None:
        """The run before an event; None before its beginning."""
        record = self._record(place)
        begin = self._begins[record]
        return self._upto(record) if place == begin else self._within(record, place)

    def after(self, place: int) -> RunState | None:
        """The run after an event. Within a commit its position is still the one before."""
        record = self._record(place)
        end = self._begins[record + 1] if record + 1 < len(self._begins) else len(self.happenings)
        return self._upto(record + 1) if place + 1 == end else self._within(record, place + 1)

    def at(self, position: int, index: int | None = None) -> int:
        """The place of the newest event at or before a position of the log; the first if there is none."""
        spot = (position, index) if index is not None else (position + 1, -1)
        cut = bisect_right(self._spots, spot) if index is not None else bisect_left(self._spots, spot)
        return max(cut - 1, 0)

    def at_time(self, instant: datetime) -> int:
        """The place of the newest event that had been stored by then; the first if there is none."""
        return max(bisect_right(self.happenings, instant, key=lambda each: each.stored_at) - 1, 0)

    def find(self, words: str, after: int, *, backwards: bool = False) -> int | None:
        """The next place behind (or before) one whose event is of that type or phase, or names it; None if no more.

        `phase.failed`, `phase.*`, `write`, `write:3`.
        """
        places = range(after - 1, -1, -1) if backwards else range(after + 1, len(self.happenings))
        return next((place for place in places if is_about(self.happenings[place], words)), None)

    def _record(self, place: int) -> int:
        """Which record an event stands in."""
        return bisect_right(self._begins, place) - 1

    def _upto(self, record: int) -> RunState | None:
        """The run before a record."""
        nearest = record // _KEPT_EVERY * _KEPT_EVERY
        while nearest not in self._kept:
            nearest -= _KEPT_EVERY
        state = self._kept[nearest]
        while nearest < record:
            upto = min(nearest + _KEPT_EVERY, record)
            state = self._fold(state, nearest, upto)
            nearest = upto
            if nearest % _KEPT_EVERY == 0:
                self._kept[nearest] = state
        return state

    def _fold(self, state: RunState | None, first: int, end: int) -> RunState | None:
        records = [self.happenings[self._begins[each]] for each in range(first, end)]
        try:
            folding = Folding(state)
            for each in records:
                if not _is_last_word(each.commit):
                    folding.add(_commit(each))
        except _NOT_FOLLOWING:
            for each in records:
                state = self._with(state, each)
            return state
        return folding.state

    def _with(self, state: RunState | None, record: Happening) -> RunState | None:
        try:
            folding = Folding(state)
            if not _is_last_word(record.commit):
                folding.add(_commit(record))
        except _NOT_FOLLOWING as error:
            self._asides[record.position] = record.problem or str(error) or type(error).__name__
            return replace(state, position=record.position) if state is not None else None
        return folding.state

    def _within(self, record: int, place: int) -> RunState | None:
        """The run before an event in the middle of a commit: what is decided together happens one after the other."""
        begin = self._begins[record]
        before = self._upto(record)
        first = self.happenings[begin]
        if first.position in self._asides or first.commit is None:
            return before
        try:
            folding = Folding(before)
            told = first.commit.events[: place - begin]
            if before is None:
                folding.add(replace(first.commit, events=told))
            else:
                folding.apply(told, first.commit.at)
        except _NOT_FOLLOWING:
            return before
        return folding.state


def is_about(happening: Happening, words: str) -> bool:
    """Whether an event is of a type, or about a phase or an item, that was named."""
    kind = happening.type.rpartition(".v")[0] or happening.type
    places = (happening.phase, f"{happening.phase}:{happening.item}" if happening.item is not None else happening.phase)
    return words in places or fnmatchcase(kind, words) or fnmatchcase(happening.type, words)


def _is_last_word(commit: Commit | None) -> bool:
    """What an archived run leaves behind where its past can't be read."""
    return commit is not None and archived(commit) is not None


def _commit(record: Happening) -> Commit:
    if record.commit is None:
        raise ValueError(record.problem or "not a commit of a run")
    return record.commit
