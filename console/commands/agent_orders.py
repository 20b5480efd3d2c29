"""`phasebus agent drain, quarantine, release`: what operators want of agents, with their name on it, in the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from console.commands.decisions import by_option
from console.failure import NOT_FOUND, Failure
from console.session import on_live_bus

if TYPE_CHECKING:
    from bus.client import Client
    from bus.registry.orders import Whom
    from bus.registry.roster import Instance
    from console.printer import Printer

F = TypeVar("F", bound=Callable[..., Any])
_SEEN_S = 2.0
_LOOK_S = 0.05


def _order(command: F) -> F:
    """What the three have in common."""
    for option in (
        click.option("--reason", default="", help="Kept with the order."),
        by_option,
        click.option("--version", metavar="RANGE", help="Only those of a version, or a range: '>=1.2,<1.3'."),
        click.argument("name", metavar="AGENT | INSTANCE"),
    ):
        command = option(command)
    return command


@click.command()
@_order
@on_live_bus
async def drain(client: Client, printer: Printer, name: str, version: str | None, by: str, reason: str) -> None:
    """Let instances that are there finish what they have begun, and end. What starts later is not meant."""
    whom, meant = await _meant(client, name, version)
    if not meant:
        raise Failure(NOT_FOUND, f"no instance of {whom} is there", "phasebus agent ls")
    await client.drain_agents(whom.agent, instance=whom.instance, version=whom.version, by=by, reason=reason)
    await _say(client, printer, meant, "live", "quarantined")


@click.command()
@_order
@on_live_bus
async def quarantine(client: Client, printer: Printer, name: str, version: str | None, by: str, reason: str) -> None:
    """Let instances take nothing more until they are released.

    Those that start later are meant, too. They finish what they have begun, and go on running.
    """
    whom, meant = await _meant(client, name, version)
    await client.quarantine_agents(whom.agent, instance=whom.instance, version=whom.version, by=by, reason=reason)
    if not meant and not printer.as_json:
        printer.hint(f"no instance of {whom} is there; what starts takes nothing until it is released")
    await _say(client, printer, meant, "live")


@click.command()
@_order
@on_live_bus
async def release(client: Client, printer: Printer, name: str, version: str | None, by: str, reason: str) -> None:
    """End the quarantine of exactly the agent, instance or version that was named."""
    from bus.errors import NotFound

    whom, meant = await _meant(client, name, version)
    try:
        await client.release_agents(whom.agent, instance=whom.instance, version=whom.version, by=by, reason=reason)
    except NotFound as error:
        raise Failure(NOT_FOUND, str(error), "phasebus agent ls") from None
    still = {each.instance for each in meant if await _is_held_back(client, each)}
    await _say(client, printer, [each for each in meant if each.instance not in still], "quarantined")
    for each in sorted(still):
        printer.hint(f"{each} stays in quarantine for another reason: phasebus agent ls")


async def _meant(client: Client, name: str, version: str | None) -> tuple[Whom, list[Instance]]:
    """Whom a name means (an instance that is there or in quarantine, else an agent), and who of them is there."""
    from bus.registry.orders import Whom

    there = await client.agents(version=version)
    for each in there:
        if each.instance == name:
            return Whom(each.agent, name), [each]
    for standing in await client.quarantines():
        if standing.whom.instance == name:
            return standing.whom, []
    return Whom(name, version=version), [each for each in there if each.agent == name]


async def _is_held_back(client: Client, instance: Instance) -> bool:
    return any(each.whom.names(instance) for each in await client.quarantines())


async def _say(client: Client, printer: Printer, meant: list[Instance], *before: str) -> None:
    """How those that were told stand now, as soon as none stands as before any more."""
    import asyncio
    import time

    deadline = time.monotonic() + _SEEN_S
    while True:
        now = {each.instance: each for each in await client.agents()}
        waiting = [each for each in meant if each.instance in now and now[each.instance].status in before]
        if not waiting or time.monotonic() > deadline:
            break
        await asyncio.sleep(_LOOK_S)
    for each in meant:
        status = now[each.instance].status if each.instance in now else "gone"
        if printer.as_json:
            printer.record({"instance": each.instance, "agent": each.agent, "status": status})
        else:
            printer.line(f"{each.instance} is {status}")
