"""A segment of an archive: records as lines in order of position, in pages that are read one at a time.

Each page is a zstd frame of about 256 KiB of lines, and frames may follow one another: `zstd -dc` shows the whole file.
A segment is complete or it does not exist: it gets its name when every byte of it is on the disk.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from bus.errors import ArchiveDamaged, MalformedMessage
from bus.log import lines
from bus.log.lines import Line
from bus.log.record import Record

PAGE_BYTES = 2**18
SEGMENT_BYTES = 64 * 2**20
_CHUNK_BYTES = 2**20
_LEVEL = 6


class Page(msgspec.Struct, frozen=True, array_like=True):
    """Where in the file a page begins, the position of its first record, and how many bytes of lines it is."""

    offset: int
    first: int
    lines_bytes: int


class Span(msgspec.Struct, frozen=True, array_like=True):
    """The first and the last position of a subject in a segment, and how many records it has there."""

    first: int
    last: int
    records: int


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """One file, as the index has it. Positions and times are of its first and its last record."""

    file: str
    sha256: str
    size_bytes: int
    lines_bytes: int
    records: int
    first: int
    last: int
    since: datetime
    until: datetime
    pages: tuple[Page, ...]
    subjects: dict[str, Span]

    def pages_between(self, first: int, last: int) -> range:
        """The numbers of the pages that hold these positions."""
        starts = [page.first for page in self.pages]
        return range(max(0, bisect_right(starts, first) - 1), bisect_right(starts, last))


class SegmentWriter:
    """A segment under way, in a file that has no name in the archive yet."""

    def __init__(self, folder: Path, number: int) -> None:
        self._name = f"{number:08d}.jsonl.zst"
        self._path = folder / self._name
        self._unfinished = folder / f"{self._name}.unfinished"
        self._file = self._unfinished.open("wb")
        self._hash = hashlib.sha256()
        self._pages: list[Page] = []
        self._spans: dict[str, Span] = {}
        self._first: Line | None = None
        self._last: Line | None = None
        self._records = self._size_bytes = self.lines_bytes = 0

    def add(self, page: Sequence[tuple[Line, bytes]]) -> None:
        """A page of lines with their bytes: positions grow."""
        import zstandard  # noqa: PLC0415 - only who has an archive pays for it

        plain = b"".join(text for _, text in page)
        self._pages.append(Page(self._size_bytes, page[0][0].position, len(plain)))
        frame = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(plain)
        self._file.write(frame)
        self._hash.update(frame)
        self._size_bytes += len(frame)
        self.lines_bytes += len(plain)
        self._records += len(page)
        for line, _ in page:
            span = self._spans.get(line.subject)
            first, count = (span.first, span.records) if span is not None else (line.position, 0)
            self._spans[line.subject] = Span(first, line.position, count + 1)
        self._first = self._first or page[0][0]
        self._last = page[-1][0]

    def finish(self) -> Segment:
        """Everything is on the disk, under its name, when this returns."""
        assert self._first is not None and self._last is not None, "a segment has a page"
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._unfinished.replace(self._path)
        sync_folder(self._path.parent)
        return Segment(
            file=self._name,
            sha256=self._hash.hexdigest(),
            size_bytes=self._size_bytes,
            lines_bytes=self.lines_bytes,
            records=self._records,
            first=self._first.position,
            last=self._last.position,
            since=self._first.at,
            until=self._last.at,
            pages=tuple(self._pages),
            subjects=self._spans,
        )

    def abandon(self) -> None:
        """What is not finished leaves nothing behind."""
        self._file.close()
        self._unfinished.unlink(missing_ok=True)


def check(folder: Path, segment: Segment) -> None:
    """Raises ArchiveDamaged unless the file holds what the index says."""
    path = folder / segment.file
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                found.update(chunk)
    except OSError as error:
        raise ArchiveDamaged(path, f"it can't be read ({error.strerror})") from error
    if found.hexdigest() != segment.sha256:
        raise ArchiveDamaged(path, "its SHA-256 is not the one in the index")


def read_page(folder: Path, segment: Segment, number: int) -> list[Line]:
    """The lines of one page. Raises ArchiveDamaged."""
    import zstandard  # noqa: PLC0415 - only who has an archive pays for it

    path = folder / segment.file
    begin = segment.pages[number].offset
    end = segment.pages[number + 1].offset if number + 1 < len(segment.pages) else segment.size_bytes
    try:
        with path.open("rb") as file:
            file.seek(begin)
            frame = file.read(end - begin)
        if zstandard.frame_content_size(frame) != segment.pages[number].lines_bytes:
            raise ArchiveDamaged(path, f"page {number + 1} is not as large as the index says")
        plain = zstandard.ZstdDecompressor().decompress(frame)
    except OSError as error:
        raise ArchiveDamaged(path, f"it can't be read ({error.strerror})") from error
    except zstandard.ZstdError as error:
        raise ArchiveDamaged(path, f"page {number + 1} can't be decompressed ({error})") from error
    try:
        return [lines.read(text, f"{path}, page {number + 1}") for text in plain.split(b"\n")[:-1]]
    except MalformedMessage as error:
        raise ArchiveDamaged(path, str(error)) from error


def read_segment(folder: Path, segment: Segment) -> Iterator[Line]:
    """Every line. Raises ArchiveDamaged."""
    for number in range(len(segment.pages)):
        yield from read_page(folder, segment, number)


def line_of(record: Record) -> Line:
    """A record of the log as a line. Raises MalformedMessage."""
    return lines.line(record.position, record.subject, record.stored_at, record.headers, record.body)


def record_of(line: Line) -> Record:
    """A line as the record it was, with the headers that still mean something."""
    stamps = {"Nats-Subject": line.subject, "Nats-Sequence": str(line.position), "Nats-Time-Stamp": line.at.isoformat()}
    return Record(line.position, line.subject, line.content, _head([*line.headers.items(), *stamps.items()]))


def sync_folder(folder: Path) -> None:
    """What was renamed in a folder survives a power cut from here on."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _head(headers: Iterable[tuple[str, str]]) -> bytes:
    text = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"NATS/1.0\r\n{text}\r\n".encode("utf-8", "surrogateescape")
