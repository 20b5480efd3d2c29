"""Traffic: how much work there is, how long it waits and how long it takes, per capability and the agent that does it.

Rows are of one capability and one agent. Those of all agents, or of all capabilities, are added up when somebody asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from bus.history.happening import Happening
from bus.rules.priority import LEVELS, Priority
from projections.projection import MEMORY, Projection, Rows
from projections.sketch import Sketch, together
from projections.underway import Fact, Taken, Underway, after

MINUTES_KEPT = 60
"""Of older minutes only the sums are kept."""


class Minute(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What happened within one minute."""

    taken: int = 0
    completed: int = 0
    failed: int = 0


_NOTHING = Minute()


class Traffic(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """All the work of one capability that one agent did. `queued` is how long it waited, `worked` how long it took.

    `levels` is the former by the level at which it waited. `minutes` are the last sixty before `last_at`, by their
    number since 1970. What came from the cache took no time, and is counted apart.
    """

    capability: str
    agent: str
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
    return _added(rows, lambda row: row.capability, {"agent": ""})


def by_agent(rows: Iterable[Traffic]) -> dict[str, Traffic]:
    """The same of all capabilities together, by agent."""
    return _added(rows, lambda row: row.agent, {"capability": ""})


def _fold(rows: Rows[Any], happening: Happening) -> None:
    commit = happening.commit
    if commit is None:
        return
    memory = MEMORY + commit.run
    run, facts = after(rows.get(memory), commit)
    for fact in facts:
        key = f"{fact.capability}/{fact.agent}"
        row = rows.get(key) or Traffic(capability=fact.capability, agent=fact.agent, last_at=fact.at)
        rows[key] = _with(row, fact)
    if run is not None:
        rows[memory] = run
    else:
        del rows[memory]


def _with(row: Traffic, fact: Fact) -> Traffic:
    last_at = max(row.last_at, fact.at)
    number = _minute(fact.at)
    old = row.minutes.get(number, _NOTHING)
    minutes = dict(row.minutes)
    if isinstance(fact, Taken):
        minutes[number] = Minute(old.taken + 1, old.completed, old.failed)
        changes: dict[str, Any] = {"taken": row.taken + 1, "queued": row.queued.with_one(fact.queue_s)}
        changes["levels"] = {**row.levels, fact.level: row.levels.get(fact.level, Sketch()).with_one(fact.queue_s)}
    elif fact.outcome == "completed":
        minutes[number] = Minute(old.taken, old.completed + 1, old.failed)
        worked = row.worked if fact.is_cached else row.worked.with_one(fact.work_s)
        changes = {"completed": row.completed + 1, "cached": row.cached + fact.is_cached, "worked": worked}
    elif fact.outcome == "failed":
        minutes[number] = Minute(old.taken, old.completed, old.failed + 1)
        changes = {"failed": row.failed + 1, "worked": row.worked.with_one(fact.work_s)}
    else:
        changes = {"cancelled": row.cancelled + 1}
    return replace(row, last_at=last_at, minutes=_recent(minutes, _minute(last_at)), **changes)


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
    name="traffic", version=1, row=Traffic, memory=Underway, fold=_fold, subjects=["run.*"], whole=True
)
"""How much work there is, how long it waits and takes, by `capability/agent`."""
