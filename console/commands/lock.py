"""`phasebus lock`: locks, permits of semaphores and leads of elections, by who has them."""

from __future__ import annotations

import click

from console.lazy import LazyGroup

_COMMANDS = {
    "ls": ("console.commands.locks:ls", "List who has which lock, permit and lead now."),
    "break": ("console.commands.locks:break_", "Take a lock, a permit or a lead from who has it."),
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def lock() -> None:
    """Locks, permits and leads: who has them, and taking them away."""
