"""`phasebus projection`: what is true now, kept in a database."""

from __future__ import annotations

import click

from console.lazy import LazyGroup

_COMMANDS = {
    "run": (
        "console.commands.projections:run",
        "Keep projections up to date until Ctrl-C: all that ship, or those named.",
    ),
    "ls": ("console.commands.projections:ls", "List what is kept, and how far each is behind the log."),
    "lag": (
        "console.commands.projections:lag",
        "Fail if a projection is behind the log by more than --max: exit code 1, for a health check.",
    ),
    "rebuild": (
        "console.commands.projections:rebuild",
        "Build projections anew beside those that are read, then swap them: all that ship, or those named.",
    ),
    "query": (
        "console.commands.projections:query",
        "Print the rows of a projection as JSON, one to a line, or the one with that key; as of now, or as of before.",
    ),
    "schema": (
        "console.commands.projections:schema",
        "Print the JSON Schema of a projection's rows: for programs in other languages that subscribe to them.",
    ),
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def projection() -> None:
    """What is true now, kept in a database: build it, see how far it is, ask it."""
