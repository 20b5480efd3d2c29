"""The command `phasebus`: its subcommands by name, and how whatever goes wrong becomes a message and an exit code.

Nothing of the bus is imported before a command that needs it runs: help is there at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from console.failure import FAILED, INTERRUPTED, OK, Failure, failure_of, report
from console.lazy import LazyGroup

_COMMANDS = {
    "demo": ("console.demo:demo", "See agents work on a run, and survive what is done to them."),
    "up": ("console.commands.up:up", "Start a bus with its supervisor here, until Ctrl-C."),
    "agent": ("console.commands.agent:agent", "Run an agent, see which are there, and tell them what to do."),
    "ask": ("console.commands.messages:ask", "Have work done, and print the answer."),
    "send": ("console.commands.messages:send", "Hand work to whoever has a capability."),
    "tell": ("console.commands.messages:tell", "Send a message to one agent by name."),
    "publish": ("console.commands.messages:publish", "Tell everybody who subscribes to a topic."),
    "subscribe": ("console.commands.messages:subscribe", "Print what is published on topics."),
    "run": ("console.commands.run:run", "Start runs, look at them, and decide about them."),
    "plan": ("console.commands.plan:plan", "Look at a plan, and what it would mean for the runs there are."),
    "schedule": ("console.commands.schedule:schedule", "Start runs at a time, every so often, or by cron."),
    "events": ("console.commands.events:events", "Look at what is in the log, and move it to another."),
    "replay": (
        "console.commands.replay:replay",
        "Tell a run again from the log, or do its work again in a fork.",
    ),
    "debug": ("console.commands.debug:debug", "Step through a run, forth and back."),
    "causes": ("console.commands.causes:causes", "Show what led to a record, and what came of it."),
    "doctor": ("console.commands.doctor:doctor", "Find out what is wrong, and what to do about it."),
    "rehearse": (
        "console.commands.rehearse:rehearse",
        "Run an agent's code against past runs, and list what would be different.",
    ),
    "dead": ("console.commands.dead:dead", "Work that was given up: look at it, send it again."),
    "route": ("console.commands.route:route", "Share a capability's work out among versions: canary, A/B."),
    "breaker": (
        "console.commands.breaker:breaker",
        "Breakers of services and capabilities: look at them, open and close them.",
    ),
    "limit": ("console.commands.limit:limit", "Limits and budgets that all agents share."),
    "projection": ("console.commands.projection:projection", "What is true now, kept in a database."),
    "lock": ("console.commands.lock:lock", "Locks, permits and leads: who has them, and taking them away."),
    "decision": ("console.commands.decision:decision", "Let agents and people vote, and see what they decided."),
    "archive": ("console.commands.archive:archive", "Move what is old enough from the log to files."),
    "cache": ("console.commands.cache:cache", "Outputs that are used again while all they depend on is the same."),
    "payload": ("console.commands.payload:payload", "Payloads too large for a message: list them, remove garbage."),
    "attention": ("console.commands.attention:attention", "List what needs a look, each with the command to type."),
    "schema": ("console.commands.schema:schema", "Print the schemas of everything on the wire."),
    "version": ("console.commands.version:version", "Print the versions of phasebus and what it runs on."),
    "completion": ("console.commands.completion:completion", "Print the script that completes commands in a shell."),
}

_EPILOG = """\b
Exit codes: 0 ok, 1 the thing failed, 2 usage, 3 not found, 4 no bus,
5 timed out, 6 refused, 130 interrupted. With --json, results are JSON lines.
"""


@click.group(
    cls=LazyGroup,
    commands_at=_COMMANDS,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="phasebus", message="%(prog)s %(version)s")
def cli() -> None:
    """Agents, runs and their events on NATS JetStream. Start with `phasebus demo` or `phasebus up`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        code = cli.main(given, prog_name="phasebus", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read this has had enough. Without it Python would say so once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except (KeyboardInterrupt, click.Abort):
        report(Failure(INTERRUPTED, "interrupted"), as_json="--json" in given)
        return INTERRUPTED
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except Exception as error:
        failure = failure_of(error)
        if failure is None:
            raise
        report(failure, as_json="--json" in given)
        return failure.code
    return code if isinstance(code, int) else OK
