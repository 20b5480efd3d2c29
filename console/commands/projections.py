"""`phasebus projection run|ls|lag|rebuild|query`."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from console.failure import FAILED, NOT_FOUND, Failure
from console.selecting import moment
from console.session import on_bus
from console.shelving import chosen, shelf_of, shelf_option

if TYPE_CHECKING:
    from bus.client import Client
    from console.printer import Printer
    from projections.shelf import Build, Shelf

_TARGETS = click.argument("targets", metavar="[NAME | FILE.py:NAME]...", nargs=-1)


@click.command()
@_TARGETS
@shelf_option
@on_bus
async def run(client: Client, printer: Printer, targets: tuple[str, ...], shelf_url: str | None) -> None:
    """Keep projections up to date until Ctrl-C: all that ship, or those named.

    It may be killed anywhere and begun again, and run twice. Whoever subscribes to their rows is served.
    """
    from bus.signals import until_signalled
    from projections.runner import Runner
    from projections.serving import serving

    with shelf_of(client, shelf_url) as shelf:
        wanted = chosen(targets)
        async with serving(client, shelf, wanted) as served:
            runner = Runner(client, shelf, wanted, on_changed=served.changed)
            position = await runner.catch_up()
            printer.hint(f"caught up with position {position}; keeping up until Ctrl-C")
            await until_signalled(runner.run)


@click.command()
@shelf_option
@on_bus
async def ls(client: Client, printer: Printer, shelf_url: str | None) -> None:
    """List what is kept, and how far each is behind the log."""
    from console.text import escaped

    with shelf_of(client, shelf_url) as shelf:
        found = await standings(client, shelf)
        if printer.as_json:
            for each in found:
                printer.record(each)
        elif found:
            headings = ["NAME", "VERSION", "POSITION", "LAG", "SET ASIDE", ""]
            rows = [
                [
                    escaped(each["projection"]),
                    str(each["version"]),
                    str(each["position"]),
                    str(each["lag"]),
                    str(each["set_aside"]),
                    "" if each["served"] else "being built",
                ]
                for each in found
            ]
            printer.table(headings, rows)
        else:
            printer.hint("nothing is kept yet: phasebus projection run")


@click.command()
@click.option("--max", "most", type=click.IntRange(0), default=0, show_default=True, help="Positions it may be behind.")
@shelf_option
@on_bus
async def lag(client: Client, printer: Printer, most: int, shelf_url: str | None) -> int | None:
    """Fail if a projection is behind the log by more than --max: exit code 1, for a health check."""
    with shelf_of(client, shelf_url) as shelf:
        served = [each for each in await standings(client, shelf) if each["served"]]
    late = [each for each in served if each["lag"] > most]
    for each in served:
        if printer.as_json:
            printer.record({"projection": each["projection"], "lag": each["lag"]})
        else:
            printer.line(f"{each['projection']}: {each['lag']}")
    return FAILED if late else None


@click.command()
@_TARGETS
@shelf_option
@on_bus
async def rebuild(client: Client, printer: Printer, targets: tuple[str, ...], shelf_url: str | None) -> None:
    """Build projections anew beside those that are read, then swap them: all that ship, or those named."""
    from projections.runner import Runner

    with shelf_of(client, shelf_url) as shelf:
        wanted = chosen(targets)
        position = await Runner(client, shelf, wanted).catch_up(afresh=True)
        for each in wanted:
            if printer.as_json:
                printer.record({"projection": each.name, "version": each.version, "position": position})
            else:
                printer.line(f"{each.name}: built anew, as of position {position}")


@click.command()
@click.argument("target", metavar="NAME | FILE.py:NAME")
@click.argument("key", required=False)
@click.option("--at", callback=moment, metavar="POSITION|TIME", help="As it was then.")
@shelf_option
@on_bus
async def query(
    client: Client, printer: Printer, target: str, key: str | None, at: int | datetime | None, shelf_url: str | None
) -> None:
    """Print the rows of a projection as JSON, one to a line, or the one with that key; as of now, or as of before."""
    from projections.kept import Kept

    [projection] = chosen([target])
    with shelf_of(client, shelf_url) as shelf:
        kept = await Kept.find(client, shelf, projection)
        position = await client.log.position_at(at) if isinstance(at, datetime) else at
        rows = await kept.rows(at=position) if key is None else {key: await kept.row(key, at=position)}
    for name, row in rows.items():
        if row is None:
            raise Failure(NOT_FOUND, f"{projection.name} has no row {name!r}", f"phasebus projection query {target}")
        printer.record({"key": name, "row": row})


@click.command()
@click.argument("target", metavar="NAME | FILE.py:NAME")
@click.option("--glances", is_flag=True, help="Of what a list shows of each row.")
def schema(target: str, glances: bool) -> None:
    """Print the JSON Schema of a projection's rows: for programs in other languages that subscribe to them."""
    from bus.schema.document import encode
    from projections.shelf import schema as described

    [projection] = chosen([target])
    click.echo(encode(described(projection, glances=glances)).decode(), nl=False)


async def standings(client: Client, shelf: Shelf) -> list[dict[str, Any]]:
    """How far each build of this log is, and what it had to set aside."""
    from projections.runner import log_of

    log, end = await log_of(client)
    return [await _standing(client, shelf, each, end) for each in shelf.builds() if each.log == log]


async def _standing(client: Client, shelf: Shelf, build: Build, end: int) -> dict[str, Any]:
    from projections.catalogue import BUILT_IN
    from projections.catchup import seen_by

    position = newest = shelf.position(build.id)
    if position < end:
        # What it does not want to see does not put it behind. Of one's own projections only the name is known.
        known = BUILT_IN.get(build.projection)
        filters = seen_by(known, client.subjects) if known is not None else [f"{client.subjects.namespace}.>"]
        async for record in client.log.read_back(*filters):
            newest = record.position
            break
    return {
        "projection": build.projection,
        "version": build.version,
        "position": position,
        "lag": max(newest - position, 0),
        "set_aside": len(shelf.asides(build.id)),
        "served": build.is_served,
    }
