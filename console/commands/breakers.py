"""`phasebus breaker ls, open, close`: each decision is in the log, with its maker."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from console.commands.decisions import by_option
from console.commands.schedules import length
from console.failure import NOT_FOUND, Failure
from console.session import on_bus, on_live_bus
from console.text import ago, duration, shortened

if TYPE_CHECKING:
    from bus.client import Client
    from bus.guards.breaker import BreakerState
    from console.printer import Printer

_REASON_CHARACTERS = 60


@click.command()
@on_bus
async def ls(client: Client, printer: Printer) -> None:
    """List the breakers that have ever opened, and how each stands."""
    found = await client.breakers()
    if printer.as_json:
        for state in found:
            printer.record(state)
    elif found:
        now = datetime.now(UTC)
        printer.table(["NAME", "STATUS", "SINCE", "TRIES AGAIN", "BY", "REASON"], [_cells(each, now) for each in found])
    else:
        printer.hint("no breaker has ever opened here")


@click.command(name="open")
@click.argument("name")
@click.option("--for", "for_s", callback=length, metavar="LENGTH", help="30s, 15m, 1h; else until somebody closes it.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for whoever meets it.")
@by_option
@on_live_bus
async def open_(client: Client, printer: Printer, name: str, for_s: int | None, reason: str, by: str) -> None:
    """Let no call through. Every process that uses the breaker knows at once."""
    _report(printer, await client.open_breaker(name, by=by, for_s=for_s, reason=reason))


@click.command()
@click.argument("name")
@click.option("--reason", default="", metavar="TEXT", help="Why.")
@by_option
@on_live_bus
async def close(client: Client, printer: Printer, name: str, reason: str, by: str) -> None:
    """Let every call through again. What is under way is counted anew."""
    from bus.errors import NotFound

    try:
        state = await client.close_breaker(name, by=by, reason=reason)
    except NotFound as error:
        raise Failure(NOT_FOUND, str(error), "phasebus breaker ls") from None
    _report(printer, state)


def _report(printer: Printer, state: BreakerState) -> None:
    if printer.as_json:
        printer.record(state)
    else:
        printer.line(f"{state.breaker} is {_status(state)}")


def _cells(state: BreakerState, now: datetime) -> list[str]:
    since = ago(state.since, now) if state.since is not None else ""
    reason = shortened(state.reason, _REASON_CHARACTERS)
    return [state.breaker, _status(state), since, _tries_again(state, now), state.by, reason]


def _status(state: BreakerState) -> str:
    return state.status.replace("_", "-")


def _tries_again(state: BreakerState, now: datetime) -> str:
    if state.status == "closed":
        return ""
    at = state.may_probe_at
    if at is None:
        return "when closed"
    return "with the next call" if at <= now else f"in {duration((at - now).total_seconds())}"
