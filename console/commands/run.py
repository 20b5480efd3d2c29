"""`phasebus run`: the commands about runs, by name."""

from __future__ import annotations

import click

from console.lazy import LazyGroup

_COMMANDS = {
    "start": ("console.commands.start:start", "Start a run of a plan; prints its id."),
    "ls": ("console.commands.runs:ls", "List the runs, newest first."),
    "show": ("console.commands.runs:show", "Show a run as it is, or as it was at a position of the log or a time."),
    "follow": ("console.commands.start:follow", "Watch a run until it ends."),
    "approve": ("console.commands.decisions:approve", "Open a gate that waits."),
    "reject": ("console.commands.decisions:reject", "Close a gate that waits: its phase fails."),
    "cancel": ("console.commands.decisions:cancel", "Stop a run."),
    "redrive": ("console.commands.decisions:redrive", "Go on with a failed run: what succeeded is kept."),
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def run() -> None:
    """Start runs, look at them, and decide about them.

    The beginning of a run's id is enough where only one run has it.
    """
