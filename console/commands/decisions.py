"""`phasebus run approve, reject, cancel, redrive`: what operators decide, with their name on it, in the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import click

from console.numbered import Numbered
from console.session import on_bus, on_live_bus, operator

if TYPE_CHECKING:
    from bus.client import Client
    from bus.rules.run import RunState
    from console.printer import Printer

F = TypeVar("F", bound=Callable[..., Any])


def by_option(command: F) -> F:
    return click.option("--by", default=operator, metavar="WHO", help="Who decides; user@host unless told.")(command)


@click.command(cls=Numbered)
@click.argument("run")
@click.argument("phase")
@by_option
@click.option("--comment", default="", help="Kept with the decision.")
@on_bus
async def approve(client: Client, printer: Printer, run: str, phase: str, by: str, comment: str) -> None:
    """Open a gate that waits."""
    from console.lookup import find_run, refusals

    name = (await find_run(client, run)).run
    with refusals(name):
        say(printer, f"approved {phase}", await client.approve(name, phase, by=by, comment=comment))


@click.command(cls=Numbered)
@click.argument("run")
@click.argument("phase")
@by_option
@click.option("--comment", default="", help="Kept with the decision.")
@on_bus
async def reject(client: Client, printer: Printer, run: str, phase: str, by: str, comment: str) -> None:
    """Close a gate that waits: its phase fails."""
    from console.lookup import find_run, refusals

    name = (await find_run(client, run)).run
    with refusals(name):
        say(printer, f"rejected {phase}", await client.reject(name, phase, by=by, comment=comment))


@click.command()
@click.argument("run")
@by_option
@click.option("--reason", default="", help="Kept with the decision.")
@on_bus
async def cancel(client: Client, printer: Printer, run: str, by: str, reason: str) -> None:
    """Stop a run. Results of what is under way are refused."""
    from console.lookup import find_run, refusals

    name = (await find_run(client, run)).run
    with refusals(name):
        say(printer, "cancelled", await client.cancel(name, by=by, reason=reason))


@click.command(cls=Numbered)
@click.argument("run")
@click.argument("phases", nargs=-1, metavar="[PHASE]...")
@by_option
@on_live_bus
async def redrive(client: Client, printer: Printer, run: str, phases: tuple[str, ...], by: str) -> None:
    """Try again what failed: what succeeded is kept.

    Without phases, all that did not succeed; with some, those and what was skipped because of them.
    """
    from console.lookup import find_run, refusals
    from console.offers import say_unserved

    name = (await find_run(client, run)).run
    with refusals(name):
        state = await client.redrive(name, by=by, phases=phases)
    say(printer, "redriven", state)
    await say_unserved(client, printer, needed(state))


def needed(state: RunState) -> Iterator[str]:
    """The capabilities that the run still needs."""
    from bus.rules.run import TERMINAL

    for key, phase in state.phases.items():
        capability = state.capability(key)
        if capability is not None and phase.status not in TERMINAL:
            yield capability


def say(printer: Printer, what: str, state: RunState) -> None:
    if printer.as_json:
        printer.record({"run": state.run, "status": state.status, "passes": state.passes, "position": state.position})
    else:
        printer.line(f"{what}: run {state.run} is {state.status}")
