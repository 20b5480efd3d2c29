"""`phasebus limit ls`: each rate and budget, and what is left of it now."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from console.session import on_bus
from console.text import duration

if TYPE_CHECKING:
    from bus.client import Client
    from bus.guards.quota import Standing
    from console.printer import Printer


@click.command()
@on_bus
async def ls(client: Client, printer: Printer) -> None:
    """List the limits, and what is left of each. What is lent to a process counts as taken."""
    found = await client.limits()
    if printer.as_json:
        for name, standing in found.items():
            printer.record({"limit": name, "standing": standing})
    elif found:
        now = datetime.now(UTC).timestamp()
        rows = [row for name, standing in found.items() for row in _rows(name, standing, now)]
        printer.table(["NAME", "OF", "ALLOWS", "LEFT", "WAIT"], rows)
    else:
        printer.hint("no limit has been used here")


def _rows(name: str, standing: Standing, now: float) -> list[list[str]]:
    wait_s = standing.at - now
    wait = f"{duration(wait_s)}{', held' if standing.held_until > now else ''}" if wait_s > 0 else ""
    return [
        [name, meter.name, f"{meter.amount:,g}", f"{max(standing.accounts[meter.name].left, 0):,.6g}", wait]
        for meter in standing.quota.meters
    ]
