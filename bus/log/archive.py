"""An archive: what was taken out of the log, in a folder of files, readable as the log is.

Nothing is believed before its checksum was looked at. Somebody else may archive meanwhile: the index is read again
whenever it has changed, and `edition` tells that it has.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path

import msgspec
import structlog

from bus.errors import ArchiveDamaged, Misconfigured
from bus.format.subjects import pattern
from bus.log.index import FILE, Index, read_index
from bus.log.record import Record
from bus.log.segment import Segment, check, read_page, read_segment, record_of

logger = structlog.get_logger(__name__)

_CACHED_PAGES = 8
# A page is larger only if it is one large record.
_CACHED_PAGE_BYTES = 2**20
_EVERYTHING = ">"

_Stamp = tuple[int, int, int]


class Checked(msgspec.Struct, frozen=True):
    """What `verify` found: a segment, and what is wrong with it (nothing: empty)."""

    segment: Segment
    problem: str = ""


class Archive:
    """The archive in a folder. A folder without one is an empty archive: it may become one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index: Index | None = None
        self._path = folder / FILE
        self._stamp: _Stamp | None = None
        self._trusted: dict[str, _Stamp] = {}
        self._pages: OrderedDict[tuple[str, int], list[Record]] = OrderedDict()

    @classmethod
    async def open(cls, folder: Path) -> Archive:
        """Raises ArchiveDamaged if there is an index that can't be read."""
        archive = cls(folder)
        await asyncio.to_thread(archive.edition)
        if archive.index is None:
            logger.warning("no archive there yet", folder=str(folder))
        return archive

    def edition(self) -> Index | None:
        """The index as it is now: the same object for as long as nothing was archived. Raises ArchiveDamaged."""
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            if stamp is None:
                # A disk that is not mounted is not an archive that holds nothing.
                raise ArchiveDamaged(self._path, "it was there, and is not any more")
            self.index, self._stamp = read_index(self.folder), stamp
        return self.index

    def must_be_of(self, created: str) -> None:
        """Raises Misconfigured if it is the archive of another log than the one whose stream was made then."""
        if self.index is not None and self.index.created != created:
            raise Misconfigured(
                f"the archive in {self.folder} is of a log made at {self.index.created}, this one was made at "
                f"{created}; positions of one mean nothing in the other: correct PHASEBUS_ARCHIVE"
            )

    async def read(self, *subjects: str, after: int = 0, upto: int | None = None) -> AsyncGenerator[Record, None]:
        """What is archived of any of `subjects`, in order, from after `after` up to and including `upto`.

        Signature and promises are those of `Log.read`: memory is bounded by a page of each segment that overlaps.
        Raises ArchiveDamaged.
        """
        index = self.edition()
        parts = [part for each in _segments(index) if (part := _part(each, subjects, after, upto)) is not None]
        parts.sort(key=lambda part: part.first)
        async with AsyncExitStack() as stack:
            coming = deque(parts)
            waiting: list[tuple[int, int, Record, AsyncGenerator[Record, None]]] = []
            while coming or waiting:
                # A segment is opened when its turn comes: hundreds may hold something, few overlap.
                while coming and (not waiting or coming[0].first <= waiting[0][0]):
                    records = self._records(coming.popleft())
                    stack.push_async_callback(records.aclose)
                    await _push(waiting, records)
                if waiting:
                    _, _, record, records = heapq.heappop(waiting)
                    yield record
                    await _push(waiting, records)

    async def at(self, position: int) -> Record | None:
        """The archived message at a position, if there is one. Raises ArchiveDamaged."""
        async for record in self.read(_EVERYTHING, after=position - 1, upto=position):
            return record
        return None

    async def last(self, subject: str, *, after: int = 0) -> Record | None:
        """The newest archived message on `subject` after a position, if there is one. Raises ArchiveDamaged."""
        index = self.edition()
        parts = [part for each in _segments(index) if (part := _part(each, [subject], after, None)) is not None]
        return await self.at(max(part.last for part in parts)) if parts else None

    async def position_at(self, instant: datetime) -> int | None:
        """The position of the first archived message stored at `instant` or later, if there is one."""
        found = [
            position
            for segment in _segments(self.edition())
            if segment.until >= instant and (position := await self._first_since(segment, instant)) is not None
        ]
        return min(found, default=None)

    async def verify(self) -> AsyncGenerator[Checked, None]:
        """Each segment after it has been read from beginning to end and compared with the index."""
        for segment in _segments(self.edition()):
            yield Checked(segment, await asyncio.to_thread(_problem, self.folder, segment))

    async def _records(self, part: _Part) -> AsyncGenerator[Record, None]:
        for number in part.segment.pages_between(part.first, part.last):
            for record in await self._page(part.segment, number):
                if part.first <= record.position <= part.last and (
                    part.subjects is None or record.subject in part.subjects
                ):
                    yield record

    async def _first_since(self, segment: Segment, instant: datetime) -> int | None:
        low, high = 0, len(segment.pages)
        while high - low > 1:
            middle = (low + high) // 2
            if (await self._page(segment, middle))[0].stored_at < instant:
                low = middle
            else:
                high = middle
        for number in range(low, min(high + 1, len(segment.pages))):
            for record in await self._page(segment, number):
                if record.stored_at >= instant:
                    return record.position
        return None

    async def _page(self, segment: Segment, number: int) -> list[Record]:
        key = segment.file, number
        page = self._pages.get(key)
        if page is None:
            page = await asyncio.to_thread(self._load, segment, number)
            if segment.pages[number].lines_bytes <= _CACHED_PAGE_BYTES:
                self._pages[key] = page
            if len(self._pages) > _CACHED_PAGES:
                self._pages.popitem(last=False)
        else:
            self._pages.move_to_end(key)
        return page

    def _load(self, segment: Segment, number: int) -> list[Record]:
        stamp = _stamp(self.folder / segment.file)
        if stamp is None or self._trusted.get(segment.file) != stamp:
            check(self.folder, segment)
            if stamp is not None:
                self._trusted[segment.file] = stamp
        return [record_of(line) for line in read_page(self.folder, segment, number)]


class _Part(msgspec.Struct, frozen=True):
    """What is wanted of a segment: between two positions, and of these subjects (None: of all)."""

    segment: Segment
    first: int
    last: int
    subjects: frozenset[str] | None


def _part(segment: Segment, subjects: Iterable[str], after: int, upto: int | None) -> _Part | None:
    """None if the segment has nothing that is wanted."""
    newest = segment.last if upto is None else min(upto, segment.last)
    if segment.first > newest or segment.last <= after:
        return None
    wanted = _wanted(segment, subjects)
    if wanted is None:
        return _Part(segment, max(after + 1, segment.first), newest, None)
    spans = [segment.subjects[subject] for subject in wanted]
    first = max(after + 1, min((span.first for span in spans), default=newest + 1))
    last = min(newest, max((span.last for span in spans), default=0))
    return _Part(segment, first, last, wanted) if first <= last else None


def _wanted(segment: Segment, subjects: Iterable[str]) -> frozenset[str] | None:
    found: set[str] = set()
    for subject in subjects:
        if subject == _EVERYTHING:
            return None
        if "*" in subject or ">" in subject:
            fits = pattern(subject).fullmatch
            found.update(each for each in segment.subjects if fits(each))
        elif subject in segment.subjects:
            found.add(subject)
    return frozenset(found)


async def _push(
    waiting: list[tuple[int, int, Record, AsyncGenerator[Record, None]]], records: AsyncGenerator[Record, None]
) -> None:
    if (record := await anext(records, None)) is not None:
        heapq.heappush(waiting, (record.position, id(records), record, records))


def _segments(index: Index | None) -> Sequence[Segment]:
    return index.segments if index is not None else ()


def _stamp(path: Path) -> _Stamp | None:
    """What tells that a file was replaced."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _problem(folder: Path, segment: Segment) -> str:
    try:
        check(folder, segment)
        count, position = 0, 0
        for line in read_segment(folder, segment):
            span = segment.subjects.get(line.subject)
            if line.position <= position or span is None or not span.first <= line.position <= span.last:
                return f"position {line.position} does not stand where the index says"
            count, position = count + 1, line.position
    except ArchiveDamaged as error:
        return str(error)
    return "" if count == segment.records else f"it has {count} records, the index says {segment.records}"
