"""`phasebus plan show`: the phases of a plan in an order in which they can run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.commands.start import plan_argument
from console.session import json_option

if TYPE_CHECKING:
    from bus.rules.plan import Phase, Plan

_WHEN_CHARACTERS = 40


@click.command()
@click.argument("plan", callback=plan_argument, metavar="PLAN.toml | FILE.py:NAME | package.module:NAME")
@json_option
def show(plan: Plan, as_json: bool) -> None:
    """Show a plan's phases, and what each waits for. With --json, the plan as it is stored."""
    from graphlib import TopologicalSorter

    from console.printer import Printer
    from console.text import shortened

    printer = Printer(as_json=as_json)
    if as_json:
        printer.record(plan)
        return
    rows = []
    for key in TopologicalSorter({key: node.needs for key, node in plan.graph.items()}).static_order():
        node = plan.graph[key]
        only = shortened(node.phase.when or "", _WHEN_CHARACTERS)
        rows.append([key, _does(node.phase), ", ".join(node.needs), only])
    printer.line(f"{plan.name} {plan.version}, {len(rows)} phases")
    printer.table(["PHASE", "DOES", "WAITS FOR", "ONLY WHEN"], rows)


def _does(phase: Phase) -> str:
    if phase.approval is not None:
        return f"asks {', '.join(phase.approval.who) or 'anybody'}"
    if phase.signal is not None:
        return f"waits for signal {phase.signal.signal}"
    return f"{phase.capability}{' one by one' if phase.each is not None else ''}"
