"""`phasebus archive`: what is old enough leaves the log, for files that can be read as if it had not."""

from __future__ import annotations

import click

from console.lazy import LazyGroup

_COMMANDS = {
    "run": ("console.commands.archive_run:run", "Archive what is old enough, and take it out of the log."),
    "ls": ("console.commands.archive_show:ls", "List the segments of an archive."),
    "verify": ("console.commands.archive_show:verify", "Read an archive from beginning to end and check every byte."),
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def archive() -> None:
    """Move what is old enough from the log to files, and look at them."""
