"""Copying: records of the log into segments, and the comparison of what was written with what the log has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path

from bus.errors import BusError
from bus.log import lines
from bus.log.lines import Line
from bus.log.record import Record
from bus.log.segment import PAGE_BYTES, SEGMENT_BYTES, Segment, SegmentWriter, check, line_of, read_segment

_Records = AsyncGenerator[Record, None]


async def write(folder: Path, number: int, records: _Records, wrote: Callable[[int], None]) -> list[Segment]:
    """Segments from that number on, each on the disk. `wrote` is told how far it is: up to which position.

    Until an index names them they mean nothing.
    """
    segments: list[Segment] = []
    writer: SegmentWriter | None = None
    try:
        async for page in _pages(records):
            writer = writer or SegmentWriter(folder, number + len(segments))
            await asyncio.to_thread(writer.add, page)
            if writer.lines_bytes >= SEGMENT_BYTES:
                segments.append(await asyncio.to_thread(writer.finish))
                writer = None
            wrote(page[-1][0].position)
        if writer is not None:
            segments.append(await asyncio.to_thread(writer.finish))
            writer = None
    finally:
        if writer is not None:
            writer.abandon()
    return segments


async def compare(folder: Path, segments: Sequence[Segment], records: _Records, did: Callable[[int], None]) -> None:
    """Read segments back from the disk: they have to hold exactly these records, in order, byte for byte.

    Raises ArchiveDamaged, and BusError for what is not as the log has it.
    """
    async with aclosing(records):
        for segment in segments:
            await asyncio.to_thread(check, folder, segment)
            for line in read_segment(folder, segment):
                record = await anext(records, None)
                if record is None or _facts(line) != _facts(line_of(record)):
                    raise _differs(folder / segment.file, line.position)
            did(segment.last)
        if (record := await anext(records, None)) is not None:
            raise _differs(folder, record.position)


async def _pages(records: _Records) -> AsyncGenerator[list[tuple[Line, bytes]], None]:
    """Lines with their bytes, about a page of them at a time."""
    page: list[tuple[Line, bytes]] = []
    size = 0
    async with aclosing(records):
        async for record in records:
            line = line_of(record)
            text = lines.write(line)
            if page and size + len(text) > PAGE_BYTES:
                yield page
                page, size = [], 0
            page.append((line, text))
            size += len(text)
    if page:
        yield page


def _facts(line: Line) -> tuple[object, ...]:
    return line.position, line.subject, line.at, line.headers, line.content


def _differs(path: Path, position: int) -> BusError:
    return BusError(f"{path} has position {position} otherwise than the log: nothing was taken out, repeat the command")
