"""`phasebus debug`: step through a run, forth and back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from console.failure import USAGE, Failure
from console.selecting import moment
from console.session import on_bus

if TYPE_CHECKING:
    from datetime import datetime

    from bus.client import Client
    from console.printer import Printer

_LOG = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("run")
@click.option("--at", callback=moment, metavar="POSITION | TIME", help="Begin there, instead of with the first event.")
@click.option("--logs", type=_LOG, metavar="FILE", help="JSON log lines of the processes that took part.")
@click.option("--script", metavar="COMMANDS", help="Instead of keys: 'n n g 41 s'.")
@on_bus
async def debug(
    client: Client, printer: Printer, run: str, at: int | datetime | None, logs: Path | None, script: str | None
) -> None:
    """Step through a run, forth and back: the state before and after each event, what caused it, what it caused.

    \b
    n, right   the next event               s  the run as it is then
    p, left    the one before               S  one phase, or one item of it
    g          to a position or a time      d  what this event changed
    / and ?    search by type or phase      c  what caused it
    b          on until a type, a phase,    e  what it caused
               or PHASE=STATUS              m  the messages around it
    q          leave                        l  the log lines about it

    Piped, or with --script, the same commands are read as words.
    """
    from bus.history.selection import Selection
    from bus.history.trail import Trail
    from console import loglines
    from console.lookup import find_run
    from console.stepper import Stepper
    from console.strands import story
    from console.walk import follow_script, walk

    state = await find_run(client, run)
    subject = client.subjects.run(state.run)
    trail = Trail(state.run, [each async for each in client.events(Selection(subjects=[subject]))])
    lines = None
    if logs is not None:
        with logs.open("rb") as file:
            lines = loglines.read(file, state.run, state.correlation)
    stepper = Stepper(trail, lines)
    if at is not None:
        stepper.place = trail.at(at) if isinstance(at, int) else trail.at_time(at)

    async def tell() -> None:
        """What lies beyond the run is read when somebody first asks for it."""
        stepper.tell(await story(client, state))

    if script is not None or not _is_interactive(printer):
        words = script if script is not None else sys.stdin.read()
        await follow_script(stepper, words, printer, tell)
    else:
        await walk(stepper, tell)


def _is_interactive(printer: Printer) -> bool:
    if printer.as_json and sys.stdin.isatty():
        raise Failure(
            USAGE, "--json is for programs: say what to show with --script", "phasebus debug RUN --script 'n n s'"
        )
    return sys.stdin.isatty() and sys.stdout.isatty()
