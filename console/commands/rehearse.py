"""`phasebus rehearse`: an agent's code of now on the inputs of past runs, and what would be different."""

from __future__ import annotations

from collections import Counter
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import click
import msgspec

from console.failure import FAILED, NOT_FOUND, OK, USAGE, Failure
from console.selecting import instant
from console.session import on_bus

if TYPE_CHECKING:
    from datetime import datetime

    from bus.client import Client
    from bus.handlers.agent import Agent
    from bus.history.diff import Difference
    from bus.replay.asked import Departure
    from bus.replay.counterfactual import Downstream
    from bus.replay.recorded import Result
    from bus.replay.rehearsed import Rehearsal, Rehearsed
    from bus.rules.run import RunState
    from console.printer import Printer

_CHARACTERS = 120
_STATUSES = ("in_progress", "completed", "failed", "cancelled")
_LIMIT = 100
_REACHES = {
    "other_input": "would get another input",
    "unknown_input": "would get what nobody knows now",
    "not_reached": "would not be reached",
    "reached": "would be reached",
    "skipped": "would be skipped",
}


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which runs: what is left empty does not matter."""

    run: tuple[str, ...] = ()
    plan: tuple[str, ...] = ()
    capability: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    limit: int = _LIMIT

    def fits(self, state: RunState) -> bool:
        return (
            (not self.run or any(state.run.startswith(each) for each in self.run))
            and state.plan.name in (self.plan or (state.plan.name,))
            and state.status in (self.status or _STATUSES)
            and (self.since is None or self.since <= state.started_at)
            and (self.until is None or state.started_at < self.until)
            and not state.archived
        )


def filtering(ctx: click.Context | None, param: click.Parameter | None, values: tuple[str, ...]) -> Wanted:
    """What `--runs plan=order,since=2d` says; a word without `=` is a run, or the beginning of its id."""
    said: dict[str, list[str]] = {}
    for word in " ".join(values).replace(",", " ").split():
        name, is_pair, value = word.partition("=")
        name, value = (name, value) if is_pair else ("run", word)
        if name not in Wanted.__struct_fields__ or not value:
            known = ", ".join(Wanted.__struct_fields__)
            raise click.BadParameter(f"{word!r}: write NAME=VALUE with one of {known}, or a run's id", ctx, param)
        said.setdefault(name, []).append(value)
    chosen: dict[str, Any] = {name: tuple(said.get(name, ())) for name in ("run", "plan", "capability", "status")}
    for name in ("since", "until", "limit"):
        if len(said.get(name, ())) > 1:
            raise click.BadParameter(f"{name} is said twice", ctx, param)
    for name in ("since", "until"):
        chosen[name] = instant(ctx, param, said[name][0]) if name in said else None
    if "limit" in said:
        limit = said["limit"][0]
        if not limit.isdigit() or not int(limit):
            raise click.BadParameter(f"limit={limit}: a number from 1", ctx, param)
        chosen["limit"] = int(limit)
    for status in chosen["status"]:
        click.Choice(_STATUSES).convert(status, param, ctx)
    return Wanted(**chosen)


@click.command()
@click.argument("agent", metavar="FILE.py:AGENT")
@click.option(
    "--runs",
    "wanted",
    multiple=True,
    callback=filtering,
    metavar="FILTER",
    help="plan=, capability=, status=, since=, until=, limit=, or a run: 'plan=order,since=2d,limit=50'.",
)
@click.option("--at-once", type=click.IntRange(1), default=8, show_default=True, help="So many runs at a time.")
@on_bus
async def rehearse(client: Client, printer: Printer, agent: str, wanted: Wanted, at_once: int) -> int:
    """Run an agent's code against past runs, and list what would be different.

    The code as it is now gets the recorded inputs of the runs that --runs chooses, if they have work for the agent: the
    newest 100, unless it says another limit. The other agents are played back from the log, also what handlers ask of
    them; nothing is done outside, and nothing is written to this bus. Where an answer that changed feeds the same
    agent, that is done with the new input; where it feeds others, they are listed, as is what is asked otherwise.

    Exit code 1 if anything would be different, 0 if nothing, 3 if there was nothing to rehearse.
    """
    from bus.handlers.agent import Agent
    from bus.replay.fork import forked
    from bus.replay.rehearsing import rehearse as rehearsed
    from console.target import load

    # Before their code is imported: what it connects to then is the fork, too.
    async with forked() as fork:
        theirs = load(agent, Agent)
        if unknown := [each for each in wanted.capability if each not in theirs.capabilities]:
            has = ", ".join(theirs.capabilities) or "none"
            raise Failure(USAGE, f"agent {theirs.name!r} has no capability {unknown[0]!r}, but {has}")
        runs = await _chosen(client, theirs, wanted)
        summary = _Summary()
        found = rehearsed(client, fork, theirs, runs, capabilities=wanted.capability, at_once=at_once)
        async with aclosing(found) as rehearsals:
            async for each in rehearsals:
                summary.add(each)
                _show(printer, each)
    if not summary.runs:
        from console.lookup import say_if_archived

        await say_if_archived(client, printer)
        # Not a success: a wrong filter would let any code pass.
        what = f"nothing was rehearsed: no work for {', '.join(theirs.capabilities) or 'no capability'} in such runs"
        raise Failure(NOT_FOUND, what, "phasebus run ls --tasks")
    summary.show(printer)
    return FAILED if summary.different else OK


async def _chosen(client: Client, agent: Agent, wanted: Wanted) -> list[str]:
    """The newest runs that fit and whose plan has work for the agent, oldest first."""
    from projections.catchup import build
    from projections.runs import RUNS

    mine = set(wanted.capability or agent.capabilities)
    states = (await build(client, RUNS)).rows.values()
    fitting = [state for state in states if wanted.fits(state) and mine.intersection(state.plan.capabilities)]
    fitting.sort(key=lambda state: (state.started_at, state.run))
    return [state.run for state in fitting[-wanted.limit :]]


class _Summary:
    """How often what came out, by capability."""

    def __init__(self) -> None:
        self.runs = self.different = 0
        self._verdicts: dict[str, Counter[str]] = {}
        self._reaches: dict[tuple[str, str], int] = {}

    def add(self, each: Rehearsal) -> None:
        self.runs += 1
        self.different += not each.is_same
        for work in each.work:
            self._verdicts.setdefault(work.capability, Counter())[work.verdict] += 1
        for reached in each.downstream:
            where = (f"{each.plan}/{reached.phase}", reached.reach)
            self._reaches[where] = self._reaches.get(where, 0) + 1

    def show(self, printer: Printer) -> None:
        if printer.as_json:
            downstream = [
                {"phase": phase, "reach": reach, "runs": runs} for (phase, reach), runs in self._reaches.items()
            ]
            total = {"runs": self.runs, "different": self.different}
            printer.record({"summary": total | {"capabilities": self._verdicts, "downstream": downstream}})
            return
        from console.text import escaped

        columns = ("same", "differs", "failed", "new")
        rows = [[escaped(name), *(str(of[each]) for each in columns)] for name, of in self._verdicts.items()]
        printer.line()
        printer.table(["CAPABILITY", *map(str.upper, columns)], rows)
        if self._reaches:
            printer.line()
            reached = [[escaped(phase), _REACHES[reach], str(runs)] for (phase, reach), runs in self._reaches.items()]
            printer.table(["DOWNSTREAM", "", "RUNS"], reached)
        printer.line()
        runs = "1 run" if self.runs == 1 else f"{self.runs} runs"
        printer.line(f"{runs} rehearsed, {self.different} would be different")


def _show(printer: Printer, each: Rehearsal) -> None:
    if printer.as_json:
        printer.record({"is_same": each.is_same} | msgspec.structs.asdict(each))
        return
    if each.is_same:
        return
    printer.line(f"{each.run}  of plan {each.plan}")
    for work in each.differences:
        for line in _work(work):
            printer.line(f"  {line}")
    for reached in each.downstream:
        printer.line(f"  {_reached(reached)}")


def _work(each: Rehearsed) -> list[str]:
    from console.timeline import label

    lines = [f"{each.verdict:<7}  {label(each.phase, each.item)} #{each.attempt}  {each.capability}"]
    if each.input is not None:
        lines.append(f"         input   {_parting(each.input)}")
    lines += [f"         {departed(ask)}" for ask in each.asks]
    if each.output is not None:
        lines.append(f"         output  {_parting(each.output)}")
    elif each.recorded is None or not each.recorded.is_like(each.now):
        then = _said(each.recorded) if each.recorded is not None else "not done"
        lines += [f"         then    {then}", f"         now     {_said(each.now)}"]
    return lines


def departed(each: Departure) -> str:
    """What a handler asks otherwise of others, in a line."""
    from console.text import escaped

    kind = {"work": "asks", "run": "starts", "fact": "tells", "decision": "decides"}[each.kind]
    said = {
        "changed": "",
        "more": ", of which the log has nothing",
        "fewer": " no more",
        "unrecorded": " with fast=True, of which nothing is recorded",
    }[each.change]
    parting = f": {_parting(each.given)}" if each.given is not None else ""
    return f"{kind:<7} {escaped(each.what)}{said}{parting}"


def _reached(each: Downstream) -> str:
    from console.text import escaped

    because = f" (from {', '.join(each.because)})" if each.because else ""
    parting = f": {_parting(each.input)}" if each.input is not None else ""
    about = f" of {each.capability}" if each.capability else ""
    return f"behind   {escaped(each.phase + about)} {_REACHES[each.reach]}{escaped(because)}{parting}"


def _parting(difference: Difference) -> str:
    """Where two values part: `lines.2.price: 30 -> 33`."""
    from console.printer import to_json
    from console.text import escaped, shortened

    sides = (
        "nothing" if side is msgspec.UNSET else shortened(to_json(side), _CHARACTERS)
        for side in (difference.one, difference.other)
    )
    return f"{escaped(difference.path)}{': ' if difference.path else ''}{' -> '.join(sides)}"


def _said(result: Result) -> str:
    from console.printer import to_json
    from console.text import shortened

    if result.problem is not None:
        return shortened(f"{result.problem} ({result.problem.code})", _CHARACTERS)
    return shortened(to_json(result.output), _CHARACTERS)
