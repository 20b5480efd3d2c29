"""Traffic: how much work there is, how long it waits and how long it takes, per capability and the agent that does it.

Rows are of one capability and one agent; where a route shares the work out, of one arm of it. Those of all agents, or
of all capabilities, are added up when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from bus.history.happening import Happening
from bus.rules.priority import LEVELS, Priority
from projections.projection import Projection, Rows, each_of
from projections.sketch import Adding, Sketch, together
from projections.underway import Fact, Taken, Underway, worked

MINUTES_KEPT = 60
"""Of older minutes only the sums are kept."""


class Minute(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What happened within one minute."""

    taken: int = 0
    completed: int = 0
    failed: int = 0


_NOTHING = Minute()


class Traffic(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """All the work of one capability that one agent did, as one of those whom a route gave it to (`arm`, the versions),
    if one did. `queued` is how long it waited, `worked` how long it took.

    `levels` is the former by the level at which it waited. `minutes` are the last sixty before `last_at`, by their
    number since 1970. What came from the cache took no time, and is counted apart.
    """

    capability: str
    agent: str
    arm: str = ""
    taken: int = 0
    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    cached: int = 0
    queued: Sketch = Sketch()
    worked: Sketch = Sketch()
    levels: Mapping[Priority, Sketch] = {}
    minutes: Mapping[int, Minute] = {}
    last_at: datetime

    @property
    def held(self) -> int:
        """How much of it is under way."""
        return self.taken - self.completed - self.failed - self.cancelled


class Rates(msgspec.Struct, frozen=True):
    """Per second, over the last minutes that are over."""

    taken: float
    completed: float
    failed: float


def rates(row: Traffic, now: datetime, *, minutes: int = 5) -> Rates:
    """How much is going on. `minutes` is at most 60."""
    current = _minute(now)
    recent = [each for number, each in row.minutes.items() if current - minutes <= number < current]
    seconds = minutes * 60
    return Rates(
        sum(each.taken for each in recent) / seconds,
        sum(each.completed for each in recent) / seconds,
        sum(each.failed for each in recent) / seconds,
    )


def by_capability(rows: Iterable[Traffic]) -> dict[str, Traffic]:
    """The same of all agents together, by capability."""
    return _added(rows, lambda row: row.capability, {"agent": "", "arm": ""})


def by_arm(rows: Iterable[Traffic], capability: str) -> dict[str, Traffic]:
    """What each arm of a capability's routes has got, of all agents together, by its versions; '' is what none got."""
    return _added((row for row in rows if row.capability == capability), lambda row: row.arm, {"agent": ""})


def by_agent(rows: Iterable[Traffic]) -> dict[str, Traffic]:
    """The same of all capabilities together, by agent."""
    return _added(rows, lambda row: row.agent, {"capability": "", "arm": ""})


def _stretch(rows: Rows[Any], happenings: Sequence[Happening]) -> None:
    tallies: dict[tuple[str, ...], _Tally] = {}
    for facts in worked(rows, happenings):
        for fact in facts:
            place = (fact.capability, fact.agent, *((fact.arm,) if fact.arm else ()))
            tally = tallies.get(place)
            if tally is None:
                tally = tallies[place] = _Tally(rows.get("/".join(place)), fact)
            tally.add(fact)
    for place, tally in tallies.items():
        rows["/".join(place)] = tally.row


class _Tally:
    """A row while facts are added to it."""

    def __init__(self, row: Traffic | None, first: Fact) -> None:
        self._before = row or Traffic(capability=first.capability, agent=first.agent, arm=first.arm, last_at=first.at)
        self._taken = self._completed = self._failed = self._cancelled = self._cached = 0
        self._queued, self._worked = Adding(self._before.queued), Adding(self._before.worked)
        self._levels: dict[Priority, Adding] = {}
        self._minutes = dict(self._before.minutes)
        self._last_at = self._before.last_at

    def add(self, fact: Fact) -> None:
        at = fact.at
        self._last_at = max(self._last_at, at)
        number = _minute(at)
        old = self._minutes.get(number, _NOTHING)
        if isinstance(fact, Taken):
            self._taken += 1
            self._queued.add(fact.queue_s)
            level = self._levels.get(fact.level)
            if level is None:
                level = self._levels[fact.level] = Adding(self._before.levels.get(fact.level, Sketch()))
            level.add(fact.queue_s)
            self._minutes[number] = Minute(old.taken + 1, old.completed, old.failed)
            return
        if fact.outcome == "completed":
            self._completed += 1
            self._cached += fact.is_cached
            self._minutes[number] = Minute(old.taken, old.completed + 1, old.failed)
        elif fact.outcome == "failed":
            self._failed += 1
            self._minutes[number] = Minute(old.taken, old.completed, old.failed + 1)
        else:
            self._cancelled += 1
            return
        if not fact.is_cached:
            self._worked.add(fact.work_s)

    @property
    def row(self) -> Traffic:
        before = self._before
        return replace(
            before,
            taken=before.taken + self._taken,
            completed=before.completed + self._completed,
            failed=before.failed + self._failed,
            cancelled=before.cancelled + self._cancelled,
            cached=before.cached + self._cached,
            queued=self._queued.sketch,
            levels={**before.levels, **{level: adding.sketch for level, adding in self._levels.items()}},
            worked=self._worked.sketch,
            minutes=_recent(self._minutes, _minute(self._last_at)),
            last_at=self._last_at,
        )


def _recent(minutes: dict[int, Minute], newest: int) -> dict[int, Minute]:
    oldest = newest - MINUTES_KEPT
    if len(minutes) <= MINUTES_KEPT and min(minutes, default=newest) > oldest:
        return minutes
    return {number: each for number, each in minutes.items() if number > oldest}


def _minute(at: datetime) -> int:
    return int(at.timestamp() // 60)


def _added(rows: Iterable[Traffic], key: Callable[[Traffic], str], changes: dict[str, str]) -> dict[str, Traffic]:
    groups: dict[str, list[Traffic]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return {name: replace(_sum(group), **changes) for name, group in sorted(groups.items())}


def _sum(rows: list[Traffic]) -> Traffic:
    last_at = max(row.last_at for row in rows)
    minutes: dict[int, Minute] = {}
    for row in rows:
        for number, each in row.minutes.items():
            old = minutes.get(number, Minute())
            minutes[number] = Minute(old.taken + each.taken, old.completed + each.completed, old.failed + each.failed)
    return replace(
        rows[0],
        taken=sum(row.taken for row in rows),
        completed=sum(row.completed for row in rows),
        failed=sum(row.failed for row in rows),
        cancelled=sum(row.cancelled for row in rows),
        cached=sum(row.cached for row in rows),
        queued=together(row.queued for row in rows),
        worked=together(row.worked for row in rows),
        levels={
            level: together(row.levels[level] for row in rows if level in row.levels)
            for level in LEVELS
            if any(level in row.levels for row in rows)
        },
        minutes=_recent(minutes, _minute(last_at)) if minutes else {},
        last_at=last_at,
    )


TRAFFIC: Projection[Any] = Projection(
    name="traffic",
    version=3,
    row=Traffic,
    memory=Underway,
    fold=each_of(_stretch),
    stretch=_stretch,
    subjects=["run.*"],
    whole=True,
)
"""How much work there is, how long it waits and takes, by `capability/agent`, or `capability/agent/versions`."""
