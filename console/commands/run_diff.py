"""`phasebus run diff`: two runs side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.failure import FAILED, OK
from console.session import on_bus

if TYPE_CHECKING:
    from bus.client import Client
    from bus.history.diff import Difference, Moment, PhaseDiff, RunDiff, Side
    from console.printer import Printer

_VALUE_CHARACTERS = 60


@click.command()
@click.argument("one")
@click.argument("other")
@on_bus
async def diff(client: Client, printer: Printer, one: str, other: str) -> int:
    """Compare two runs phase by phase, and find where they part. Exit code 1 if they differ.

    Who did the work, when, and for how long is no difference; how long it took is shown.
    """
    from bus.history.diff import diff as compare
    from console.lookup import find_run

    names = [(await find_run(client, run)).run for run in (one, other)]
    mine, theirs = [[commit async for commit in client.ledger.commits(name)] for name in names]
    found = compare(mine, theirs)
    if printer.as_json:
        printer.record(found)
    else:
        _print(printer, found)
    return OK if found.is_same else FAILED


def _print(printer: Printer, found: RunDiff) -> None:
    printer.table(
        ["", "ONE", "OTHER"],
        [["run", *found.runs], ["plan", *found.plans], ["status", *found.status]],
    )
    if found.input is not None:
        printer.line(f"their inputs part {_said(found.input)}")
    printer.line()
    printer.table(["", "PHASE", "ONE", "OTHER", "TOOK", "TOOK", "OUTPUT"], [_cells(each) for each in found.phases])
    printer.line()
    if found.parting is None:
        printer.line("the same events in the same order")
        return
    printer.line(f"the same for {found.parting.common} events, then:")
    for name, moment in zip(("one", "other"), (found.parting.one, found.parting.other), strict=True):
        printer.line(f"  {name:<5}  {_moment(moment)}")
    if found.parting.difference is not None:
        printer.line(f"  they part {_said(found.parting.difference)}")


def _cells(each: PhaseDiff) -> list[str]:
    output = _said(each.output) if each.output is not None else ""
    took = [_took(side) for side in each.sides]
    return ["" if each.is_same else "*", each.phase, *(_side(side) for side in each.sides), *took, output]


def _side(side: Side | None) -> str:
    if side is None:
        return "not in its plan"
    attempts = f", {side.attempts} attempts" if side.attempts > max(side.items, 1) else ""
    return f"{side.status}{f', {side.items} items' if side.items > 1 else ''}{attempts}"


def _took(side: Side | None) -> str:
    from console.text import duration

    return duration(side.duration_s) if side is not None and side.duration_s is not None else ""


def _moment(moment: Moment | None) -> str:
    if moment is None:
        return "nothing more"
    about = moment.phase if moment.item is None else f"{moment.phase}:{moment.item}"
    return f"{moment.position}.{moment.index}  {moment.type}  {about}".rstrip()


def _said(difference: Difference) -> str:
    import msgspec

    from console.printer import to_json
    from console.text import shortened

    sides = [
        "nothing" if value is msgspec.UNSET else shortened(to_json(value), _VALUE_CHARACTERS)
        for value in (difference.one, difference.other)
    ]
    return f"at {difference.path or 'the top'}: {sides[0]} and {sides[1]}"
