"""`phasebus cache`: outputs that are used again while all they depend on is the same."""

from __future__ import annotations

import click

from console.lazy import LazyGroup

_COMMANDS = {
    "ls": ("console.commands.cached:ls", "List what can be used again, oldest first."),
    "forget": ("console.commands.cached:forget", "Let what is cached be computed anew."),
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def cache() -> None:
    """Outputs that are used again while all they depend on is the same."""
