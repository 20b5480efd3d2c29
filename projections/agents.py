"""Agents: every instance there was, in which version, whether it is well, what it holds and what came of its work.

It is what the log says. Whether an instance lives at this moment, it says itself, when it is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from bus.rules.events import Commit
from projections.projection import MEMORY, Projection, Rows
from projections.underway import Ended, Taken, Underway, after

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


def _fold(rows: _Rows, happening: Happening) -> None:
    if happening.commit is not None:
        _work(rows, happening.commit)
        return
    message = happening.message
    assert message is not None, "what can't be read is set aside before"
    if happening.kind == "agent":
        match read_event(message):
            case Card() as card:
                _came(rows, card, message.time)
            case (AgentDeregistered() | AgentLost()) as end:
                _went(rows, end, message.time)
            case None:
                pass
    elif (order := read_order(message)) is not None:
        _ordered(rows, order)


def _work(rows: _Rows, commit: Commit) -> None:
    memory = MEMORY + commit.run
    before: Underway | None = rows.get(memory)
    run, facts = after(before, commit)
    for fact in facts:
        row = _instance(rows, fact.agent, fact.instance, fact.at)
        match fact:
            case Taken():
                row = replace(row, taken=row.taken + 1, held=row.held + 1)
            case Ended(outcome="completed"):
                row = replace(row, completed=row.completed + 1, held=row.held - 1)
            case Ended(outcome="failed"):
                row = replace(row, failed=row.failed + 1, held=row.held - 1)
            case Ended():
                row = replace(row, held=row.held - 1)
        rows[fact.instance] = replace(row, last_at=max(row.last_at, fact.at))
    if run is not None:
        rows[memory] = run
    else:
        del rows[memory]


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
    fold=_fold,
    subjects=["run.*", "agent.>", f"ops.{AREA}"],
    whole=True,
)
"""Every instance of every agent, by its name."""
