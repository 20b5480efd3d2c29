"""The introduction of an instance: its card, made of what its author declared."""

from __future__ import annotations

import msgspec

from bus.format.schemas import anything
from bus.handlers.agent import Agent
from bus.registry.card import Card, Offering


def card(agent: Agent, instance: str, host: str, pid: int) -> Card:
    """The whole card of an instance, schemas included."""
    offered = agent.capabilities
    sides = [side for each in offered.values() for side in (each.takes, each.gives)]
    schemas = iter([msgspec.Raw(msgspec.json.encode(msgspec.json.schema(s, schema_hook=anything))) for s in sides])
    return Card(
        agent=agent.name,
        version=agent.version,
        instance=instance,
        host=host,
        pid=pid,
        tags=agent.tags,
        standby=agent.standby,
        capabilities={
            name: Offering(
                concurrency=each.concurrency,
                timeout_s=each.timeout_s,
                tags=each.tags,
                ordered=each.ordered,
                broadcast=each.broadcast,
                versioned=each.versioned,
                takes=next(schemas),
                gives=next(schemas),
            )
            for name, each in offered.items()
        },
    )
