"""`phasebus cache ls` and `cache forget`: what can be used again, and what shall not be any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.commands.decisions import by_option
from console.failure import NOT_FOUND, Failure
from console.session import on_bus, on_live_bus

if TYPE_CHECKING:
    from datetime import datetime

    from bus.cache.cache import Entry
    from bus.cache.entries import Entries
    from bus.client import Client
    from console.printer import Printer

_KEY_CHARACTERS = 12


@click.command()
@click.argument("capability", required=False)
@on_bus
async def ls(client: Client, printer: Printer, capability: str | None) -> None:
    """List what can be used again, oldest first: all of it, or that of one CAPABILITY."""
    from bus.clock import utc_now

    found = [entry async for entry in _entries(client).all(capability)]
    if printer.as_json:
        for entry in found:
            printer.record(entry)
    elif found:
        now = utc_now()
        printer.table(["KEY", "CAPABILITY", "COMPUTED", "EXPIRES", "FROM"], [_cells(entry, now) for entry in found])
    else:
        printer.hint("nothing is cached: an agent says what may be, @agent.capability(..., cache=True)")


@click.command()
@click.argument("capability")
@click.argument("key", required=False)
@by_option
@on_live_bus
async def forget(client: Client, printer: Printer, capability: str, key: str | None, by: str) -> None:
    """Let what is cached be computed anew: all of a CAPABILITY, or what is under a KEY (its beginning will do).

    The outputs themselves stay in the runs that computed them.
    """
    from bus.errors import NotFound

    entries = _entries(client)
    whole = ""
    if key is not None:
        found = {entry.key async for entry in entries.all(capability) if entry.key.startswith(key)}
        if len(found) != 1:
            said = f"{len(found)} keys of {capability!r} begin with {key!r}" if found else f"no key {key!r}"
            raise Failure(NOT_FOUND, said, f"phasebus cache ls {capability}")
        whole = found.pop()
    try:
        count = await entries.forget(capability, by=by, key=whole)
    except NotFound as error:
        raise Failure(NOT_FOUND, str(error), "phasebus cache ls") from None
    if printer.as_json:
        printer.record({"capability": capability, "key": whole, "forgotten": count, "by": by})
    else:
        printer.line(f"{count} forgotten")


def _entries(client: Client) -> Entries:
    from bus.cache.entries import Entries

    return Entries(client.connection, client.log, client.settings, source=client.source)


def _cells(entry: Entry, now: datetime) -> list[str]:
    from console.text import ago, duration, escaped

    source = entry.source
    part = source.phase if source.item is None else f"{source.phase}:{source.item}"
    left = duration((entry.expires_at - now).total_seconds()) if entry.expires_at is not None else "-"
    cells = [entry.key[:_KEY_CHARACTERS], entry.capability, ago(source.at, now), left, f"{source.run}/{part}"]
    return list(map(escaped, cells))
