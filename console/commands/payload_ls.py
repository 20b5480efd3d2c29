"""`phasebus payload ls`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from console.session import on_bus

if TYPE_CHECKING:
    from datetime import datetime

    from bus.client import Client
    from bus.log.objects import Found
    from console.printer import Printer


@click.command()
@on_bus
async def ls(client: Client, printer: Printer) -> None:
    """List the payloads in the object store, those first that nobody has put again for longest."""
    from bus.clock import utc_now
    from bus.log.objects import Objects
    from console.text import size

    objects = Objects(client.connection, client.subjects, client.settings)
    found = [each async for each in objects.all() if not each.meta.deleted]
    if printer.as_json:
        for each in found:
            printer.record(record(each))
    elif found:
        now = utc_now()
        printer.table(["SIZE", "PUT", "FOR", "OBJECT"], [row(each, now) for each in found])
        total = sum(each.meta.size for each in found)
        printer.hint(f"{len(found)} objects, {size(total)}; get one: nats object get {objects.bucket} OBJECT")
    else:
        printer.hint("no payload was too large for a message so far")


def record(found: Found) -> dict[str, Any]:
    """An object for a program."""
    meta = found.meta
    return {"object": meta.name, "size_bytes": meta.size, "put_at": found.at, **(meta.metadata or {})}


def row(found: Found, now: datetime) -> list[str]:
    """An object for a person."""
    from console.text import ago, size

    subject = (found.meta.metadata or {}).get("subject", "-")
    return [size(found.meta.size), ago(found.at, now), subject, found.meta.name]
