"""`phasebus replay`: a run told again from the log alone; or what was done, done again in a fork of it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from console.failure import OK, USAGE, Failure
from console.selecting import choosing
from console.selecting import speed as speed_option
from console.session import on_bus

if TYPE_CHECKING:
    from bus.client import Client
    from bus.rules.events import Event
    from bus.rules.run import PhaseState, RunState
    from console.printer import Printer


@click.command()
@click.argument("run", required=False)
@click.option("--from", "first", type=click.IntRange(1), default=1, metavar="POSITION", help="Where to begin.")
@click.option("--to", "last", type=click.IntRange(1), metavar="POSITION", help="Where to end.")
@click.option("--into", metavar="FILE.py:NAME", help="An agent to do the work again, or a function to get each event.")
@click.option("--capability", "capabilities", multiple=True, metavar="NAME", help="With an agent: only this one.")
@click.option("--speed", callback=speed_option, default="full", metavar="SPEED", help="full, original, or a factor.")
@choosing()
@on_bus
async def replay(
    client: Client,
    printer: Printer,
    run: str | None,
    first: int,
    last: int | None,
    into: str | None,
    capabilities: tuple[str, ...],
    speed: float | None,
    **chosen: Any,
) -> int:
    """Tell a run again from the log, or do its work again in a fork.

    Each event with its position in the log, its time from the start, and what the run is after it. Agents are not
    needed, and nothing is done again.

    With --into FILE.py:agent, each attempt that one of the agent's capabilities took is done again, by the code as it
    is now, with the input it had then, and the result is compared with the recorded one; exit code 1 if one differs, 3
    if there was none to do again. This happens in a fork: a private bus of its own, which the agent's code finds in
    place of this one. Without RUN, those of all runs; the options below choose among them.

    With --into FILE.py:function, the function gets each chosen event, in order.
    """
    if last is not None and last < first:
        raise Failure(USAGE, f"--to {last} is before --from {first}")
    if into is None:
        if run is None or any(chosen.values()) or capabilities or speed is not None:
            raise Failure(USAGE, "a RUN is told; to choose among events, say what gets them: --into FILE.py:NAME")
        await _tell(client, printer, run, first, last)
        return OK
    from console.feeding import feed

    chosen["runs"] = (*chosen["runs"], *([run] if run is not None else []))
    chosen["after"] = max(chosen["after"], first - 1)
    chosen["upto"] = min((each for each in (chosen["upto"], last) if each is not None), default=None)
    return await feed(client, printer, into, chosen, capabilities, speed)


async def _tell(client: Client, printer: Printer, run: str, first: int, last: int | None) -> None:
    from msgspec.structs import replace

    from bus.rules.events import PhaseCompleted, type_of
    from bus.rules.folding import Folding
    from console.lookup import find_run
    from console.story import named, said

    name = (await find_run(client, run)).run
    folding = Folding(None)
    # Counted here: to count thousands of items after each of thousands of events takes seconds.
    succeeded: Counter[str] = Counter()
    async for commit in client.ledger.commits(name, upto=last):
        for index, event in enumerate(commit.events):
            before = _statuses(folding.state)
            if folding.state is None:
                folding.add(replace(commit, events=[event]))
            else:
                folding.apply([event], commit.at)
            state = folding.state
            assert state is not None, "the first event starts the run"
            if isinstance(event, PhaseCompleted) and event.item is not None:
                succeeded[event.phase] += 1
            if commit.position < first:
                continue
            offset_s = (commit.at - state.started_at).total_seconds()
            if printer.as_json:
                place = {
                    "run": name,
                    "position": commit.position,
                    "index": index,
                    "at": commit.at,
                    "offset_s": offset_s,
                }
                printer.record(place | {"type": type_of(event), "event": event, "state": _record(state)})
            else:
                spot = f"{commit.position}.{index}"
                printer.line(f"{spot:>8}  +{offset_s:.3f} s  {named(event):<20}  {said(event)}".rstrip())
                printer.line(f"          = {_after(state, before, event, succeeded)}")


def _statuses(state: RunState | None) -> dict[str, str]:
    return {key: phase.status for key, phase in state.phases.items()} if state is not None else {}


def _after(state: RunState, before: dict[str, str], event: Event, succeeded: Counter[str]) -> str:
    """The run in a few words, with the phases that are not what they were, and that of which an item moved."""
    about = getattr(event, "phase", None) if getattr(event, "item", None) is not None else None
    changed = [
        f"{key} {phase.status} {_items_done(phase, succeeded[key])}".rstrip()
        for key, phase in state.phases.items()
        if before and (phase.status != before[key] or key == about)
    ]
    return ", ".join([f"{state.status} {_done(state)}/{len(state.phases)}", *changed])


def _items_done(phase: PhaseState, succeeded: int) -> str:
    return f"{succeeded}/{len(phase.items)}" if phase.items and phase.items[0].index is not None else ""


def _done(state: RunState) -> int:
    return sum(1 for phase in state.phases.values() if phase.lets_pass)


def _record(state: RunState) -> dict[str, Any]:
    """The state at a glance; all of it is in `run show --at`."""
    phases = {
        key: {"status": phase.status, "items": len(phase.items), "open_items": phase.open_items}
        for key, phase in state.phases.items()
    }
    return {
        "status": state.status,
        "passes": state.passes,
        "phases_done": _done(state),
        "phases_total": len(state.phases),
        "phases": phases,
    }
