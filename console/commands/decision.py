"""`phasebus decision`: what agents and people are asked to vote on."""

from __future__ import annotations

import click

from console.lazy import LazyGroup

_COMMANDS = {
    "ls": ("console.commands.votes:ls", "List decisions, the newest last."),
    "show": ("console.commands.votes:show", "Show one decision with its votes."),
    "propose": ("console.commands.votes:propose", "Ask voters to choose an option."),
    "vote": ("console.commands.votes:vote", "Vote on a decision."),
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def decision() -> None:
    """Let agents and people vote, and see what they decided."""
