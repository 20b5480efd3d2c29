"""Feeding: what the log holds, to code of the user's own: to an agent in a fork, or to a function event by event."""

from __future__ import annotations

import asyncio
import inspect
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import aclosing
from typing import Any

import click
from msgspec.structs import asdict

from bus.client import Client
from bus.handlers.agent import Agent
from bus.history.selection import Selection
from bus.replay.fork import forked
from bus.replay.recorded import Result
from bus.replay.replaying import Replayed, paced, replay
from console.commands.rehearse import departed
from console.failure import FAILED, NOT_FOUND, OK, USAGE, Failure
from console.lookup import say_if_archived
from console.printer import Printer, to_json
from console.selecting import selection
from console.target import load
from console.text import shortened

_CHARACTERS = 160


async def feed(
    client: Client,
    printer: Printer,
    into: str,
    chosen: dict[str, Any],
    capabilities: Sequence[str],
    speed: float | None,
) -> int:
    """Feed what is chosen into the agent or the function that `into` names; returns the exit code."""
    wanted = await selection(client, chosen)
    # Before their code is imported: what it connects to then is the fork, too.
    async with forked() as fork:
        target = load(into, object)
        if isinstance(target, Agent):
            return await _to_agent(client, fork, printer, target, wanted, capabilities, speed)
        if not callable(target):
            raise Failure(USAGE, f"{into} is of type {type(target).__name__}, not an agent or a function")
        if capabilities:
            raise Failure(USAGE, f"--capability is for an agent, and {into} is a function")
        return await _to_function(client, printer, into, target, wanted, speed)


async def _to_agent(
    client: Client,
    fork: Client,
    printer: Printer,
    agent: Agent,
    wanted: Selection,
    capabilities: Sequence[str],
    speed: float | None,
) -> int:
    unknown = [each for each in capabilities if each not in agent.capabilities]
    if unknown:
        raise Failure(USAGE, f"agent {agent.name!r} has no capability {unknown[0]!r}, but {_listed(agent)}")
    if wanted.types:
        raise Failure(USAGE, "--type is for a function: an agent gets the attempts of its capabilities")
    verdicts: Counter[str] = Counter()
    async with aclosing(replay(client, fork, agent, wanted, capabilities=capabilities, speed=speed)) as replayed:
        async for each in replayed:
            verdicts[each.verdict] += 1
            _show(printer, each)
    if not verdicts:
        await say_if_archived(client, printer)
        # Not a success: a wrong selection would let any code pass.
        what = f"nothing was done again: among what was chosen, no attempts were recorded for {_listed(agent)}"
        raise Failure(NOT_FOUND, what, "phasebus events cat --type phase.started")
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    printer.hint(f"{verdicts.total()} attempts: {counts}")
    return FAILED if verdicts["differs"] or verdicts["failed"] else OK


async def _to_function(
    client: Client, printer: Printer, name: str, function: Callable[..., Any], wanted: Selection, speed: float | None
) -> int:
    count = 0
    async with aclosing(paced(client.events(wanted), speed)) as found:
        async for each in found:
            try:
                if inspect.iscoroutinefunction(function):
                    await function(each)
                else:
                    await asyncio.to_thread(function, each)
            except Exception as error:  # noqa: BLE001 - it is the user's code
                trace = error.__traceback__.tb_next if error.__traceback__ is not None else None
                click.echo("".join(traceback.format_exception(type(error), error, trace)), err=True, nl=False)
                place = f"{each.position}.{each.index}"
                what = f"{name} raised {type(error).__name__} on the event at {place}; it took {count} before"
                raise Failure(FAILED, what, f"to go on there: --after {each.position - 1}") from None
            count += 1
    if printer.as_json:
        printer.record({"events": count})
    printer.hint(f"fed {count} events")
    return OK


def _show(printer: Printer, each: Replayed) -> None:
    if printer.as_json:
        printer.record(asdict(each))
        return
    place = each.phase if each.item is None else f"{each.phase}:{each.item}"
    spot = f"{each.position}.{each.index}"
    printer.line(f"{spot:>8}  {each.verdict:<7}  {each.run}/{place} #{each.attempt}  {each.capability}")
    if each.verdict != "same":
        for ask in each.asks:
            printer.line(f"          {departed(ask)}")
        then = _said(each.recorded) if each.recorded is not None else "no result of a handler"
        printer.line(f"          then  {then}")
        printer.line(f"          now   {_said(each.now)}")


def _said(result: Result) -> str:
    if result.problem is not None:
        return shortened(f"{result.problem} ({result.problem.code})", _CHARACTERS)
    return shortened(to_json(result.output), _CHARACTERS)


def _listed(agent: Agent) -> str:
    return ", ".join(agent.capabilities) or "none"
