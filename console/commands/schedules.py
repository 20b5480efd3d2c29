"""`phasebus schedule add, ls, rm`: who wants which plan started when. Each word of it is in the log."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import click

from console.commands.decisions import by_option
from console.commands.start import plan_argument, read_input
from console.failure import NOT_FOUND, Failure
from console.session import on_bus, on_live_bus

if TYPE_CHECKING:
    import msgspec

    from bus.client import Client
    from bus.rules.plan import Plan
    from bus.runs.schedules import Entry
    from console.printer import Printer

_UNITS_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def length(_context: click.Context, _option: click.Parameter, value: str | None) -> int | None:
    """An option's length of time, in seconds."""
    found = re.fullmatch(r"([0-9]{1,9})([smhdw])", value) if value is not None else None
    if value is not None and found is None:
        raise click.BadParameter(f"{value!r} is not a length of time: a whole number and s, m, h, d or w")
    return int(found[1]) * _UNITS_S[found[2]] if found is not None else None


def _time(_context: click.Context, _option: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a time: write 2026-01-31T12:00, or ...+01:00") from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


@click.command()
@click.argument("name")
@click.argument("plan", callback=plan_argument, metavar="PLAN.toml | FILE.py:NAME | package.module:NAME")
@click.option(
    "--input", "value", callback=read_input, default="{}", metavar="JSON | @FILE | -", help="What each run is about."
)
@click.option("--at", callback=_time, metavar="TIME", help="Once: 2026-01-31T12:00, UTC unless it says otherwise.")
@click.option("--every", "every_s", callback=length, metavar="LENGTH", help="Again and again: 30s, 15m, 1h, 1d.")
@click.option("--cron", metavar="FIELDS", help="'30 2 * * MON-FRI', with six fields the first is the second.")
@click.option("--zone", metavar="ZONE", help="The time zone of --cron, Europe/Berlin; UTC unless told.")
@click.option(
    "--overlap",
    type=click.Choice(["skip", "allow"]),
    default="skip",
    show_default=True,
    help="What to do while a run of one before is open.",
)
@click.option(
    "--catch-up",
    "catch_up_s",
    callback=length,
    default="1d",
    show_default=True,
    metavar="LENGTH",
    help="What is due for longer, because nobody was there, is not started.",
)
@by_option
@on_live_bus
async def add(
    client: Client,
    printer: Printer,
    name: str,
    plan: Plan,
    value: msgspec.Raw,
    at: datetime | None,
    every_s: int | None,
    cron: str | None,
    zone: str | None,
    overlap: Literal["skip", "allow"],
    catch_up_s: int,
    by: str,
) -> None:
    """Make a schedule, or replace the one of this name. Its runs are called NAME-20261122t020000 (UTC)."""
    entry = await client.schedule(
        name,
        plan,
        value,
        at=at,
        every_s=every_s,
        cron=cron,
        zone=zone,
        by=by,
        overlap=overlap,
        catch_up_s=catch_up_s,
    )
    if printer.as_json:
        printer.record(entry)
    else:
        due = f"next {_next(entry)}" if entry.next is not None else "which is over: nothing will be started"
        printer.line(f"{name}: {_when(entry)}, {due}")


@click.command()
@on_bus
async def ls(client: Client, printer: Printer) -> None:
    """List the schedules, and when each is due next."""
    found = await client.schedules()
    if printer.as_json:
        for entry in found:
            printer.record(entry)
    elif found:
        headings = ["NAME", "WHEN", "NEXT (UTC)", "PLAN", "OVERLAP", "BY"]
        printer.table(headings, [_cells(entry) for entry in found])
    else:
        printer.hint("no schedules: phasebus schedule add NAME PLAN.toml --every 1h")


@click.command()
@click.argument("name")
@by_option
@on_live_bus
async def rm(client: Client, printer: Printer, name: str, by: str) -> None:
    """End a schedule. Runs it has started go on."""
    from bus.errors import NotFound

    try:
        await client.unschedule(name, by=by)
    except NotFound as error:
        raise Failure(NOT_FOUND, str(error), "phasebus schedule ls") from None
    if printer.as_json:
        printer.record({"name": name, "by": by})
    else:
        printer.line(f"{name} has ended")


def _cells(entry: Entry) -> list[str]:
    schedule = entry.schedule
    return [schedule.name, _when(entry), _next(entry), schedule.plan.name, schedule.overlap, entry.by]


def _when(entry: Entry) -> str:
    schedule = entry.schedule
    return f"{schedule.when} {schedule.zone}" if schedule.zone is not None else schedule.when


def _next(entry: Entry) -> str:
    return "is over" if entry.next is None else f"{entry.next:%Y-%m-%d %H:%M:%S}"
