"""`phasebus plan`: the commands about plans, by name."""

from __future__ import annotations

import click

from console.lazy import LazyGroup

_COMMANDS = {
    "show": ("console.commands.plan_show:show", "Show a plan's phases, and what each waits for."),
    "check": ("console.commands.plan_check:check", "Say what a plan would mean for the runs there are."),
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def plan() -> None:
    """Look at a plan, and what it would mean for the runs there are.

    A run keeps its plan. Another one is for the next runs, and for `phasebus run fork --plan`.
    """
