"""`phasebus route set, ls, show, rm`: each decision is in the log, with its maker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import click

from console.commands.decisions import by_option
from console.failure import NOT_FOUND, REFUSED, USAGE, Failure
from console.session import on_bus, on_live_bus

if TYPE_CHECKING:
    from collections import Counter
    from datetime import datetime

    from bus.client import Client
    from bus.registry.routes import Turn
    from console.printer import Printer
    from projections.traffic import Traffic

_HISTORY = 10
_REASON_CHARACTERS = 60
_SEEN = click.option("--seen", type=int, metavar="REVISION", help="Only if that is still the newest revision.")
_REASON = click.option("--reason", default="", metavar="TEXT", help="Why.")


def _weights(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> dict[str, float]:
    """`1.*=95`: versions and how much they weigh."""
    found: dict[str, float] = {}
    for each in given:
        versions, _, weight = each.rpartition("=")
        try:
            found[versions.strip()] = float(weight)
        except ValueError:
            raise click.BadParameter(f"{each!r} is not a share: write versions=weight, '1.*=95'") from None
    if len(found) != len(given) or "" in found:
        raise click.BadParameter("each share names other versions: '1.*=95' '2.0.0=5'")
    return found


@click.command(name="set")
@click.argument("capability")
@click.argument("weights", metavar="VERSIONS=WEIGHT...", nargs=-1, required=True, callback=_weights)
@by_option
@_REASON
@_SEEN
@on_live_bus
async def set_(
    client: Client,
    printer: Printer,
    capability: str,
    weights: dict[str, float],
    by: str,
    reason: str,
    seen: int | None,
) -> None:
    """Share a capability's work out among versions: '1.*=95' '2.0.0=5'.

    Versions are 2.0.0, 1.*, '>=1.2,<2', or * for all others. What is sticky to the same (a key, a story) goes the same
    way; a weight of 0 gets nothing. Work whose versions nobody runs goes to the others.
    """
    async with _refusals(capability):
        turn = await client.set_route(capability, weights, by=by, reason=reason, seen=seen)
    await _say(client, printer, turn)


@click.command()
@click.argument("capability")
@by_option
@_REASON
@_SEEN
@on_live_bus
async def rm(client: Client, printer: Printer, capability: str, by: str, reason: str, seen: int | None) -> None:
    """Let a capability's work be for anybody who has it. What waits for some versions is then, too."""
    async with _refusals(capability):
        turn = await client.remove_route(capability, by=by, reason=reason, seen=seen)
    await _say(client, printer, turn)


@click.command()
@on_bus
async def ls(client: Client, printer: Printer) -> None:
    """List the routes that stand."""
    from bus.clock import utc_now

    found = await client.routes()
    if printer.as_json:
        for turn in found:
            printer.record(turn)
    elif found:
        now = utc_now()
        rows = [[each.capability, _parts(each), *_facts(each, now)] for each in found]
        printer.table(["CAPABILITY", "SHARES", "REVISION", "SINCE", "BY", "REASON"], rows)
    else:
        printer.hint("no routes: all work is for anybody who has its capability")


@click.command()
@click.argument("capability")
@on_bus
async def show(client: Client, printer: Printer, capability: str) -> None:
    """Show a route, what came of each arm's work, and how it was before.

    The figures count all attempts in the log, whichever revision gave them.
    """
    from bus.clock import utc_now
    from projections.catchup import build
    from projections.projection import MEMORY
    from projections.traffic import TRAFFIC, by_arm

    async with _refusals(capability):
        newest = await client.route(capability)
    live = await _live(client, capability)
    view = await build(client, TRAFFIC)
    arms = by_arm((row for key, row in view.rows.items() if not key.startswith(MEMORY)), capability)
    turns = [each async for each in client.turns(capability)]
    if printer.as_json:
        printer.record({"route": newest, "live": live, "arms": arms, "turns": turns})
        return
    now = utc_now()
    shares = {each.versions: each.weight for each in newest.route.shares} if newest.route is not None else {}
    rows = [_row(newest, each, live, arms) for each in [*shares, *(each for each in arms if each not in shares)]]
    printer.table(["VERSIONS", "WEIGHT", "PART", "LIVE", "TAKEN", "FAILED", "MEDIAN", "P95", "QUEUED"], rows)
    printer.line()
    before = [[_parts(each), *_facts(each, now)] for each in turns[:_HISTORY]]
    printer.table(["SHARES", "REVISION", "SINCE", "BY", "REASON"], before)
    if len(turns) > _HISTORY:
        printer.hint(f"{len(turns) - _HISTORY} older revisions: phasebus route show {capability} --json")


def _row(newest: Turn, versions: str, live: Counter[str], arms: dict[str, Traffic]) -> list[str]:
    from console.text import duration

    route, got = newest.route, arms.get(versions)
    weight = next((each.weight for each in route.shares if each.versions == versions), None) if route else None
    taken = failed = median = p95 = queued = ""
    if got is not None:
        taken, failed = f"{got.taken:,}", f"{got.failed:,}"
        spans = (got.worked.percentile(0.5), got.worked.percentile(0.95), got.queued.percentile(0.5))
        median, p95, queued = (duration(each) if each is not None else "" for each in spans)
    return [
        versions or "(no route)",
        f"{weight:g}" if weight is not None else "",
        f"{route.part(versions):.1%}" if route is not None and weight is not None else "",
        str(live[versions]) if weight is not None else "",
        taken,
        failed,
        median,
        p95,
        queued,
    ]


async def _live(client: Client, capability: str) -> Counter[str]:
    """How many live instances each arm of a route has."""
    from collections import Counter

    there = [each for each in await client.agents(capability) if each.status == "live"]
    found = (client.signposts.arms(capability, each.version) for each in there)
    return Counter(each for each in found if each is not None)


async def _say(client: Client, printer: Printer, turn: Turn) -> None:
    if printer.as_json:
        printer.record(turn)
    else:
        printer.line(f"{turn.capability}: {_parts(turn)} (revision {turn.revision})")
    if turn.route is not None:
        live = await _live(client, turn.capability)
        for each in turn.route.shares:
            if each.weight > 0 and not live[each.versions]:
                printer.hint(f"no live instance of {each.versions}: until there is one, its part goes to the others")


def _parts(turn: Turn) -> str:
    from console.text import escaped

    if turn.route is None:
        return "anybody"
    return escaped(", ".join(f"{each.versions} {turn.route.part(each.versions):.1%}" for each in turn.route.shares))


def _facts(turn: Turn, now: datetime) -> list[str]:
    from console.text import ago, escaped, shortened

    return [str(turn.revision), ago(turn.at, now), escaped(turn.by), shortened(turn.reason, _REASON_CHARACTERS)]


@asynccontextmanager
async def _refusals(capability: str) -> AsyncIterator[None]:
    from bus.errors import InvalidName, NotFound, Refused, SettingsError

    try:
        yield
    except NotFound as error:
        raise Failure(NOT_FOUND, str(error), "phasebus route ls") from None
    except Refused as error:
        raise Failure(REFUSED, str(error), f"phasebus route show {capability}") from None
    except (SettingsError, InvalidName) as error:
        raise Failure(USAGE, str(error), "phasebus route set --help") from None
