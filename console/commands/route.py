"""`phasebus route`: how a capability's work is shared out among versions of those who have it."""

from __future__ import annotations

import click

from console.lazy import LazyGroup

_COMMANDS = {
    "set": ("console.commands.routes:set_", "Share a capability's work out among versions."),
    "ls": ("console.commands.routes:ls", "List the routes that stand."),
    "show": ("console.commands.routes:show", "Show a route, what came of each arm's work, and how it was before."),
    "rm": ("console.commands.routes:rm", "Let a capability's work be for anybody who has it."),
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def route() -> None:
    """Share a capability's work out among versions: canary, A/B."""
