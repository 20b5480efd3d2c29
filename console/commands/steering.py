"""`phasebus run pause, resume, skip, signal, rerun, checkpoint, rollback, fork`: how operators steer a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.commands.decisions import by_option, needed, say
from console.commands.start import plan_argument, read_input
from console.numbered import Numbered
from console.session import on_bus, on_live_bus

if TYPE_CHECKING:
    import msgspec

    from bus.client import Client
    from bus.rules.plan import Plan
    from console.printer import Printer


@click.command()
@click.argument("run")
@by_option
@click.option("--reason", default="", help="Kept with the decision.")
@on_bus
async def pause(client: Client, printer: Printer, run: str, by: str, reason: str) -> None:
    """Hold a run: nothing more of it is taken. What is under way may end, and deadlines still count."""
    from console.lookup import find_run, refusals

    name = (await find_run(client, run)).run
    with refusals(name):
        say(printer, "paused", await client.pause(name, by=by, reason=reason))


@click.command()
@click.argument("run")
@by_option
@on_live_bus
async def resume(client: Client, printer: Printer, run: str, by: str) -> None:
    """Let a paused run go on."""
    from console.lookup import find_run, refusals
    from console.offers import say_unserved

    name = (await find_run(client, run)).run
    with refusals(name):
        state = await client.resume(name, by=by)
    say(printer, "resumed", state)
    await say_unserved(client, printer, needed(state))


@click.command(cls=Numbered)
@click.argument("run")
@click.argument("phase")
@by_option
@click.option("--reason", default="", help="Kept with the decision.")
@click.option("--output", callback=read_input, metavar="JSON | @FILE | -", help="What the phase gives in its place.")
@on_live_bus
async def skip(
    client: Client, printer: Printer, run: str, phase: str, by: str, reason: str, output: msgspec.Raw | None
) -> None:
    """Let a phase pass without its work. What needs it goes on; a phase that failed is skipped in a new pass."""
    import msgspec

    from console.lookup import find_run, refusals

    name = (await find_run(client, run)).run
    given = output if output is not None else msgspec.UNSET
    with refusals(name):
        say(printer, f"skipped {phase}", await client.skip(name, phase, by=by, reason=reason, output=given))


@click.command()
@click.argument("run")
@click.argument("signal", metavar="SIGNAL")
@click.option("--data", callback=read_input, default="null", metavar="JSON | @FILE | -", help="What comes with it.")
@by_option
@on_live_bus
async def signal(client: Client, printer: Printer, run: str, signal: str, data: msgspec.Raw, by: str) -> None:
    """Tell a run what one of its phases waits for. It may come before the phase does."""
    from console.lookup import find_run, refusals

    name = (await find_run(client, run)).run
    with refusals(name):
        say(printer, f"signalled {signal}", await client.signal(name, signal, data, by=by))


@click.command(cls=Numbered)
@click.argument("run")
@click.argument("phases", nargs=-1, metavar="[PHASE]...")
@by_option
@on_live_bus
async def rerun(client: Client, printer: Printer, run: str, phases: tuple[str, ...], by: str) -> None:
    """Do again what an ended run has done, from a phase on. Without a phase, all of it; nothing is undone first."""
    from console.lookup import find_run, refusals
    from console.offers import say_unserved

    name = (await find_run(client, run)).run
    with refusals(name):
        state = await client.rerun(name, by=by, phases=phases)
    say(printer, "running again", state)
    await say_unserved(client, printer, needed(state))


@click.command()
@click.argument("run")
@click.argument("name")
@by_option
@on_bus
async def checkpoint(client: Client, printer: Printer, run: str, name: str, by: str) -> None:
    """Name this moment of a run, to go back to it."""
    from console.lookup import find_run, refusals

    found = (await find_run(client, run)).run
    with refusals(found):
        say(printer, f"checkpoint {name}", await client.checkpoint(found, name, by=by))


@click.command()
@click.argument("run")
@click.option("--before", metavar="PHASE", help="Go back to before this phase, and all that needs it.")
@click.option("--checkpoint", metavar="NAME", help="Go back to this checkpoint.")
@by_option
@click.option("--reason", default="", help="Kept with the decision.")
@on_live_bus
async def rollback(
    client: Client, printer: Printer, run: str, before: str | None, checkpoint: str | None, by: str, reason: str
) -> None:
    """Undo what a run has done since, then do it again. The last is undone first; the history is kept."""
    from console.lookup import find_run, refusals
    from console.offers import say_unserved

    name = (await find_run(client, run)).run
    with refusals(name):
        state = await client.rollback(name, by=by, before=before, checkpoint=checkpoint, reason=reason)
    say(printer, "rolling back" if state.rollback is not None else "rolled back", state)
    await say_unserved(client, printer, needed(state))


@click.command()
@click.argument("run")
@click.option("--at", type=click.IntRange(1), metavar="POSITION", help="What was done by then; now, unless told.")
@click.option("--plan", callback=plan_argument, metavar="PLAN", help="Go on by another plan.")
@click.option("--id", "as_run", metavar="ID", help="The new run's id.")
@on_live_bus
async def fork(
    client: Client, printer: Printer, run: str, at: int | None, plan: Plan | None, as_run: str | None
) -> None:
    """Start a run that takes over what another has done. Only of phases that both have; prints its id."""
    from console.lookup import find_run, refusals
    from console.offers import say_unserved

    name = (await find_run(client, run)).run
    with refusals(name):
        state = await client.fork(name, at=at, plan=plan, as_run=as_run)
    if printer.as_json:
        printer.record({"run": state.run, "status": state.status, "position": state.position, "from": name})
    else:
        printer.line(state.run)
    await say_unserved(client, printer, needed(state))
