"""`phasebus run forecasts`: how good forecasts have been."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.session import on_bus

if TYPE_CHECKING:
    from bus.client import Client
    from console.printer import Printer


@click.command()
@click.argument("plan", required=False)
@on_bus
async def forecasts(client: Client, printer: Printer, plan: str | None) -> None:
    """Score the forecasts of past runs against what happened.

    Of one plan, or each. HELD is how often the time left lay in the interval that is shown of a run, which is made to
    hold 8 times in 10; OFF by how much its middle was off, and NAIVE the same of the formula "elapsed / phases done x
    phases left". NOT SAID counts forecasts for which there was no ground yet.
    """
    from console.text import escaped
    from projections.catchup import build
    from projections.runs import RUNS
    from projections.scoring import scores

    found = [each for each in scores((await build(client, RUNS)).rows.values()) if plan in (None, each.plan)]
    if printer.as_json:
        for each in found:
            printer.record(each)
        return
    if not found:
        printer.hint("no run has completed yet: there is nothing to score")
        return
    rows = [
        [
            escaped(each.plan),
            str(each.runs),
            f"{each.held}/{each.forecasts}" + (f" ({each.held / each.forecasts:.0%})" if each.forecasts else ""),
            *("-" if error is None else f"{error:.0%}" for error in (each.error, each.naive)),
            str(each.calculating),
        ]
        for each in found
    ]
    printer.table(["PLAN", "RUNS", "HELD", "OFF", "NAIVE", "NOT SAID"], rows)
