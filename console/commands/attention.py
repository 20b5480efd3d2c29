"""`phasebus attention`: what somebody should look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.session import on_bus

if TYPE_CHECKING:
    from bus.client import Client
    from console.printer import Printer
    from projections.attention import Concern


@click.command()
@on_bus
async def attention(client: Client, printer: Printer) -> None:
    """List what needs a look, each with the command to type."""
    from bus.clock import utc_now
    from console.text import ago, escaped
    from projections.attention import Living, concerns
    from projections.catchup import build
    from projections.history import learn
    from projections.runs import RUNS

    runs = (await build(client, RUNS)).rows.values()
    there = [each for each in await client.agents() if each.status != "suspected"]
    taking = [each for each in there if each.status == "live"]
    await client.signposts.known()
    offered = {name for each in taking for name in each.capabilities}
    offered |= {need for each in taking for need in client.signposts.needs(each.capabilities, each.version).values()}
    living = Living({each.instance for each in there}, offered)
    now = utc_now()
    found = concerns(runs, living, learn(runs), now)
    for concern in found:
        if printer.as_json:
            printer.record(concern)
            continue
        printer.line(
            escaped(f"{concern.kind}  {concern.run} {_place(concern)}".rstrip() + f"  {ago(concern.since, now)}")
        )
        printer.line(f"  {escaped(concern.cause)}")
        printer.line(f"  next: {escaped(concern.next_step)}")
    if not found:
        printer.hint("nothing needs a look")


def _place(concern: Concern) -> str:
    if concern.phase is None:
        return ""
    place = concern.phase if concern.item is None else f"{concern.phase}:{concern.item}"
    return f"{place} and {concern.others} more" if concern.others else place
