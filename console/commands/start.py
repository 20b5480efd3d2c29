"""`phasebus run start` and `run follow`: begin a run, and watch it to its end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from console.failure import FAILED, OK, USAGE, Failure
from console.session import on_bus, on_live_bus

if TYPE_CHECKING:
    import msgspec

    from bus.client import Client
    from bus.rules.plan import Plan
    from console.printer import Printer


def plan_argument(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Plan | None:
    """The plan in a TOML file, or a Python one."""
    from bus.rules.plan import Plan
    from bus.runs.planfile import read_plan
    from console.target import load

    if value is None:
        return None
    return read_plan(Path(value)) if value.endswith(".toml") else load(value, Plan)


def read_input(_context: click.Context, parameter: click.Parameter, value: str | None) -> msgspec.Raw | None:
    """JSON, as it stands on the command line, in a file or on stdin."""
    import msgspec

    if value is None:
        return None
    try:
        text = sys.stdin.read() if value == "-" else Path(value[1:]).read_text() if value.startswith("@") else value
        msgspec.json.decode(text)
    except (OSError, UnicodeDecodeError) as error:
        raise Failure(USAGE, f"{_called(parameter)} can't be read: {error}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        option = f"{parameter.opts[0]} " if isinstance(parameter, click.Option) else ""
        example = f"""for example: {option}'{{"path": "src"}}'"""
        raise Failure(USAGE, f"{_called(parameter)} is not JSON: {error}", example) from None
    return msgspec.Raw(text.encode())


def _called(parameter: click.Parameter) -> str:
    """What is given, by the name it is given under."""
    return parameter.opts[0] if isinstance(parameter, click.Option) else "the input"


def turn_options(command: Any) -> Any:
    """How work may be told where it waits."""
    for option in (
        click.option("--sender", metavar="NAME", help="On whose account it waits; senders are served in turn."),
        click.option(
            "--priority", type=click.Choice(["high", "normal", "low"]), help="Taken before, or after, what else waits."
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("plan", callback=plan_argument, metavar="PLAN.toml | FILE.py:NAME | package.module:NAME")
@click.option(
    "--input", "value", callback=read_input, default="{}", metavar="JSON | @FILE | -", help="What the run is about."
)
@click.option("--id", "run", metavar="ID", help="Its id; made from the plan's name unless told.")
@click.option("--follow", "is_followed", is_flag=True, help="Watch it to its end; exit code 1 unless it completes.")
@click.option("--fail-fast", is_flag=True, help="Refuse (exit code 6) if nobody offers a capability now.")
@click.option("--from", "first", metavar="PHASE", help="Leave out the phases in front of this one.")
@click.option("--to", "last", metavar="PHASE", help="Leave out the phases behind this one.")
@click.option("--force", is_flag=True, help="Compute all of it anew, whatever is in the cache.")
@click.option(
    "--sticky", default="", metavar="WORD", help="Where routes share work out, the same word goes the same way."
)
@turn_options
@on_live_bus
async def start(
    client: Client,
    printer: Printer,
    plan: Plan,
    value: msgspec.Raw,
    run: str | None,
    is_followed: bool,
    **how: Any,
) -> int:
    """Start a run of a plan; prints its id."""
    from console.lookup import refusals
    from console.offers import lonely

    for key in (how["first"], how["last"]):
        if key is not None and key not in plan.graph:
            raise Failure(USAGE, f"plan {plan.name!r} has no phase {key!r}: it has {', '.join(plan.graph)}")
    with refusals(run):
        receipt = await client.start(plan, value, run=run, **how)
    if printer.as_json:
        printer.record(receipt)
    else:
        printer.line(receipt.run)
    for capability in receipt.unserved:
        printer.hint(lonely(capability))
    return await _followed(client, printer, receipt.run) if is_followed else OK


@click.command()
@click.argument("run")
@on_bus
async def follow(client: Client, printer: Printer, run: str) -> int:
    """Watch a run until it ends; exit code 1 unless it completes."""
    from console.lookup import find_run

    state = await find_run(client, run)
    return await _followed(client, printer, state.run)


async def _followed(client: Client, printer: Printer, run: str) -> int:
    import asyncio
    from contextlib import aclosing

    from console import live
    from console.lookout import lookout

    try:
        if not printer.as_json:
            state = await live.follow(client, run)
            return OK if state.status == "completed" else FAILED
        async with lookout(client, run, printer.hint), aclosing(client.watch(run)) as happenings:
            async for each in happenings:
                place = {"run": run, "position": each.position, "index": each.index, "at": each.at}
                printer.record(place | {"type": each.type, "event": each.event})
    except asyncio.CancelledError:
        printer.hint(f"the run goes on: phasebus run follow {run}")
        raise
    return OK if (await client.runs.load(run)).status == "completed" else FAILED
