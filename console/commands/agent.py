"""`phasebus agent`: the commands about agents, by name."""

from __future__ import annotations

import click

from console.lazy import LazyGroup

_COMMANDS = {
    "run": ("console.commands.agent_run:run", "Serve an agent until SIGTERM or Ctrl-C; logs go to stderr."),
    "ls": ("console.commands.agent_ls:ls", "List the instances that answer now."),
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def agent() -> None:
    """Run an agent, or see which are there."""
