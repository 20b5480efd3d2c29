"""`phasebus run ls` and `run show`: runs as a list, and one of them whole, now or at any position of the log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.selecting import moment
from console.session import on_bus

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from bus.client import Client
    from bus.rules.run import Item, PhaseState, RunState
    from console.foresight import Forecast
    from console.printer import Printer
    from projections.runs import RunRow

_SAID_CHARACTERS = 60
_INPUT_CHARACTERS = 200


@click.command()
@click.option("--status", type=click.Choice(["in_progress", "completed", "failed", "cancelled"]))
@click.option("--plan", metavar="NAME", help="Only runs of this plan.")
@click.option("--tasks", is_flag=True, help="Also work outside a run, which was asked for or sent.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="The newest so many.")
@click.option("--eta", is_flag=True, help="Also how far those that go on are, what is left, and how often that held.")
@on_bus
async def ls(
    client: Client, printer: Printer, status: str | None, plan: str | None, tasks: bool, limit: int, eta: bool
) -> None:
    """List the runs, newest first."""
    import msgspec

    from bus.clock import utc_now
    from console.lookup import glances, say_if_archived
    from projections.runs import listed

    now = utc_now()
    found = [
        row
        for row in listed(await glances(client), now, tasks=tasks)
        if status in (None, row.status) and plan in (None, row.plan)
    ]
    chosen = found[:limit]
    forecasts = await _forecasts(client, chosen, now) if eta else {}
    if printer.as_json:
        for row in chosen:
            said = forecasts.get(row.run)
            printer.record(row if said is None else msgspec.structs.asdict(row) | msgspec.structs.asdict(said))
        return
    if found:
        headings = ["RUN", "STATUS", "DONE", "STARTED", "TOOK", *(["LEFT"] if eta else []), "NOW"]
        rows = [_cells(row, now) for row in chosen]
        for row, cells in zip(chosen, rows if eta else [], strict=False):
            cells.insert(-1, forecasts[row.run].left if row.run in forecasts else "")
        printer.table(headings, rows)
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
    for line in (*_facts(state, now), *(await _forecast(client, state, now) if state.is_open else [])):
        printer.line(line)
    for phase, item, effect in state.unknown():
        printer.line(_doubt(state, phase, item, effect))
    printer.line()
    printer.line(timeline(state, now))


async def _forecasts(client: Client, rows: Sequence[RunRow], now: datetime) -> dict[str, Forecast]:
    from console.foresight import foresee_all

    return await foresee_all(client, {row.run for row in rows if row.status == "in_progress"}, now)


async def _forecast(client: Client, state: RunState, now: datetime) -> list[str]:
    """How far an open run is, what is left of it, and how often such forecasts have held."""
    from console.foresight import foresee
    from projections.progress import progress

    seen = await foresee(client, state.run)
    far = progress(state, seen.history, now)
    left = seen.left(state, far.eta) if far.eta is not None else "calculating what is left"
    return [f"{'progress':<9} {far.fraction:.0%}{', ' if left else ''}{left}"]


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
    if state.paused_at is not None:
        facts.append(("paused", f"{ago(state.paused_at, now)} by {state.paused_by}: phasebus run resume {state.run}"))
    if state.passes > 1:
        facts.append(("pass", str(state.passes)))
    if state.problem is not None:
        facts.append(("problem", str(state.problem)))
    if state.rollback is not None and state.rollback.problem is not None:
        facts.append(("undoing", f"{', '.join(state.rollback.left)}; the run has failed: {state.rollback.problem}"))
    if state.rollback is not None and state.rollback.cancels:
        facts.append(("undoing", f"{', '.join(state.rollback.left)}; then the run is cancelled by {state.rollback.by}"))
    return [f"{name:<9} {escaped(value)}" for name, value in facts]
