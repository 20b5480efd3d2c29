"""`phasebus limit`: what all agents together may take of a service, and what is left of it."""

from __future__ import annotations

import click

from console.lazy import LazyGroup

_COMMANDS = {"ls": ("console.commands.limits:ls", "List the limits, and what is left of each.")}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def limit() -> None:
    """Limits and budgets that all agents share."""
