"""`phasebus run why`: what became of a phase, in a paragraph."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.failure import USAGE, Failure
from console.numbered import Numbered
from console.session import on_bus

if TYPE_CHECKING:
    from bus.client import Client
    from console.printer import Printer

_WIDTH = 100


@click.command(cls=Numbered)
@click.argument("run")
@click.argument("phase", metavar="PHASE[:ITEM]")
@on_bus
async def why(client: Client, printer: Printer, run: str, phase: str) -> None:
    """Say why a phase ran, for what it waited and how long, why it failed, and what comes next.

    Of a phase with many items the one is told of that failed first, or is under way.
    """
    import textwrap

    import msgspec

    from bus.clock import utc_now
    from console.lookup import find_run
    from console.text import escaped
    from projections.why import why as account

    key, colon, index = phase.partition(":")
    if colon and not index.isdigit():
        raise Failure(USAGE, f"{index!r} is no item: write PHASE, or PHASE:3", f"phasebus run show {run}")
    state = await find_run(client, run)
    commits = [commit async for commit in client.ledger.commits(state.run)]
    found = account(commits, key, utc_now(), int(index) if index else None)
    if printer.as_json:
        printer.record(msgspec.structs.asdict(found) | {"paragraph": found.paragraph})
        return
    for text in textwrap.wrap(escaped(found.paragraph), _WIDTH):
        printer.line(text)
    if found.next_step:
        printer.line(f"  next: {escaped(found.next_step)}")
