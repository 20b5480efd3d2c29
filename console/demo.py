"""`phasebus demo`: agents write and run tests for a package, one of them is killed meanwhile, and nothing is lost."""

from __future__ import annotations

import os
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from console.failure import FAILED, INTERRUPTED, OK, Failure

if TYPE_CHECKING:
    import asyncio

    from bus.broker.server import Server
    from bus.rules.run import RunState

_BOUND_S = 110.0
_ASKING_BOUND_S = 3600.0
_FINDINGS = 4


@click.command()
@click.argument("target", metavar="[FOLDER | FILE.py | PACKAGE]", required=False)
@click.option("--path", type=click.Path(exists=True, path_type=Path), metavar="DIR", help="The same as the argument.")
@click.option("--interactive", is_flag=True, help="Ask here whether the report may be published.")
@click.option("--no-kill", is_flag=True, help="Kill nobody.")
@click.option(
    "--keep",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the log goes; a new folder among the system's temporary files unless told.",
)
def demo(target: str | None, path: Path | None, interactive: bool, no_kill: bool, keep: Path | None) -> int:
    """See agents work on a run, and survive what is done to them.

    Eight agent processes find the modules of a package (Python's own `email` unless told otherwise), measure them,
    write property tests for them, run the tests and report. One is killed with SIGKILL while it works.
    """
    import time

    began_s = time.monotonic()
    if target is not None and path is not None:
        raise click.UsageError("the argument and --path say the same: give one")

    import asyncio
    import tempfile

    from bus.signals import until_signalled

    package = str(path.resolve()) if path is not None else target or "email"
    folder = (keep or Path(tempfile.mkdtemp(prefix="phasebus-demo-"))).resolve()
    return asyncio.run(
        until_signalled(
            lambda stop: _stage(stop, package, folder, began_s=began_s, kills=not no_kill, asks=interactive)
        )
    )


async def _stage(stop: asyncio.Event, package: str, folder: Path, *, began_s: float, kills: bool, asks: bool) -> int:
    import shlex
    import time

    from bus.broker.server import embedded
    from bus.clock import utc_now
    from bus.connecting import connect
    from bus.runs.planfile import read_plan
    from console.foresight import foresee
    from console.live import shown
    from console.processes import processes
    from console.rehearsal import Rehearsal, told
    from console.text import duration
    from console.timeline import timeline

    files = _example()
    async with (
        embedded(folder) as server,
        processes(folder / "logs", _environment(server)) as company,
    ):
        rehearsal = Rehearsal(company, files, began_s=began_s, kills=kills, asks=asks)
        rehearsal.start_agent("scanner")
        async with connect(server.url, name="demo") as client:
            receipt = await client.start(read_plan(files / "plan.toml"), {"path": package})
            async with shown(sys.stdout, await foresee(client, receipt.run)) as screen:
                screen.say(f"the log, and those of the processes, are in {folder}")
                playing = rehearsal.play(client, receipt.run, screen)
                bound_s = _ASKING_BOUND_S if asks else _BOUND_S
                is_over = await _first(playing, company.watch(), stop.wait(), timeout_s=bound_s)
            state = await client.runs.load(receipt.run)
            commits = [commit async for commit in client.ledger.commits(receipt.run)]
    click.echo(f"\n{timeline(state, utc_now())}\n")
    for line in _findings(state):
        click.echo(line)
    for recovery in rehearsal.recoveries:
        click.echo(f"kill -9 of {recovery.instance}: {told(recovery)}")
    click.echo(f"{state.events} events in {len(commits)} commits; told again, from the log alone, by")
    click.echo(f"  phasebus replay {state.run} --store {shlex.quote(str(folder))}")
    click.echo(f"{state.status.replace('_', ' ')}, {duration(time.monotonic() - began_s)} after the command was typed")
    if not is_over:
        raise Failure(FAILED, f"not done after {bound_s:g} s: {'; '.join(_open(state))}")
    if state.status != "completed":
        raise Failure(FAILED, _why(state))
    return OK


async def _first(
    playing: Coroutine[None, None, RunState],
    dying: Coroutine[None, None, None],
    stopping: Coroutine[None, None, object],
    *,
    timeout_s: float,
) -> bool:
    """Wait for the run's end; whether it came in time. Raises Failure: a process died, or a signal came."""
    import asyncio

    from console.processes import Died

    play, death, stopped = (asyncio.ensure_future(each) for each in (playing, dying, stopping))
    try:
        done, _ = await asyncio.wait({play, death, stopped}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if stopped in done:
            raise Failure(INTERRUPTED, "interrupted")
        for each in done:
            each.result()
    except Died as died:
        raise Failure(FAILED, str(died)) from None
    finally:
        for each in (play, death, stopped):
            each.cancel()
        await asyncio.wait({play, death, stopped})
    return bool(done)


def _example() -> Path:
    """The testwriter's files: in a wheel beside this module, in a checkout beside this package."""
    here = Path(__file__).parent
    for place in (here, here.parent):
        if (place / "examples" / "testwriter" / "plan.toml").is_file():
            return place / "examples" / "testwriter"
    raise Failure(FAILED, f"the demo's agents are neither in {here} nor in {here.parent}", "install phasebus again")


def _environment(server: Server) -> dict[str, str]:
    """What the processes are told: this bus, work that stays beside its log, and to hand back work at once."""
    told = {"NATS_URL": server.url, "PHASEBUS_SYSTEM_URL": server.system_url, "PHASEBUS_GRACE_S": "0.5"}
    return {"PHASEBUS_WORKDIR": str(server.store / "work"), **os.environ, **told}


def _findings(state: RunState) -> Iterator[str]:
    """The totals, the findings that are quickest to read, and where all of them are."""
    from console.rehearsal import totals
    from console.text import shortened

    ran, published = state.phases["test"].output, state.phases["publish"].output
    if ran is None or state.phases["report"].output is None:
        return
    yield totals(state)
    found = [(each["module"], one) for each in ran.value for one in each["outcomes"] if one["outcome"] == "fail"]
    # Of each module the one that is quickest to read.
    smallest = dict(sorted(found, key=lambda each: len(each[1]["message"]), reverse=True))
    for module, one in list(smallest.items())[: -_FINDINGS - 1 : -1]:
        yield f"  {shortened(module, 60)}  {shortened(one['name'], 60)}"
        yield f"      {shortened(' '.join(one['message'].split()), 160)}"
    if published is not None:
        reports = [path for path in published.value["paths"] if Path(path).name.startswith("report.")]
        yield f"all of it: {', '.join(shortened(path, 500) for path in reports)}"


def _open(state: RunState) -> Iterator[str]:
    """What has begun and not ended, and who holds it."""
    from console.timeline import label

    for phase in state.phases.values():
        if phase.opened_at is not None and phase.ended_at is None:
            held = [(item, item.holder) for item in phase.items if item.holder is not None]
            names = [f"{label(phase.key, item.index)} held by {holder.instance}" for item, holder in held]
            yield f"{phase.key} is {phase.status} ({', '.join(names) or 'held by nobody'})"


def _why(state: RunState) -> str:
    """What the first phase that failed said."""
    problems = [phase.problem for phase in state.phases.values() if phase.problem is not None]
    return str(problems[0] if problems else state.problem)
