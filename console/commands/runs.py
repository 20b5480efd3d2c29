"""`phasebus run ls` and `run show`: runs as a list, and one of them whole, now or at any position of the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.selecting import moment
from console.session import on_bus

if TYPE_CHECKING:
    from datetime import datetime

    from bus.client import Client
    from bus.rules.run import Item, PhaseState, RunState
    from console.printer import Printer
    from projections.runs import RunRow

_SAID_CHARACTERS = 60
_INPUT_CHARACTERS = 200


@click.command()
@click.option("--status", type=click.Choice(["in_progress", "completed", "failed", "cancelled"]))
@click.option("--plan", metavar="NAME", help="Only runs of this plan.")
@click.option("--tasks", is_flag=True, help="Also work outside a run, which was asked for or sent.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="The newest so many.")
@on_bus
async def ls(client: Client, printer: Printer, status: str | None, plan: str | None, tasks: bool, limit: int) -> None:
    """List the runs, newest first."""
    from bus.clock import utc_now
    from console.lookup import glances, say_if_archived
    from projections.runs import listed

    now = utc_now()
    found = [
        row
        for row in listed(await glances(client), now, tasks=tasks)
        if status in (None, row.status) and plan in (None, row.plan)
    ]
    if printer.as_json:
        for row in found[:limit]:
            printer.record(row)
        return
    if found:
        printer.table(["RUN", "STATUS", "DONE", "STARTED", "TOOK", "NOW"], [_cells(row, now) for row in found[:limit]])
    else:
        printer.hint("no such runs: start one with `phasebus run start PLAN.toml`")
    if len(found) > limit:
        printer.hint(f"{len(found) - limit} more: --limit {len(found)}")
    await say_if_archived(client, printer)


@click.command()
@click.argument("run")
@click.option("--at", callback=moment, metavar="POSITION | TIME", help="As it was at this position, or time: 2h (ago).")
@on_bus
async def show(client: Client, printer: Printer, run: str, at: int | datetime | None) -> None:
    """Show a run as it is, or as it was at a position of the log or a time."""
    from bus.clock import utc_now
    from console.lookup import find_run
    from console.timeline import timeline

    state = await find_run(client, run)
    now = utc_now()
    if at is not None:
        position = at if isinstance(at, int) else await client.log.position_at(at)
        state = await client.ledger.as_of(state.run, position)
        now = await _time_of(client, state)
    if printer.as_json:
        printer.record(state)
        return
    for line in _facts(state, now):
        printer.line(line)
    for phase, item, effect in state.unknown():
        printer.line(_doubt(state, phase, item, effect))
    printer.line()
    printer.line(timeline(state, now))


async def _time_of(client: Client, state: RunState) -> datetime:
    """When the newest commit in the state was made: the present of that state."""
    record = await client.log.at(state.position)
    assert record is not None, "a state's position is that of a commit"
    return record.envelope().time


def _cells(row: RunRow, now: datetime) -> list[str]:
    from console.text import ago, duration, shortened

    done = f"{row.phases_done}/{row.phases_total}"
    said = row.problem or ", ".join(row.current)
    return [
        row.run,
        row.status,
        done,
        ago(row.started_at, now),
        duration(row.elapsed_s),
        shortened(said, _SAID_CHARACTERS),
    ]


def _doubt(state: RunState, phase: PhaseState, item: Item, effect: str) -> str:
    """An effect nobody knows of, and the command that settles it."""
    from console.text import escaped
    from console.timeline import label
    from projections.attention import settling

    said = f"nobody knows whether {effect!r} of {label(phase.key, item.index)} happened"
    return escaped(f"{'unknown':<9} {said}: {settling(state, phase, item, effect)}")


def _facts(state: RunState, now: datetime) -> list[str]:
    """What the timeline does not tell."""
    from console.printer import to_json
    from console.text import ago, escaped, shortened

    facts = [
        ("plan", f"{state.plan.name} {state.plan.version}"),
        ("input", shortened(to_json(state.input), _INPUT_CHARACTERS)),
        ("started", ago(state.started_at, now)),
        ("position", f"{state.position}, {state.events} events"),
    ]
    if state.priority != "normal":
        facts.append(("priority", state.priority))
    if state.unknown_events:
        unknown = f"{state.unknown_events} events of types this version does not know: phasebus replay {state.run}"
        facts.append(("unknown", unknown))
    if state.passes > 1:
        facts.append(("pass", str(state.passes)))
    if state.problem is not None:
        facts.append(("problem", str(state.problem)))
    if state.rollback is not None and state.rollback.problem is not None:
        facts.append(("undoing", f"{', '.join(state.rollback.left)}; the run has failed: {state.rollback.problem}"))
    return [f"{name:<9} {escaped(value)}" for name, value in facts]
