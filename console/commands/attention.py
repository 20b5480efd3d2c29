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
    from console.rollcall import living
    from console.text import ago, escaped
    from projections.attention import concerns
    from projections.catchup import build
    from projections.history import learn
    from projections.runs import RUNS

    runs = list((await build(client, RUNS)).rows.values())
    there = await living(client, runs)
    now = utc_now()
    found = concerns(runs, there, learn(runs), now)
    for concern in found:
        if printer.as_json:
            printer.record(concern)
            continue
        printer.line(
            escaped(f"{_kind(concern)}  {concern.run} {_place(concern)}".rstrip() + f"  {ago(concern.since, now)}")
        )
        printer.line(f"  {escaped(concern.cause)}")
        printer.line(f"  next: {escaped(concern.next_step)}")
    if not found:
        printer.hint("nothing needs a look")


def _kind(concern: Concern) -> str:
    """With its class, where that says more: `stuck (dead)`."""
    return concern.kind if concern.reason == concern.kind else f"{concern.kind} ({concern.reason})"


def _place(concern: Concern) -> str:
    if concern.phase is None:
        return ""
    place = concern.phase if concern.item is None else f"{concern.phase}:{concern.item}"
    return f"{place} and {concern.others} more" if concern.others else place
