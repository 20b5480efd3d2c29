"""Serving: who keeps rows on a shelf says when they change, and answers what has changed since a mark.

Rows come as answers only, read from the shelf by position. So whoever missed that there was a change, or comes back
after an hour, asks once and has everything; nothing is remembered of anybody here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import msgspec
import structlog

from bus.broker.connection import Message, Subscription
from bus.client import Client
from bus.errors import BusError, InvalidName, Unavailable
from bus.format.subjects import name
from bus.history.rows import Mark, RowsAsked, RowsChanged, RowsPage
from projections.projection import Projection
from projections.runner import log_of
from projections.shelf import Build, Shelf

logger = structlog.get_logger(__name__)

_GROUP = "runners"
_PAGE_ROWS = 500
_PAGE_BYTES = 256 * 1024
# A row and what is around it in a message of a megabyte.
_ROW_BYTES = 1_000_000
_WAITING = 10_000
_ASKED_BYTES = 4_096
_ELSEWHERE = 100
# Whoever has it looks it up; nobody says that he does not.
_ELSEWHERE_S = 0.5

_asked = msgspec.json.Decoder(RowsAsked)


@asynccontextmanager
async def serving(client: Client, shelf: Shelf, projections: Iterable[Projection[Any]]) -> AsyncIterator[Serving]:
    """Answer for these projections, as the shelf has them, while the block runs."""
    log, _ = await log_of(client)
    found = Serving(client, shelf, log)
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        for each in projections:
            if not _is_token(each.name):
                logger.warning("not served", projection=each.name, reason="its name can't be part of a subject")
                continue
            for subscription in found.listen(each.name):
                stack.callback(subscription.unsubscribe)
        answering = tasks.create_task(found.answer())
        try:
            yield found
        finally:
            answering.cancel()


class Serving:
    """What is asked here is answered in one thread; who asks the same at the same moment gets the same answer."""

    def __init__(self, client: Client, shelf: Shelf, log: str) -> None:
        self._client = client
        self._connection = client.connection
        self._shelf = shelf
        self._log = log
        self._asked: dict[tuple[str, bool, bytes], list[str]] = {}
        self._waiting = self._elsewhere = 0
        self._woken = asyncio.Event()

    def changed(self, build: Build, position: int) -> None:
        """Tell whoever listens. Nobody has to hear it."""
        if _is_token(build.projection):
            told = msgspec.json.encode(RowsChanged(build.id, position))
            with suppress(Unavailable):
                self._connection.publish(self._client.subjects.changed(build.projection), told)

    def listen(self, projection: str) -> list[Subscription]:
        """One of all who keep a projection is asked; or, by one of the others, one who keeps the build it is about."""
        subjects = self._client.subjects
        anybody = self._connection.subscribe(
            subjects.rows(projection), lambda message: self._take(message, projection, is_last=False), queue=_GROUP
        )
        exactly = self._connection.subscribe(
            f"{subjects.rows(projection)}.*",
            lambda message: self._take(message, projection, is_last=True),
        )
        return [anybody, exactly]

    async def answer(self) -> None:
        """Answer until cancelled."""
        async with asyncio.TaskGroup() as elsewhere:
            while True:
                await self._woken.wait()
                self._woken.clear()
                asked, self._asked, self._waiting = self._asked, {}, 0
                for (projection, is_last, body), replies in asked.items():
                    page = await asyncio.to_thread(self._page, projection, body, is_last=is_last)
                    if page is not None:
                        self._reply(replies, page)
                    elif not is_last and self._elsewhere < _ELSEWHERE:
                        self._elsewhere += 1
                        elsewhere.create_task(self._ask_elsewhere(projection, body, replies))

    def _take(self, message: Message, projection: str, *, is_last: bool) -> None:
        if not message.reply:
            return
        if len(message.data) > _ASKED_BYTES:
            self._reply([message.reply], _problem(Mark(), f"a question has {_ASKED_BYTES} bytes at most"))
            return
        if self._waiting >= _WAITING:
            # Whoever asked asks again.
            logger.warning("too many ask at once", projection=projection, waiting=self._waiting)
            return
        self._waiting += 1
        self._asked.setdefault((projection, is_last, message.data), []).append(message.reply)
        self._woken.set()

    async def _ask_elsewhere(self, projection: str, body: bytes, replies: list[str]) -> None:
        """Another runner may keep the build on another shelf; if nobody does, it is gone, and all begins afresh."""
        asked = _asked.decode(body)
        try:
            subject = self._client.subjects.rows(projection, asked.mark.build)
            page = (await self._connection.request(subject, body, timeout_s=_ELSEWHERE_S)).data
        except BusError:
            afresh = msgspec.json.encode(msgspec.structs.replace(asked, mark=Mark()))
            found = await asyncio.to_thread(self._page, projection, afresh, is_last=False)
            assert found is not None, "whoever has nothing is answered by anybody"
            page = found
        finally:
            self._elsewhere -= 1
        self._reply(replies, page)

    def _reply(self, replies: Iterable[str], page: bytes) -> None:
        for reply in replies:
            try:
                self._connection.publish(reply, page)
            except BusError as error:
                logger.warning("not answered", reason=str(error))

    def _page(self, projection: str, body: bytes, *, is_last: bool) -> bytes | None:
        """The answer, from a thread; None if it is about a build that is not here."""
        try:
            asked = _asked.decode(body or b"{}")
        except msgspec.MsgspecError as error:
            return _problem(Mark(), f"this is no {RowsAsked.__name__}: {error}")
        try:
            build = self._served(projection)
            if asked.mark.build and (build is None or build.id != asked.mark.build):
                return None
            if build is None:
                return _problem(asked.mark, f"projection {projection!r} is being built")
            return msgspec.json.encode(self._changes(build, asked))
        except BusError as error:
            logger.warning("not answered", projection=projection, reason=str(error))
            return _problem(asked.mark, str(error))

    def _served(self, projection: str) -> Build | None:
        for build in self._shelf.builds():
            if (build.projection, build.log, build.is_served) == (projection, self._log, True):
                return build
        return None

    def _changes(self, build: Build, asked: RowsAsked) -> RowsPage:
        since = asked.mark
        position, found = self._shelf.changed(
            build.id, since.position, since.key, glances=asked.glances, limit=_PAGE_ROWS
        )
        if since.position > position:
            # The shelf was put back to what it was before; it is not known what of the mark is still so.
            since = Mark(build.id)
            position, found = self._shelf.changed(build.id, 0, None, glances=asked.glances, limit=_PAGE_ROWS)
        rows: dict[str, msgspec.Raw] = {}
        omitted: dict[str, int] = {}
        size_bytes = taken = 0
        for key, _, text in found:
            row = (text or "null").encode()
            if len(row) > _ROW_BYTES:
                omitted[key] = len(row)
            elif size_bytes + len(row) > _PAGE_BYTES and taken:
                break
            else:
                rows[key] = msgspec.Raw(row)
                size_bytes += len(row)
            taken += 1
        more = taken < len(found) or len(found) == _PAGE_ROWS
        mark = Mark(build.id, found[taken - 1][1], found[taken - 1][0]) if more else Mark(build.id, position)
        return RowsPage(rows, mark, afresh=not since.build or not since.position, more=more, omitted=omitted)


def _problem(mark: Mark, problem: str) -> bytes:
    return msgspec.json.encode(RowsPage({}, mark, problem=problem))


def _is_token(projection: str) -> bool:
    try:
        name(projection, "projection")
    except InvalidName:
        return False
    return True
