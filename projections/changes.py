"""Changes: a projection's rows as they are, and then each that becomes another, for whoever shows or checks them.

Two sources, one form. `kept` asks a runner for what has changed since a mark, so it begins at once however long the log
is, and a login that may only read is enough. `folded` needs nobody: it folds the log itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, MutableMapping
from contextlib import aclosing
from typing import Any, Generic

import msgspec
import structlog

from bus.broker.connection import Connection
from bus.client import Client
from bus.errors import BusError, NoResponders, NotFound, Unavailable
from bus.history.rows import Mark, RowsAsked, RowsPage
from projections.catchup import build, follow
from projections.projection import MEMORY, Projection, R, View
from projections.shelf import decoder

logger = structlog.get_logger(__name__)

# That something has changed is told without a guarantee: after this it is asked anyway.
_IDLE_S = 5.0
_PAUSE_S = 0.2

_page = msgspec.json.Decoder(RowsPage)


class Changed(msgspec.Struct, Generic[R], frozen=True, kw_only=True):
    """Rows that are not as they were, by key; None: it is gone.

    With `afresh`, what you had before counts for nothing. With `more`, others follow at once; without it, you have the
    rows as of `position` of the log. `mark` is what to go on from another time. `omitted`: rows too large to be sent,
    with their size in bytes: you have no such row; ask for glances, or use `phasebus projection query`.
    """

    rows: Mapping[str, R | None]
    position: int
    mark: Mark
    afresh: bool = False
    more: bool = False
    omitted: Mapping[str, int] = {}

    def apply(self, rows: MutableMapping[str, R]) -> None:
        """Make of the rows you have those that are."""
        if self.afresh:
            rows.clear()
        for key in self.omitted:
            rows.pop(key, None)
        for key, row in self.rows.items():
            if row is None:
                rows.pop(key, None)
            else:
                rows[key] = row


async def kept(
    client: Client, projection: Projection[R], *, since: Mark | None = None
) -> AsyncGenerator[Changed[R], None]:
    """The rows a runner keeps, all of them or what has changed since a mark, and then each change; for ever.

    What changes several times while you are busy comes once, as it is then. A runner or server that is away is waited
    for. Raises NotFound if nobody keeps the projection at the start (`phasebus projection run` does), Unavailable.
    Close it (`contextlib.aclosing`) if you leave it early.
    """
    async with aclosing(_kept(client, projection.name, decoder(projection), since, glances=False)) as changes:
        async for change in changes:
            yield change


async def glances(
    client: Client, projection: Projection[Any], kind: type[R], *, since: Mark | None = None
) -> AsyncGenerator[Changed[R], None]:
    """The same, of each row only what a list shows; `kind` is its type."""
    decode = msgspec.json.Decoder(kind).decode
    async with aclosing(_kept(client, projection.name, lambda _, text: decode(text), since, glances=True)) as changes:
        async for change in changes:
            yield change


async def folded(client: Client, projection: Projection[R], *, after: int = 0) -> AsyncGenerator[Changed[R], None]:
    """The rows, folded here from the whole log; or what has changed in them since a position; then each change.

    Raises Unavailable if the log can't be read at the start.
    """
    before: View[R] = await build(client, projection, upto=after) if after else View()
    async with aclosing(follow(client, projection)) as views:
        async for view in views:
            rows: dict[str, R | None] = {
                key: row for key, row in view.rows.items() if _differs(before.rows.get(key), row)
            }
            rows |= {key: None for key in before.rows if key not in view.rows}
            shown = {key: row for key, row in rows.items() if not key.startswith(MEMORY)}
            if shown or not before.position:
                mark = Mark(position=view.position)
                yield Changed(rows=shown, position=view.position, mark=mark, afresh=not before.position)
            before = view


async def _kept(
    client: Client, name: str, decode: Callable[[str, str], R], since: Mark | None, *, glances: bool
) -> AsyncGenerator[Changed[R], None]:
    connection, subjects = client.connection, client.subjects
    woken = asyncio.Event()
    told = connection.subscribe(subjects.changed(name), lambda _: woken.set())
    forget = connection.on_reconnect(woken.set)
    mark, is_first = since or Mark(), True
    try:
        while True:
            # Before asking: what changes from here on may not be in the answer.
            woken.clear()
            page = await _ask(client, name, RowsAsked(mark, glances), insist=not is_first)
            mark = page.mark
            if page.rows or page.omitted or page.afresh or is_first:
                yield Changed(
                    rows={key: _row(decode, key, row) for key, row in page.rows.items()},
                    position=mark.position,
                    mark=mark,
                    afresh=page.afresh,
                    more=page.more,
                    omitted=page.omitted,
                )
            is_first = False
            if not page.more:
                await _until(woken, connection)
    finally:
        told.unsubscribe()
        forget()


def _differs(before: object, row: object) -> bool:
    # Most are the same object as before.
    return row is not before and row != before


def _row(decode: Callable[[str, str], R], key: str, row: msgspec.Raw) -> R | None:
    text = bytes(row).decode()
    return None if text == "null" else decode(key, text)


async def _ask(client: Client, name: str, asked: RowsAsked, *, insist: bool) -> RowsPage:
    """With `insist`, until there is an answer. Raises NotFound, Unavailable."""
    body = msgspec.json.encode(asked)
    is_told = False
    while True:
        try:
            timeout_s = client.settings.request_timeout_s
            message = await client.connection.request(client.subjects.rows(name), body, timeout_s=timeout_s)
            page = _page.decode(message.data)
            if not page.problem:
                return page
            problem: BusError = NotFound(page.problem)
        except NoResponders:
            problem = NotFound(f"nobody keeps projection {name!r}: `phasebus projection run` does")
        except Unavailable as error:
            problem = error
        except msgspec.MsgspecError as error:
            problem = Unavailable(f"what keeps projection {name!r} answered what is no page of rows: {error}")
        if not insist or client.connection.is_closed:
            raise problem
        if not is_told:
            logger.info("rows are waited for", projection=name, reason=str(problem))
            is_told = True
        await asyncio.sleep(_PAUSE_S)


async def _until(woken: asyncio.Event, connection: Connection) -> None:
    """Until there is a reason to ask."""
    try:
        async with asyncio.timeout(_IDLE_S):
            await woken.wait()
    except TimeoutError:
        pass
    if connection.is_closed:
        raise Unavailable("the connection is closed")
