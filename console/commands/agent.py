"""`phasebus agent`: the commands about agents, by name."""

from __future__ import annotations

import click

from console.lazy import LazyGroup

_COMMANDS = {
    "run": ("console.commands.agent_run:run", "Serve an agent until SIGTERM or Ctrl-C; logs go to stderr."),
    "ls": ("console.commands.agent_ls:ls", "List the instances that are there now, and how they stand."),
    "show": ("console.commands.agent_ls:show", "Show all there is to know of an instance, also of one that is gone."),
    "drain": (
        "console.commands.agent_orders:drain",
        "Let instances that are there finish what they have begun, and end.",
    ),
    "quarantine": (
        "console.commands.agent_orders:quarantine",
        "Let instances take nothing more until they are released.",
    ),
    "release": (
        "console.commands.agent_orders:release",
        "End the quarantine of exactly the agent, instance or version that was named.",
    ),
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def agent() -> None:
    """Run an agent, see which are there, and tell them what to do."""
