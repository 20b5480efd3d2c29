"""`phasebus lock ls, break`: who has what now, and with which token; what is broken is in the log with by whom."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.commands.decisions import by_option
from console.failure import NOT_FOUND, USAGE, Failure
from console.session import on_bus, on_live_bus

if TYPE_CHECKING:
    from bus.client import Client
    from console.printer import Printer


@click.command()
@on_bus
async def ls(client: Client, printer: Printer) -> None:
    """List who has which lock, permit and lead now."""
    from bus.clock import utc_now
    from console.text import ago

    found = sorted(await client.holdings(), key=lambda each: each.place.path)
    if printer.as_json:
        for each in found:
            printer.record({"lease": each.place.path, "holder": each.holder, "token": each.token, "since": each.since})
    elif found:
        now = utc_now()
        rows = [[each.place.path, each.holder, str(each.token), ago(each.since, now)] for each in found]
        printer.table(["LEASE", "HOLDER", "TOKEN", "SINCE"], rows)
    else:
        printer.hint("nobody has a lock, a permit or a lead")


@click.command("break")
@click.argument("lease", metavar="lock.NAME | permit.NAME.SLOT | leader.NAME")
@by_option
@on_live_bus
async def break_(client: Client, printer: Printer, lease: str, by: str) -> None:
    """Take a lock, a permit or a lead from who has it: its token is refused at once, and the next in line gets it.

    What its holder has begun outside the bus goes on until it hears of it.
    """
    from bus.coordination.lease import Place
    from bus.errors import InvalidName, NotFound

    try:
        place = Place.of(lease if "." in lease else f"lock.{lease}")
    except InvalidName as error:
        raise Failure(USAGE, str(error), "phasebus lock ls") from None
    try:
        broken = await client.break_lease(place.kind, place.name, place.slot, by=by)
    except NotFound as error:
        raise Failure(NOT_FOUND, str(error), "phasebus lock ls") from None
    if printer.as_json:
        printer.record({"lease": place.path, "holder": broken.holder, "token": broken.token, "by": by})
    else:
        printer.line(f"{place.path} is taken from {broken.holder} (token {broken.token})")
