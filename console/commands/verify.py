"""`phasebus run verify`: whether the log keeps what is promised of every run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from console.failure import FAILED, OK
from console.session import on_bus

if TYPE_CHECKING:
    from bus.client import Client
    from console.printer import Printer


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]...")
@click.option("--grace", "grace_s", type=click.FloatRange(0), default=30.0, metavar="SECONDS", help="How late is late.")
@on_bus
async def verify(client: Client, printer: Printer, runs: tuple[str, ...], grace_s: float) -> int:
    """Check that runs keep what is promised of every run. All of them, unless some are named.

    An outcome never changes; a result counts once, for the attempt under way; whatever is open has something armed that
    ends it, and what is due ends in time. Each violation is named with its place; exit code 1 if there is one. What was
    done outside with an outcome nobody knows is told as well, and is no violation.
    """
    from datetime import timedelta

    from bus.clock import utc_now
    from bus.rules.folding import fold
    from bus.rules.verify import violations
    from console.lookup import find_run
    from console.text import escaped
    from console.timeline import label

    names = [(await find_run(client, run)).run for run in runs] or await client.ledger.names()
    broken = unknown = 0
    for name in names:
        commits = [commit async for commit in client.ledger.commits(name)]
        for violation in violations(commits, utc_now(), grace=timedelta(seconds=grace_s)):
            broken += 1
            if printer.as_json:
                printer.record(violation)
            else:
                printer.line(f"{violation.run} {violation.position}: {violation.promise}: {violation.says}")
        state = fold(commits)
        for phase, item, effect in state.unknown() if state is not None else ():
            unknown += 1
            if printer.as_json:
                printer.record({"run": name, "phase": phase.key, "item": item.index, "unknown_effect": effect})
            else:
                place = label(phase.key, item.index)
                printer.line(f"{name}: nobody knows whether {escaped(effect)} of {place} happened")
    if not printer.as_json:
        printer.line(f"{_counted(len(names), 'run')} verified, {_counted(broken, 'violation')}")
        if unknown:
            printer.hint(f"{unknown} unknown: `phasebus run show RUN` says how to settle each")
    return FAILED if broken else OK


def _counted(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
