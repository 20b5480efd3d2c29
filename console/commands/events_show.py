"""`phasebus events cat` and `events tail`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from console.failure import OK, USAGE, Failure
from console.selecting import choosing
from console.session import on_bus

if TYPE_CHECKING:
    from bus.client import Client
    from bus.history.happening import Happening
    from console.printer import Printer

_NOTHING = "no such events"


@click.command()
@choosing(reversible=True)
@on_bus
async def cat(client: Client, printer: Printer, **chosen: Any) -> None:
    """Print events of the log, in order.

    Without options, all there are. Options can be combined, and then all of them have to hold; where one can be given
    several times, any of its values will do.
    """
    from contextlib import aclosing

    from console.lookup import say_if_archived
    from console.selecting import selection

    is_empty = True
    async with aclosing(client.events(await selection(client, chosen))) as found:
        async for each in found:
            is_empty = False
            _show(printer, each)
    if is_empty:
        printer.hint(_NOTHING)
        await say_if_archived(client, printer)


@click.command()
@click.option("-n", "count", type=click.IntRange(0), default=10, show_default=True, help="So many of the newest.")
@click.option("-f", "--follow", "is_followed", is_flag=True, help="Go on with what is to come, until Ctrl-C.")
@choosing(limited=False)
@on_bus
async def tail(client: Client, printer: Printer, count: int, is_followed: bool, **chosen: Any) -> int:
    """Print the newest events, and with --follow those to come."""
    import asyncio
    from contextlib import aclosing

    from msgspec.structs import replace

    from console.selecting import selection

    wanted = await selection(client, chosen)
    if is_followed and (wanted.upto is not None or wanted.until is not None):
        raise Failure(USAGE, "to follow has no end: leave out --upto and --until")
    newest = await client.log.last(f"{client.subjects.namespace}.>")
    upto = newest.position if newest is not None else 0
    if count:
        bound = upto if wanted.upto is None else min(upto, wanted.upto)
        last = replace(wanted, upto=bound, limit=count, backwards=True)
        newest_first = [each async for each in client.events(last)]
        for each in reversed(newest_first):
            _show(printer, each)
        if not newest_first and not is_followed:
            printer.hint(_NOTHING)
    if is_followed:
        try:
            follow = replace(wanted, after=max(upto, wanted.after))
            async with aclosing(client.events(follow, follow=True)) as found:
                async for each in found:
                    _show(printer, each)
        except asyncio.CancelledError:
            # Ctrl-C is how one stops looking; nothing has been interrupted.
            task = asyncio.current_task()
            assert task is not None, "commands run in tasks"
            task.uncancel()
    return OK


def _show(printer: Printer, each: Happening) -> None:
    from console.text import escaped

    if printer.as_json:
        printer.record(as_record(each))
        return
    from console.story import told

    time = f"{each.at:%Y-%m-%d %H:%M:%S}.{each.at.microsecond // 1000:03}"
    # A version is for programs; the subject's namespace is the same on every line.
    what = escaped(each.type).rpartition(".v")[0] or each.type
    where = escaped(each.subject.partition(".")[2])
    printer.line(f"{f'{each.position}.{each.index}':>8}  {time}  {what:<20}  {where:<20}  {told(each)}".rstrip())


def as_record(each: Happening) -> dict[str, Any]:
    """For a program: whatever there is of it."""
    from bus.rules.events import UnknownEvent
    from console.text import utf8

    message = each.message
    found: dict[str, Any] = {
        "position": each.position,
        "index": each.index,
        "subject": utf8(each.subject),
        "type": each.type,
        "at": each.at,
        "stored_at": each.stored_at,
        "run": each.run and utf8(each.run),
        "phase": each.phase,
        "item": each.item,
    }
    if message is not None:
        found |= {"id": message.id, "source": message.source}
        found |= {"correlation": message.correlationid, "causation": message.causationid}
    if each.event is not None:
        found["event"] = each.event.raw if isinstance(each.event, UnknownEvent) else each.event
    elif message is not None:
        found["data"] = message.data
    if each.problem:
        found["problem"] = each.problem
    return {name: value for name, value in found.items() if value is not None}
