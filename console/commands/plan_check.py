"""`phasebus plan check`: what a changed plan would mean for the runs there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.commands.start import plan_argument
from console.failure import FAILED, OK
from console.session import on_bus

if TYPE_CHECKING:
    from bus.client import Client
    from bus.replay.plancheck import Check
    from bus.rules.plan import Plan
    from console.printer import Printer


@click.command()
@click.argument("plan", callback=plan_argument, metavar="PLAN")
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option(
    "--runs", "recent", type=click.IntRange(0), default=20, show_default=True, help="So many that ended, newest first."
)
@click.option("--all", "is_all", is_flag=True, help="Every run of the plan there is.")
@on_bus
async def check(client: Client, printer: Printer, plan: Plan, runs: tuple[str, ...], recent: int, is_all: bool) -> int:
    """Say what a plan would mean for the runs there are: of a plan with its name, open or recent, or those named.

    What was asked of each is asked again, of a run with this plan and by the rules of this version. A run is
    unaffected; differs: it would go another way; or breaks: it would fail where it did not, or it is open and what it
    has done has no place in the plan. Nothing is changed. Exit code 1 if one breaks.
    """
    from bus.replay.plancheck import check as check_run
    from console.lookup import find_run

    names = [(await find_run(client, run)).run for run in runs] or await _of_plan(client, plan, recent, is_all)
    outcomes: dict[str, int] = {}
    for name in names:
        found = check_run([commit async for commit in client.ledger.commits(name)], plan)
        outcomes[found.outcome] = outcomes.get(found.outcome, 0) + 1
        _print(printer, found)
    if not names:
        printer.hint(f"there is no run of a plan {plan.name!r}: name the runs to check")
    elif not printer.as_json:
        counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        printer.line(f"{len(names)} run{'' if len(names) == 1 else 's'} checked: {counts}")
    return FAILED if "breaks" in outcomes else OK


async def _of_plan(client: Client, plan: Plan, recent: int, is_all: bool) -> list[str]:
    """The open runs of the plan, and the newest of those that ended."""
    from bus.clock import utc_now
    from projections.catchup import build
    from projections.runs import RUNS, rows

    found = [row for row in rows((await build(client, RUNS)).rows, utc_now()) if row.plan == plan.name]
    still_open = [row.run for row in found if row.status == "in_progress"]
    ended = [row.run for row in found if row.status != "in_progress"]
    return still_open + (ended if is_all else ended[:recent])


def _print(printer: Printer, found: Check) -> None:
    from console.text import escaped

    if printer.as_json:
        printer.record(found)
        return
    printer.line(f"{found.run}  {found.outcome}" + (f"  (of plan {found.plan})" if found.findings else ""))
    for each in found.findings:
        about = f"{each.phase} " if each.phase else ""
        printer.line(escaped(f"  {each.position}: {'breaks: ' if each.breaks else ''}{about}{each.says}"))
