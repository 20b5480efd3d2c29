"""A run by the beginning of its id, what to type when it refuses, and what is not found here but elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from bus.client import Client
from bus.errors import Archived, InvalidName, NotFound, Refused
from bus.rules.run import RunState
from console.failure import REFUSED, Failure
from console.printer import Printer
from projections.catchup import build
from projections.runs import RUNS, Glance, find, glance


async def find_run(client: Client, text: str) -> RunState:
    """The run with that id, or the only one whose id begins so. Raises NotFound, also if several do; Archived."""
    try:
        return await client.runs.load(text)
    except Archived:
        raise
    except (NotFound, InvalidName):
        # Only now: to know all ids is to read the whole log.
        runs = await build(client, RUNS)
        return find(runs.rows, text)


async def glances(client: Client) -> Iterable[Glance]:
    """Every run at a glance: from the rows that are kept, if the settings say where, and what came since."""
    if client.settings.projections is None:
        return map(glance, (await build(client, RUNS)).rows.values())
    from projections.kept import Kept
    from projections.runner import Runner
    from projections.shelf import open_shelf

    shelf = open_shelf(client.settings.projections)
    try:
        await Runner(client, shelf, [RUNS]).catch_up()
        return (await (await Kept.find(client, shelf, RUNS)).glances(Glance)).values()
    finally:
        shelf.close()


@contextmanager
def refusals(run: str | None) -> Iterator[None]:
    """What the run refuses is explained by what it looks like, if it has a name by then."""
    try:
        yield
    except Refused as refused:
        raise Failure(REFUSED, refused.reason, f"phasebus run show {run}" if run is not None else "") from None


async def say_if_archived(client: Client, printer: Printer) -> None:
    """Say so where some of the log is in an archive that is not read here."""
    if client.settings.archive is None and await client.log.last(client.subjects.ops("archive")) is not None:
        printer.hint("some of this log is archived and not shown: PHASEBUS_ARCHIVE=DIR reads it, too")
