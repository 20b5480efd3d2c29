"""`phasebus events`: the commands about what is in the log, whoever put it there."""

from __future__ import annotations

import click

from console.lazy import LazyGroup

_COMMANDS = {
    "cat": ("console.commands.events_show:cat", "Print events of the log, in order."),
    "tail": ("console.commands.events_show:tail", "Print the newest events, and with --follow those to come."),
    "export": ("console.commands.events_move:export", "Write records of the log as JSON lines, without any loss."),
    "import": ("console.commands.events_move:import_", "Append an export to this bus, or to one of its own."),
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def events() -> None:
    """Look at what is in the log, and move it to another.

    An event's place is the position of its record in the log and its index in it.
    """
