"""Which dead letters: the options that choose among them, and what they choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from console.selecting import instant

if TYPE_CHECKING:
    from bus.letters.wanted import Wanted

F = TypeVar("F", bound=Callable[..., Any])
_CLASSES = ["dependency", "configuration", "transient", "permanent", "unknown"]
_STATUSES = ["open", "redriven", "resolved", "died_again", "discarded"]


def wanting(*, any_status: bool = False) -> Callable[[F], F]:
    """Add the options; the command takes them as `**chosen` and hands them to `wanted`."""
    options = [
        click.option("--capability", metavar="NAME", help="Work for this capability."),
        click.option("--cause", metavar="CAUSE", help="How it ended: error, crashed, timed_out, unclaimed."),
        click.option("--class", "error_class", type=click.Choice(_CLASSES), help="The class of its problem."),
        click.option("--code", metavar="CODE", help="The code of its problem: handler_error, rejected, lost."),
        click.option("--group", metavar="KEY", help="Of this group: `phasebus dead group` lists them."),
        click.option("--agent", metavar="NAME", help="Tried by this agent."),
        click.option("--run", metavar="RUN", help="Of this run."),
        click.option("--plan", metavar="PLAN", help="Of runs of this plan; `task` is work outside a run."),
        click.option("--since", callback=instant, metavar="TIME", help="Died from then on: 2026-01-31T12:00, or 2h."),
        click.option("--until", callback=instant, metavar="TIME", help="Died before then."),
    ]
    if any_status:
        options += [
            click.option(
                "--status", multiple=True, type=click.Choice(_STATUSES), help="So they stand; open unless told."
            ),
            click.option("--all", "is_all", is_flag=True, help="However they stand."),
        ]

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def wanted(chosen: dict[str, Any]) -> Wanted:
    """What was chosen; what is open, unless more was asked for."""
    from bus.letters.wanted import Wanted

    said = dict(chosen)
    is_all, status = said.pop("is_all", False), said.pop("status", ())
    return Wanted(status=() if is_all else (status or ("open",)), **said)


def is_chosen(chosen: dict[str, Any]) -> bool:
    """Whether anything was said at all."""
    return any(value is not None for value in chosen.values())
