"""`phasebus run`: the commands about runs, by name."""

from __future__ import annotations

import click

from console.lazy import LazyGroup

_COMMANDS = {
    "start": ("console.commands.start:start", "Start a run of a plan; prints its id."),
    "ls": ("console.commands.runs:ls", "List the runs, newest first."),
    "show": ("console.commands.runs:show", "Show a run as it is, or as it was at a position of the log or a time."),
    "forecasts": ("console.commands.forecasts:forecasts", "Score the forecasts of past runs against what happened."),
    "follow": ("console.commands.start:follow", "Watch a run until it ends."),
    "approve": ("console.commands.decisions:approve", "Open a gate that waits."),
    "reject": ("console.commands.decisions:reject", "Close a gate that waits: its phase fails."),
    "cancel": ("console.commands.decisions:cancel", "Stop a run."),
    "pause": ("console.commands.steering:pause", "Hold a run: nothing more of it is taken."),
    "resume": ("console.commands.steering:resume", "Let a paused run go on."),
    "skip": ("console.commands.steering:skip", "Let a phase pass without its work."),
    "signal": ("console.commands.steering:signal", "Tell a run what one of its phases waits for."),
    "redrive": ("console.commands.decisions:redrive", "Try again what failed: what succeeded is kept."),
    "rerun": ("console.commands.steering:rerun", "Do again what an ended run has done, from a phase on."),
    "checkpoint": ("console.commands.steering:checkpoint", "Name this moment of a run, to go back to it."),
    "rollback": ("console.commands.steering:rollback", "Undo what a run has done since, then do it again."),
    "fork": ("console.commands.steering:fork", "Start a run that takes over what another has done."),
    "effect": ("console.commands.effect:effect", "Say what became of what a handler did outside."),
    "diff": ("console.commands.run_diff:diff", "Compare two runs phase by phase, and find where they part."),
    "why": (
        "console.commands.why:why",
        "Say why a phase ran, for what it waited and how long, why it failed, and what comes next.",
    ),
    "verify": ("console.commands.verify:verify", "Check that runs keep what is promised of every run."),
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def run() -> None:
    """Start runs, look at them, and decide about them.

    The beginning of a run's id is enough where only one run has it.
    """
