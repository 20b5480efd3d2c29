"""Reading the log: pages of bounded memory by batched direct get, in order or backwards, and following what comes.

A page is asked for while the one before is being looked at. Reads leave nothing behind on the server.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import msgspec
import structlog

from bus.broker.connection import Connection, Message, check_filter
from bus.broker.patience import patiently
from bus.errors import BusError, Forbidden, MalformedMessage, NoResponders, NotFound, Unavailable
from bus.format.payload import is_inline
from bus.format.subjects import live_copy, pattern
from bus.log.jetstream import newest
from bus.log.record import Live, Record, is_end, is_record, read_record

if TYPE_CHECKING:
    from bus.log.archive import Archive

logger = structlog.get_logger(__name__)

_END_OF_BATCH = 204
_NOT_FOUND = 404
_PAGE = 1_000
_FIRST_PAGE = 250
_PAGE_BYTES = 4 * 2**20
_PAUSE_S = 0.05
_SOON_S = 1.0
# A live copy that is lost on its way is noticed by the next on its subject; if none follows, by looking after this.
_IDLE_S = 5.0
# How often it is looked for what a live copy or the leader has told of, and whoever answers does not have yet.
_LOOKS = 100
# The server finds the next message of any subject three times faster than of some; reading what is not wanted costs.
_WIDE_FROM, _NARROW_BELOW = 0.5, 0.25
_EVERYTHING = ">"


Unpack = Callable[[bytes], Awaitable[bytes]]
Said = TypeVar("Said")


class Reader:
    """Reads one stream over one connection. It owns nothing that has to be closed.

    One answer is waited for `timeout_s`; it is asked again for `patience_s`, which is as long unless told.

    With `unpack`, what was packed is unpacked just before it is handed out: a page of references is small, what they
    refer to need not be. With an `archive`, what was taken out of the stream is read as if it were still there. Where
    there are `replicas`, one that is behind may answer: what their leader had when a read began is waited for.
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        *,
        timeout_s: float,
        patience_s: float | None = None,
        replicas: int = 1,
        unpack: Unpack | None = None,
        archive: Archive | None = None,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._timeout_s = timeout_s
        self._patience_s = timeout_s if patience_s is None else patience_s
        self._replicas = replicas
        # An auditor may not ask there.
        self._is_kept_from_leader = False
        self._unpack = unpack
        self._archive = archive
        self._direct_get = f"$JS.API.DIRECT.GET.{stream}"

    async def read(self, *subjects: str, after: int = 0, upto: int | None = None) -> AsyncGenerator[Record, None]:
        async with aclosing(self._packed(*subjects, after=after, upto=upto)) as records:
            async for record in records:
                yield record if is_inline(record.body) else await self._unpacked(record)

    async def read_back(self, *subjects: str, before: int | None = None) -> AsyncGenerator[Record, None]:
        """Windows are read forwards, the newest first, and their ends kept; an empty one makes the next one wider."""
        if before is None:
            newest = await self._last(_EVERYTHING)
            before = newest.position + 1 if newest is not None else 1
        width = _FIRST_PAGE
        while before > 1:
            begin = max(0, before - 1 - width)
            window: deque[Record] = deque()
            size_bytes, is_cut = 0, False
            async with aclosing(self._packed(*subjects, after=begin, upto=before - 1)) as records:
                async for record in records:
                    window.append(record)
                    size_bytes += len(record.body)
                    while len(window) > _PAGE or (size_bytes > _PAGE_BYTES and len(window) > 1):
                        size_bytes -= len(window.popleft().body)
                        is_cut = True
            for record in reversed(window):
                yield await self._unpacked(record)
            if is_cut:
                # What did not fit stands in front of it; the next is about as wide as what did.
                before, width = window[0].position, before - window[0].position
            else:
                before = begin + 1
                is_small = len(window) < _PAGE // 8 and size_bytes < _PAGE_BYTES // 8
                width = width * 8 if is_small else max(_FIRST_PAGE, width // 2)

    async def first(self, subject: str) -> Record | None:
        return await self._one({"seq": 1, "next_by_subj": subject})

    async def last(self, subject: str) -> Record | None:
        record = await self._last(subject)
        return await self._unpacked(record) if record is not None else None

    async def at(self, position: int) -> Record | None:
        record = await self._one({"seq": position})
        # Only then: what is archived leaves the log after the archive has it.
        return await self._archive.at(position) if record is None and self._archive is not None else record

    async def position_at(self, instant: datetime) -> int:
        record = await self._get({"start_time": instant.isoformat(), "next_by_subj": _EVERYTHING})
        later = [record.position] if record is not None else []
        if self._archive is not None and (archived := await self._archive.position_at(instant)) is not None:
            later.append(archived)
        if later:
            return min(later) - 1
        newest = await self._last(_EVERYTHING)
        return newest.position if newest is not None else 0

    async def follow(self, *subjects: str, after: int = 0) -> AsyncGenerator[Record, None]:
        live = Live(self._connection, [live_copy(subject) for subject in subjects])
        due = looks = 0
        try:
            while True:
                due = max(due, live.caught_up())
                try:
                    async with aclosing(self._packed(*subjects, after=after)) as stored:
                        async for record in stored:
                            yield await self._unpacked(record)
                            after = record.position
                    if after < due and looks < _LOOKS:
                        # A replica answered that is behind; or it has left the log since, then looking has an end.
                        looks += 1
                        await asyncio.sleep(_PAUSE_S)
                        continue
                    due = looks = 0
                    async with aclosing(live.records(after, idle_s=_IDLE_S)) as arriving:
                        async for record in arriving:
                            yield await self._unpacked(record)
                            after = record.position
                except (Unavailable, NoResponders):
                    if self._connection.is_closed:
                        raise
                    await asyncio.sleep(_PAUSE_S)
        finally:
            live.close()

    def _packed(self, *subjects: str, after: int = 0, upto: int | None = None) -> AsyncGenerator[Record, None]:
        for subject in subjects:
            # The server takes what is empty for everything, and finds nothing on what can't be a subject.
            check_filter(subject)
        if self._archive is None:
            return self._stored(subjects, after, upto)
        return self._with_archived(self._archive, subjects, after, upto)

    async def _with_archived(
        self, archive: Archive, subjects: Sequence[str], after: int, upto: int | None
    ) -> AsyncGenerator[Record, None]:
        """What the archive and the server have, as one."""
        while True:
            edition = archive.edition()
            sources = [archive.read(*subjects, after=after, upto=upto), self._stored(subjects, after, upto)]
            async with aclosing(merged(sources)) as records:
                async for record in records:
                    # What is archived leaves the log only after the index has it: a page from which something may be
                    # missing comes with a changed index.
                    if archive.edition() is not edition:
                        break
                    yield record
                    after = record.position
            if archive.edition() is edition:
                return

    async def _stored(self, subjects: Sequence[str], after: int, upto: int | None) -> AsyncGenerator[Record, None]:
        """What the server has."""
        if len(subjects) > 1:
            # One is read after the other: of what is stored meanwhile, one would tell what another has missed.
            newest = await self._last(_EVERYTHING)
            there = newest.position if newest is not None else 0
            upto = there if upto is None else min(upto, there)
            if upto <= after:
                return
        if len(subjects) > 1 and self._is_kept_from_leader:
            # One replica may be ahead of another, and nobody says so: what one request reads has no gap.
            shapes = [pattern(subject) for subject in subjects]
            async with aclosing(self._scan(_EVERYTHING, after, upto)) as everything:
                async for record in everything:
                    if any(shape.fullmatch(record.subject) for shape in shapes):
                        yield record
            return
        scans = [self._scan(subject, after, upto) for subject in subjects]
        async with aclosing(scans[0] if len(scans) == 1 else merged(scans)) as records:
            async for record in records:
                yield record

    async def _last(self, subject: str) -> Record | None:
        least, looks = await self._newest_at_leader(subject), 0
        while True:
            record = await self._get({"last_by_subj": subject})
            if looks == _LOOKS or (record.position if record is not None else 0) >= least:
                break
            looks += 1
            await asyncio.sleep(_PAUSE_S)
        if self._archive is None:
            return record
        return await self._archive.last(subject, after=record.position if record is not None else 0) or record

    async def _unpacked(self, record: Record) -> Record:
        """Its data inline. What can't be had is malformed for whoever looks inside, and no reason to stop reading."""
        if self._unpack is None or is_inline(record.body):
            return record
        try:
            return msgspec.structs.replace(record, body=await self._unpack(record.body))
        except MalformedMessage as error:
            logger.error("payload lost", position=record.position, subject=record.subject, error=str(error))  # noqa: TRY400
            return record

    async def _scan(self, subject: str, after: int, upto: int | None) -> AsyncGenerator[Record, None]:
        """What one filter matches, a page at a time."""
        least, looks = await self._newest_at_leader(subject), 0
        if upto is not None:
            least = min(least, upto)
        page = await self._page(subject, subject, after, _FIRST_PAGE)
        while True:
            coming: asyncio.Task[_Page] | None = None
            if page.more and (upto is None or page.upto < upto):
                coming = asyncio.create_task(self._page(subject, page.next_filter, page.upto, _PAGE))
            try:
                for record in page.records:
                    if upto is not None and record.position > upto:
                        return
                    yield record
                if coming is None:
                    if page.upto >= least or looks == _LOOKS:
                        return
                    looks += 1
                    await asyncio.sleep(_PAUSE_S)
                    coming = asyncio.create_task(self._page(subject, page.next_filter, page.upto, _PAGE))
                page = await coming
            finally:
                if coming is not None:
                    coming.cancel()
                    coming.add_done_callback(_forget)

    async def _page(self, subject: str, asked: str, after: int, size: int) -> _Page:
        """A page of what `subject` matches, of what the server finds with filter `asked`."""
        request = {"seq": after + 1, "next_by_subj": asked, "batch": size, "max_bytes": _PAGE_BYTES}
        body = msgspec.json.encode(request)
        # Who had it may have ended: the first time it is given up soon.
        waits = iter([min(_SOON_S, self._timeout_s)])
        *messages, end = await self._asked(
            lambda: self._connection.request_page(
                self._direct_get, body, is_end=is_end, timeout_s=next(waits, self._timeout_s)
            )
        )
        if end.status == _NOT_FOUND:
            return _Page([], after, False, asked)
        if end.status != _END_OF_BATCH:
            raise BusError(f"reading {subject!r}: the server answered {end.status}: {end.headers}")
        records = _readable(messages)
        if asked != subject:
            fits = pattern(subject).fullmatch
            records = [record for record in records if fits(record.subject)]
        upto = int(end.stamp(b"Nats-Last-Sequence") or after)
        share = len(records) / max(1, upto - after)
        next_filter = _EVERYTHING if share >= _WIDE_FROM else subject if share < _NARROW_BELOW else asked
        return _Page(records, upto, end.stamp(b"Nats-Num-Pending") not in {None, b"0"}, next_filter)

    async def _newest_at_leader(self, subject: str) -> int:
        """The position of the newest on a subject, if anybody can be behind whoever leads; 0: there is none, or who
        asks may not know."""
        if self._replicas == 1 or self._is_kept_from_leader:
            return 0
        try:
            found = await self._asked(partial(newest, self._connection, self._stream, subject, self._timeout_s))
        except Forbidden:
            self._is_kept_from_leader = True
            return 0
        return found[0] if found is not None else 0

    async def _one(self, request: dict[str, object]) -> Record | None:
        record = await self._get(request)
        return await self._unpacked(record) if record is not None else None

    async def _get(self, request: dict[str, object]) -> Record | None:
        body = msgspec.json.encode(request)
        message = await self._asked(
            partial(self._connection.inquire, self._direct_get, body, timeout_s=self._timeout_s)
        )
        if is_record(message):
            return read_record(message)
        if message.status != _NOT_FOUND:
            raise BusError(f"reading {self._stream}: the server answered {message.status}: {message.headers}")
        return None

    async def _asked(self, ask: Callable[[], Awaitable[Said]]) -> Said:
        """What comes to a question. Raises Unavailable."""
        # Where nobody listens nothing is; if there are replicas, they may be about to.
        passing = (Unavailable, NoResponders) if self._replicas > 1 else (Unavailable,)
        try:
            return await patiently(self._connection, ask, self._patience_s, passing=passing)
        except (NoResponders, NotFound):
            raise Unavailable(
                f"stream {self._stream!r} does not answer: it is not there, or its servers are away"
            ) from None
        except Unavailable as error:
            raise Unavailable(f"stream {self._stream!r} can't be read, and was asked again: {error}") from error


class _Page(msgspec.Struct, frozen=True):
    """Some records, the position up to which they are complete, whether there is more, and how to ask for it."""

    records: list[Record]
    upto: int
    more: bool
    next_filter: str


async def merged(sources: Sequence[AsyncIterator[Record]]) -> AsyncGenerator[Record, None]:
    """Records of several sources, each in order, as one in order; what stands in more than one comes once."""
    async with AsyncExitStack() as stack:
        waiting: list[tuple[int, int, Record]] = []
        for number, source in enumerate(sources):
            if isinstance(source, AsyncGenerator):
                stack.push_async_callback(source.aclose)
            if (record := await anext(source, None)) is not None:
                waiting.append((record.position, number, record))
        heapq.heapify(waiting)
        position = 0
        while waiting:
            _, number, record = waiting[0]
            if record.position > position:
                yield record
                position = record.position
            if (following := await anext(sources[number], None)) is not None:
                heapq.heapreplace(waiting, (following.position, number, following))
            else:
                heapq.heappop(waiting)


def _forget(task: asyncio.Task[_Page]) -> None:
    """Nobody wants the page any more, nor to hear why it did not come."""
    if not task.cancelled():
        task.exception()


def _readable(messages: Sequence[Message]) -> list[Record]:
    try:
        return [read_record(message) for message in messages]
    except MalformedMessage:
        pass
    records = []
    for message in messages:
        try:
            records.append(read_record(message))
        except MalformedMessage as error:
            # Nobody can say where it stands; the page's end says where to go on.
            logger.warning("unreadable record", error=str(error), size_bytes=len(message.data))
    return records
