"""Agents: every instance there was, in which version, whether it is well, what it holds and what came of its work.

It is what the log says. Whether an instance lives at this moment, it says itself, when it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from bus.history.happening import Happening
from bus.registry.card import (
    AgentDeregistered,
    AgentLost,
    Card,
    ended,
    read_event,
)
from bus.registry.orders import (
    AREA,
    AgentDrained,
    AgentQuarantined,
    AgentReleased,
    Order,
    Whom,
    read_order,
)
from projections.projection import MEMORY, Projection, Rows, each_of
from projections.underway import Fact, Taken, Underway, worked

Health = Literal["registered", "draining", "quarantined", "ended", "lost", "unknown"]
"""`registered`: it came and nothing was heard of its end. `unknown`: it did work, and never registered in this log."""

ENDED_KEPT = 50
"""Instances of an agent that have ended and are still shown; older ones go."""
_KNOWN = f"{MEMORY}agent/"
_QUARANTINES = f"{MEMORY}orders/quarantines"


class Instance(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """One instance of an agent. `capabilities` maps each to how many attempts it holds at once.

    `taken` pieces of work, of which it has `completed` and `failed` some and `held` are under way. `reason` is how it
    ended, or why it is not to work.
    """

    agent: str
    instance: str
    version: str = ""
    host: str = ""
    pid: int = 0
    capabilities: Mapping[str, int] = {}
    tags: tuple[str, ...] = ()
    health: Health = "unknown"
    reason: str = ""
    since: datetime
    last_at: datetime
    taken: int = 0
    held: int = 0
    completed: int = 0
    failed: int = 0
    lost: int = 0


class Known(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=True):
    """Of one agent: its instances, those that came first before others, and which of them have ended."""

    instances: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()


class Quarantines(msgspec.Struct, frozen=True, gc=False, array_like=True, tag=True):
    """Whom operators have put in quarantine, and why."""

    standing: tuple[tuple[Whom, str], ...] = ()


Memory = Underway | Known | Quarantines
_Rows = Rows[Any]


def _stretch(rows: _Rows, happenings: Sequence[Happening]) -> None:
    facts = worked(rows, happenings)
    doings: dict[str, _Doing] = {}
    for each in happenings:
        if each.commit is not None:
            for fact in next(facts):
                doing = doings.get(fact.instance)
                if doing is None:
                    doing = doings[fact.instance] = _Doing(_instance(rows, fact.agent, fact.instance, fact.at))
                elif doing.is_over:
                    _instance(rows, fact.agent, fact.instance, fact.at)
                doing.add(fact)
            continue
        # What is said of the instances themselves is told of their rows.
        _settle(rows, doings)
        message = each.message
        assert message is not None, "what can't be read is set aside before"
        if each.kind == "agent":
            match read_event(message):
                case Card() as card:
                    _came(rows, card, message.time)
                case (AgentDeregistered() | AgentLost()) as end:
                    _went(rows, end, message.time)
                case None:
                    pass
        elif (order := read_order(message)) is not None:
            _ordered(rows, order)
    _settle(rows, doings)


def _settle(rows: _Rows, doings: dict[str, _Doing]) -> None:
    for instance, doing in doings.items():
        rows[instance] = doing.row
    doings.clear()


class _Doing:
    """An instance's row while what it does is added to it."""

    def __init__(self, row: Instance) -> None:
        self._before = row
        self._taken = self._completed = self._failed = self._held = 0
        self._last_at = row.last_at
        self.is_over = row.health in {"ended", "lost"}

    def add(self, fact: Fact) -> None:
        self._last_at = max(self._last_at, fact.at)
        if isinstance(fact, Taken):
            self._taken += 1
            self._held += 1
            return
        self._held -= 1
        if fact.outcome == "completed":
            self._completed += 1
        elif fact.outcome == "failed":
            self._failed += 1

    @property
    def row(self) -> Instance:
        before = self._before
        return replace(
            before,
            taken=before.taken + self._taken,
            held=before.held + self._held,
            completed=before.completed + self._completed,
            failed=before.failed + self._failed,
            last_at=self._last_at,
        )


def _came(rows: _Rows, card: Card, at: datetime) -> None:
    row = _instance(rows, card.agent, card.instance, at)
    rows[card.instance] = _under_orders(
        rows,
        replace(
            row,
            version=card.version,
            host=card.host,
            pid=card.pid,
            capabilities={name: each.concurrency for name, each in card.capabilities.items()},
            tags=card.tags,
            last_at=at,
        ),
    )


def _went(rows: _Rows, end: AgentDeregistered | AgentLost, at: datetime) -> None:
    row = _instance(rows, end.agent, end.instance, at)
    is_loss = isinstance(end, AgentLost)
    rows[end.instance] = replace(
        row, health="lost" if is_loss else "ended", reason=ended(end), last_at=at, lost=row.lost + is_loss
    )
    known = _known(rows, end.agent)
    gone = (*(each for each in known.ended if each != end.instance), end.instance)
    for old in gone[:-ENDED_KEPT]:
        del rows[old]
    rows[_KNOWN + end.agent] = Known(
        tuple(each for each in known.instances if each != end.instance), gone[-ENDED_KEPT:]
    )


def _ordered(rows: _Rows, order: Order) -> None:
    agent = order.whom.agent
    quarantines = _quarantines(rows)
    others = tuple(each for each in quarantines.standing if each[0] != order.whom)
    match order:
        case AgentQuarantined():
            rows[_QUARANTINES] = Quarantines((*others, (order.whom, f"{order.by}: {order.reason}".rstrip(": "))))
        case AgentReleased():
            rows[_QUARANTINES] = Quarantines(others)
        case AgentDrained():
            pass
    for name in _known(rows, agent).instances:
        row = rows[name]
        if isinstance(order, AgentDrained) and order.whom.names(row):
            rows[name] = replace(row, health="draining", reason=f"{order.by}: {order.reason}".rstrip(": "))
        elif row.health in {"registered", "quarantined"}:
            rows[name] = _under_orders(rows, row)


def _under_orders(rows: _Rows, row: Instance) -> Instance:
    """As it stands with the quarantines there are."""
    reason = next((why for whom, why in _quarantines(rows).standing if whom.names(row)), None)
    if reason is None:
        return replace(row, health="registered", reason="")
    return replace(row, health="quarantined", reason=reason)


def _instance(rows: _Rows, agent: str, instance: str, at: datetime) -> Instance:
    """Its row, or a new one; and from now on it is known."""
    row: Instance | None = rows.get(instance)
    if row is None or row.health in {"ended", "lost"}:
        known = _known(rows, agent)
        rows[_KNOWN + agent] = Known(
            (*(each for each in known.instances if each != instance), instance),
            tuple(each for each in known.ended if each != instance),
        )
    return row or Instance(agent=agent, instance=instance, since=at, last_at=at)


def _known(rows: _Rows, agent: str) -> Known:
    found: Known | None = rows.get(_KNOWN + agent)
    return found or Known()


def _quarantines(rows: _Rows) -> Quarantines:
    found: Quarantines | None = rows.get(_QUARANTINES)
    return found or Quarantines()


AGENTS: Projection[Any] = Projection(
    name="agents",
    version=1,
    row=Instance,
    memory=Memory,
    fold=each_of(_stretch),
    stretch=_stretch,
    subjects=["run.*", "agent.>", f"ops.{AREA}"],
    whole=True,
)
"""Every instance of every agent, by its name."""
