"""`phasebus payload gc`: what no record of the log refers to is removed, and that is said in the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.failure import USAGE, Failure
from console.session import on_bus, operator

if TYPE_CHECKING:
    from bus.client import Client
    from bus.log.garbage import Garbage
    from console.printer import Printer


def _seconds(_context: click.Context, _option: click.Parameter, value: str) -> float:
    from bus.archives.retention import age
    from bus.errors import SettingsError

    try:
        return age(value).total_seconds()
    except SettingsError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option(
    "--older-than",
    "older_than_s",
    metavar="AGE",
    callback=_seconds,
    default="1h",
    show_default=True,
    help="Younger ones are kept: 90s, 30m, 1h, 7d.",
)
@on_bus
async def gc(client: Client, printer: Printer, dry_run: bool, older_than_s: float) -> None:
    """Remove payloads that no record of the log refers to: their append never happened, or the record is gone."""
    from bus.log import garbage
    from bus.log.objects import Objects

    least_s = 2 * client.settings.append_timeout_s
    if older_than_s < least_s:
        raise Failure(
            USAGE, f"appends under way may take {least_s:g} s", f"phasebus payload gc --older-than {least_s:.0f}s"
        )
    objects = Objects(client.connection, client.subjects, client.settings)
    found = await garbage.find(
        objects,
        client.connection,
        client.subjects,
        older_than_s=older_than_s,
        timeout_s=client.settings.request_timeout_s,
    )
    if not dry_run:
        found = await garbage.remove(objects, found)
        if found.objects or found.uploads:
            await _say_in_the_log(client, found, older_than_s)
    _print(printer, found, dry_run)


async def _say_in_the_log(client: Client, removed: Garbage, older_than_s: float) -> None:
    from uuid import uuid4

    from bus.clock import utc_now
    from bus.format.envelope import envelope
    from bus.log.garbage import COLLECTED, PayloadsCollected

    said = PayloadsCollected(
        by=operator(),
        objects=len(removed.objects),
        size_bytes=removed.size_bytes,
        uploads=len(removed.uploads),
        older_than_s=older_than_s,
    )
    record = envelope(COLLECTED, said, id=uuid4().hex, source=client.source, time=utc_now())
    await client.log.append(client.subjects.ops("payload"), record)


def _print(printer: Printer, found: Garbage, dry_run: bool) -> None:
    from bus.clock import utc_now
    from console.commands.payload_ls import record, row
    from console.text import size

    if printer.as_json:
        for each in found.objects:
            printer.record({**record(each), "removed": not dry_run})
        for nuid in found.uploads:
            printer.record({"upload": nuid, "removed": not dry_run})
        return
    now = utc_now()
    if found.objects:
        printer.table(["SIZE", "PUT", "FOR", "OBJECT"], [row(each, now) for each in found.objects])
    verb = "would be removed" if dry_run else "removed"
    broken = f" and {len(found.uploads)} broken uploads" if found.uploads else ""
    printer.hint(f"{verb}: {len(found.objects)} objects, {size(found.size_bytes)}{broken}; kept: {found.kept} objects")
