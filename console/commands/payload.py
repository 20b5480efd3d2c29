"""`phasebus payload`: payloads too large for a message. They are objects in a bucket, named by their hash."""

from __future__ import annotations

import click

from console.lazy import LazyGroup

_COMMANDS = {
    "ls": ("console.commands.payload_ls:ls", "List the payloads in the object store."),
    "gc": ("console.commands.payload_gc:gc", "Remove payloads that no record of the log refers to."),
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def payload() -> None:
    """Payloads too large for a message: list them, remove garbage."""
