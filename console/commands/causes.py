"""`phasebus causes`: what led to something, and what came of it, across phases, messages and runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

import click

from console.failure import NOT_FOUND, Failure
from console.session import on_bus

if TYPE_CHECKING:
    from bus.client import Client
    from bus.history.happening import Happening
    from bus.history.lineage import Lineage, Spot
    from console.printer import Printer

_HASH = re.compile(r"[0-9a-f]{32}")
_SPOT = re.compile(r"([1-9]\d{0,17})(?:\.(\d+))?")


@click.command()
@click.argument("id", metavar="POSITION[.INDEX] | RECORD | RUN")
@click.option("--depth", type=click.IntRange(1), default=64, show_default=True, help="So many forks deep.")
@on_bus
async def causes(client: Client, printer: Printer, id: str, depth: int) -> None:
    """Show what led to a record, and what came of it, across phases, messages and runs.

    A record is named by its position in the log, with its event's index in it if need be, or by its id; of a run, the
    beginning of its id is enough, and its first event is meant.
    """
    from bus.history.lineage import Lineage
    from console import strands

    story, spot = await _found(client, id)
    lineage = Lineage(story)
    if printer.as_json:
        for chosen in (
            *reversed(lineage.causes(spot)),
            spot,
            *(each for _, each in strands.descendants(lineage, spot, depth)),
        ):
            printer.record(strands.node(lineage, chosen) | ({"asked": True} if chosen == spot else {}))
        return
    for text in strands.backwards(lineage, spot):
        printer.line(f"  {text}")
    printer.line(f"> {strands.line(lineage, spot)}")
    for text in strands.forwards(lineage, spot, depth):
        printer.line(f"    {text}")
    _hint(printer, lineage, spot)


def _hint(printer: Printer, lineage: Lineage, spot: Spot) -> None:
    if lineage.cause(spot) is None:
        message = lineage.found[spot].message
        origin = message.causationid if message is not None else None
        lost = f": what it names as its cause ({origin}) is not in this story" if origin else ""
        printer.hint(f"nothing in the log led to it{lost}")


async def _found(client: Client, id: str) -> tuple[list[Happening], Spot]:
    """The story that something belongs to, and where in it that stands. Raises NotFound, Failure."""
    from bus.errors import InvalidName, NotFound
    from bus.history import feed
    from bus.history.selection import Selection
    from console.lookup import find_run
    from console.strands import story

    record = await client.log.at(int(found[1])) if (found := _SPOT.fullmatch(id)) is not None else None
    if found is not None:
        if record is None:
            raise Failure(NOT_FOUND, f"nothing stands at position {found[1]} of the log", "phasebus events tail")
        stored = feed.read(record)
        if int(found[2] or 0) >= len(stored):
            raise Failure(NOT_FOUND, f"position {found[1]} holds {len(stored)} events, numbered from 0")
        return await _story_of(client, stored[0]), (record.position, int(found[2] or 0))
    if not _HASH.fullmatch(id):
        with suppress(NotFound, InvalidName):
            state = await find_run(client, id)
            whole, subject = await story(client, state), client.subjects.run(state.run)
            return whole, next((each.position, each.index) for each in whole if each.subject == subject)
    # Only the whole log says where an id stands.
    async with aclosing(client.events(Selection())) as everything:
        async for each in everything:
            if each.message is not None and each.message.id == id:
                return await _story_of(client, each), (each.position, each.index)
    raise Failure(NOT_FOUND, f"there is no run and no record {id!r} in this log", "phasebus events tail")


async def _story_of(client: Client, each: Happening) -> list[Happening]:
    """The story of the run it is of; of what belongs to no run, what carries the same correlation id."""
    from bus.errors import InvalidName, NotFound
    from bus.history.selection import Selection
    from console.strands import story

    correlation = each.message.correlationid if each.message is not None else None
    found: list[Happening] = []
    for run in filter(None, (each.run, correlation)):
        with suppress(NotFound, InvalidName):
            found = await story(client, await client.runs.load(run))
            break
    if not found and correlation is not None:
        found = [other async for other in client.events(Selection(correlation=correlation))]
    # What says of itself that it is of a run need not carry its correlation id.
    known = {(other.position, other.index) for other in found}
    own = [other for other in _stored_with(each) if (other.position, other.index) not in known]
    return sorted([*found, *own], key=lambda other: (other.position, other.index))


def _stored_with(each: Happening) -> Sequence[Happening]:
    """Everything that was stored together with it."""
    from msgspec.structs import replace

    if each.commit is None:
        return [each]
    return [replace(each, index=index, event=event) for index, event in enumerate(each.commit.events)]
