"""`phasebus doctor`: what is wrong, and what to do about it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from console.failure import FAILED, OK, UNREACHABLE, USAGE, Failure
from console.session import address_options, json_option

if TYPE_CHECKING:
    from console.printer import Printer
    from projections.doctor.facts import Facts
    from projections.doctor.finding import Finding


@click.command()
@click.argument("run", required=False)
@json_option
@address_options
def doctor(run: str | None, url: str | None, context: str | None, store: Path | None, as_json: bool) -> int:
    """Find out what is wrong, and what to do about it: with the whole bus, or with one run.

    The first line names the cause and what to type next, everything else follows. Exit code 1 if something is wrong.
    """
    import asyncio

    from bus import logs
    from console import address
    from console.examination import examine
    from console.printer import Printer

    if store is not None:
        raise Failure(USAGE, "a stopped bus has nobody who could be examined", f"phasebus up --store {store}")
    logs.configure("error", pretty=not as_json)
    try:
        place = address.find(url, context)
    except Failure as failure:
        if failure.code != UNREACHABLE:
            raise
        return _tell(Printer(as_json=as_json), _nowhere(failure, run))
    return _tell(Printer(as_json=as_json), asyncio.run(examine(place, run)))


def _tell(printer: Printer, facts: Facts) -> int:
    from projections.doctor.checks import diagnose

    findings = diagnose(facts)
    for found in findings:
        if printer.as_json:
            printer.record(found)
        else:
            _show(printer, found, is_first=found is findings[0])
    if facts.unasked:
        printer.hint(f"not asked in time: {', '.join(facts.unasked)}")
    if not findings:
        printer.hint(f"{f'run {facts.run}' if facts.run else 'everything'} is well")
    return FAILED if findings else OK


def _show(printer: Printer, found: Finding, *, is_first: bool) -> None:
    from console.text import escaped

    others = f" (and {found.others} more)" if found.others else ""
    if is_first:
        # One line holds all that somebody in a hurry needs.
        printer.line(escaped(f"{found.cause}{others}; next: {found.next_step}"))
    else:
        printer.line(escaped(f"also  {found.cause}{others}"))
        printer.line(escaped(f"      next: {found.next_step}"))
    for detail in found.details:
        printer.line(escaped(f"      {detail}"))


def _nowhere(failure: Failure, run: str | None) -> Facts:
    from bus.clock import utc_now
    from projections.doctor.facts import Facts, Ground

    return Facts(at=utc_now(), run=run, ground=Ground(reached="nowhere", said=str(failure)))
