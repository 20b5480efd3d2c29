"""`phasebus dead`: work that was given up for good. A letter's number is its position in the log."""

from __future__ import annotations

import click

from console.lazy import LazyGroup

_COMMANDS = {
    "ls": ("console.commands.dead_show:ls", "List what is dead now."),
    "show": ("console.commands.dead_show:show", "Show a dead letter: its payload, every attempt, and why each failed."),
    "redrive": ("console.commands.dead_redrive:redrive", "Send dead work again to where it came from."),
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def dead() -> None:
    """Work that was given up: look at it, send it again."""
