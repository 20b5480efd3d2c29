"""Which events: the options that choose from the log, and the selection they make."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from console.failure import USAGE, Failure

if TYPE_CHECKING:
    from bus.client import Client
    from bus.history.selection import Selection

F = TypeVar("F", bound=Callable[..., Any])
_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def instant(ctx: click.Context | None, param: click.Parameter | None, value: str | None) -> datetime | None:
    """A time: ISO 8601, in UTC unless it says otherwise, or an age such as 30s, 10m, 2h, 3d, 1w."""
    if value is None:
        return None
    try:
        if age := _AGE.fullmatch(value):
            return datetime.now(UTC) - timedelta(seconds=float(age[1]) * _SECONDS[age[2]])
        found = datetime.fromisoformat(value)
    except (ValueError, OverflowError):
        what = f"{value!r} is not a time: write 2026-01-31T12:00, or how long ago: 30s, 10m, 2h, 3d, 1w"
        raise click.BadParameter(what, ctx, param) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def moment(ctx: click.Context | None, param: click.Parameter | None, value: str | None) -> int | datetime | None:
    """A position of the log, or a time."""
    if value is not None and value.isdigit() and int(value) > 0:
        return int(value)
    return instant(ctx, param, value)


def speed(ctx: click.Context | None, param: click.Parameter | None, value: str) -> float | None:
    """How many times as fast as it was: `original` is 1; `full`, None, does not wait."""
    if value == "full":
        return None
    try:
        found = 1.0 if value == "original" else float(value)
    except ValueError:
        found = 0.0
    if not 0 < found < math.inf:
        raise click.BadParameter(f"{value!r} is not a speed: write full, original, or a number above 0", ctx, param)
    return found


def choosing(*, limited: bool = True, reversible: bool = False) -> Callable[[F], F]:
    """Add the options; the command takes them as `**chosen` and hands them to `selection`."""
    position = click.IntRange(0)
    options = [
        click.option("--run", "runs", multiple=True, metavar="RUN", help="Of this run, and its dead letters."),
        click.option("--phase", metavar="KEY", help="Of this phase; KEY:3 is one item of it."),
        click.option("--subject", "subjects", multiple=True, metavar="FILTER", help="Stored there: 'bus.agent.>'."),
        click.option("--type", "types", multiple=True, metavar="TYPE", help="phase.failed, or 'phase.*'."),
        click.option("--agent", metavar="NAME", help="Written by this agent, or naming it."),
        click.option("--correlation", metavar="ID", help="With this correlation id."),
        click.option("--after", type=position, default=0, metavar="POSITION", help="After this position."),
        click.option("--upto", type=position, metavar="POSITION", help="Up to and including this position."),
        click.option("--since", callback=instant, metavar="TIME", help="Stored from then on: 2026-01-31T12:00, or 2h."),
        click.option("--until", callback=instant, metavar="TIME", help="Stored before then."),
    ]
    if limited:
        options.append(click.option("--limit", type=click.IntRange(1), metavar="COUNT", help="At most so many."))
    if reversible:
        options.append(click.option("--reverse", "backwards", is_flag=True, help="The newest first."))

    def add(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return add


async def selection(client: Client, chosen: dict[str, Any]) -> Selection:
    """What was chosen. Runs may be named by the beginning of their id. Raises NotFound for one that is not there, and
    Failure for a range that ends before it begins: nothing could ever be in it."""
    from bus.history.selection import Selection

    for first, last in (("after", "upto"), ("since", "until")):
        if chosen[first] is not None and chosen[last] is not None and chosen[last] <= chosen[first]:
            raise Failure(USAGE, f"nothing is in a range from --{first} {chosen[first]} to --{last} {chosen[last]}")

    return Selection(**chosen | {"runs": [await _run(client, each) for each in chosen["runs"]]})


async def _run(client: Client, text: str) -> str:
    from bus.errors import InvalidName
    from console.lookup import find_run

    try:
        # What stands there need not be readable.
        is_there = await client.log.last(client.subjects.run(text)) is not None
    except InvalidName:
        is_there = False
    return text if is_there else (await find_run(client, text)).run
