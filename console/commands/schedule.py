"""`phasebus schedule`: plans that are started at a time, every so often, or by cron."""

from __future__ import annotations

import click

from console.lazy import LazyGroup

_COMMANDS = {
    "add": ("console.commands.schedules:add", "Make a schedule, or replace the one of this name."),
    "ls": ("console.commands.schedules:ls", "List the schedules, and when each is due next."),
    "rm": ("console.commands.schedules:rm", "End a schedule."),
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def schedule() -> None:
    """Start runs at a time, every so often, or by cron."""
