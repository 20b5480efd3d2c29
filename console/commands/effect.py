"""`phasebus run effect settle`: a person says what became of something that a handler did outside."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.commands.decisions import by_option, say
from console.commands.start import read_input
from console.lazy import LazyGroup
from console.numbered import Numbered
from console.session import on_bus

if TYPE_CHECKING:
    import msgspec

    from bus.client import Client
    from console.printer import Printer

_COMMANDS = {
    "settle": (
        "console.commands.effect:settle",
        "Say what came of an effect nobody knows of.",
    ),
}


@click.group(cls=LazyGroup, commands_at=_COMMANDS)
def effect() -> None:
    """Say what became of what a handler did outside.

    `phasebus run show` lists the effects of which nobody knows whether they happened.
    """


@click.command(cls=Numbered)
@click.argument("run")
@click.argument("phase", metavar="PHASE[:ITEM]")
@click.argument("key")
@click.option("--outcome", callback=read_input, metavar="JSON | @FILE | -", help="It happened, and this came of it.")
@click.option("--repeat", is_flag=True, help="It did not happen: the next attempt does it.")
@by_option
@click.option("--reason", default="", help="Kept with the decision.")
@on_bus
async def settle(
    client: Client,
    printer: Printer,
    run: str,
    phase: str,
    key: str,
    outcome: msgspec.Raw | None,
    repeat: bool,
    by: str,
    reason: str,
) -> None:
    """Say what came of an effect nobody knows of. Find out first: what you say is not checked.

    A handler was about to do it, and its process died, or what it called did not answer. With --outcome, later attempts
    get that and do not act; with --repeat they act. Then redrive the phase, if it has failed.
    """
    from bus.rules.effects import Done, NotDone
    from console.lookup import find_run, refusals

    if (outcome is None) != repeat:
        raise click.UsageError("say either --outcome, if it happened, or --repeat, if it did not")
    place, _, item = phase.partition(":")
    if item and not item.isdecimal():
        raise click.UsageError(f"{phase!r} is not a phase, or one item of it: pay, pay:3")
    name = (await find_run(client, run)).run
    found = NotDone() if outcome is None else Done(outcome)
    index = int(item) if item else None
    with refusals(name):
        state = await client.settle(name, place, key, found, by=by, item=index, reason=reason)
    say(printer, f"settled {key}", state)
    if not state.is_open:
        printer.hint(f"phasebus run redrive {name}")
