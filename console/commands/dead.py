"""`phasebus dead`: work that was given up for good. A letter's number is its position in the log."""

from __future__ import annotations

import click

from console.lazy import LazyGroup

_COMMANDS = {
    "ls": ("console.commands.dead_ls:ls", "List what is dead now."),
    "show": (
        "console.commands.dead_show:show",
        "Show a dead letter: its payload, every attempt, and why each failed.",
    ),
    "group": ("console.commands.dead_group:group", "Count what is dead now by cause."),
    "redrive": ("console.commands.dead_redrive:redrive", "Send dead work again to where it came from."),
    "edit": ("console.commands.dead_decide:edit", "Send dead work again with another payload."),
    "discard": ("console.commands.dead_decide:discard", "Say that nobody wants dead work any more."),
    "release": ("console.commands.dead_decide:release", "Let a capability go on that takes nothing after a death."),
    "export": ("console.commands.dead_group:export", "Write dead letters as JSON lines, whole."),
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def dead() -> None:
    """Work that was given up: look at it, send it again, let it be."""
