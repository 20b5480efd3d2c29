"""`phasebus breaker`: which services and capabilities are closed to calls, and what somebody decides about it."""

from __future__ import annotations

import click

from console.lazy import LazyGroup

_COMMANDS = {
    "ls": ("console.commands.breakers:ls", "List the breakers that have ever opened, and how each stands."),
    "open": ("console.commands.breakers:open_", "Let no call through."),
    "close": ("console.commands.breakers:close", "Let every call through again."),
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def breaker() -> None:
    """Breakers of services and capabilities: look at them, open and close them."""
