"""What an archive gives back of any subjects and positions is what a filter over all its records gives."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from bus.format.subjects import pattern
from bus.log import lines
from bus.log.archive import Archive
from bus.log.index import Index, Removal, read_index, write_index
from bus.log.lines import Line
from bus.log.record import Record
from bus.log.segment import Segment, SegmentWriter, line_of, read_segment, record_of

BEGAN_AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
SUBJECTS = ["bus.run.a", "bus.run.b", "bus.topic.x", "bus.topic.x.y", "bus.mail.ä"]
FILTERS = [*SUBJECTS, "bus.run.*", "bus.topic.>", "bus.>", ">", "bus.run.nobody", "bus.dead.*"]

# Which segment a record is in, and on which subject it stands: segments overlap as passes with several policies do.
RECORDS = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(SUBJECTS), st.binary(max_size=20)), max_size=60)


def written(folder: Path, records: Sequence[Line], number: int, page: int) -> Segment:
    writer = SegmentWriter(folder, number)
    for begin in range(0, len(records), page):
        writer.add([(line, lines.write(line)) for line in records[begin : begin + page]])
    return writer.finish()


def archived(folder: Path, parts: Sequence[Sequence[Line]], page: int) -> list[Segment]:
    segments = [written(folder, part, number, page) for number, part in enumerate(parts, 1) if part]
    write_index(folder, Index(id="1a2b", namespace="bus", created="now", segments=tuple(segments)))
    return segments


def told(records: Sequence[Record]) -> list[tuple[object, ...]]:
    found = [line_of(record) for record in records]
    return [(each.position, each.subject, each.at, each.headers, each.content) for each in found]


async def all_of(archive: Archive, *filters: str, after: int = 0, upto: int | None = None) -> list[Record]:
    return [record async for record in archive.read(*filters, after=after, upto=upto)]


@settings(deadline=None)
@given(
    records=RECORDS,
    filters=st.lists(st.sampled_from(FILTERS), min_size=1, max_size=3),
    after=st.integers(0, 70),
    upto=st.none() | st.integers(0, 70),
    page=st.integers(1, 8),
)
def test_any_subjects_and_positions_are_read_as_a_filter_over_everything_says(
    records: list[tuple[int, str, bytes]], filters: list[str], after: int, upto: int | None, page: int
) -> None:
    made = [
        (part, lines.line(position, subject, BEGAN_AT + timedelta(seconds=position), {"K": "v"}, content))
        for position, (part, subject, content) in enumerate(records, 1)
    ]
    fits = [pattern(each).fullmatch for each in filters]
    with TemporaryDirectory() as name:
        folder = Path(name)
        segments = archived(folder, [[line for at, line in made if at == part] for part in range(4)], page)
        archive = Archive(folder)
        found = asyncio.run(all_of(archive, *filters, after=after, upto=upto))
        wanted = [
            record_of(line)
            for _, line in made
            if any(fit(line.subject) for fit in fits) and after < line.position <= (upto if upto is not None else 99)
        ]
        assert told(found) == told(wanted)
        for each in filters:
            newest = asyncio.run(archive.last(each, after=after))
            matching = [line.position for _, line in made if pattern(each).fullmatch(line.subject)]
            newer = [position for position in matching if position > after]
            assert (newest.position if newest else None) == max(newer, default=None)
        for position in (after, upto or 0):
            at = asyncio.run(archive.at(position))
            assert (at.position if at else None) == (position if 0 < position <= len(made) else None)
            first = asyncio.run(archive.position_at(BEGAN_AT + timedelta(seconds=position)))
            assert first == (max(position, 1) if position <= len(made) and made else None)
        held = [line.position for segment in segments for line in read_segment(folder, segment)]
        assert sorted(held) == [line.position for _, line in made]


@given(
    upto=st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), st.integers(1, 2**60)),
    files=st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
)
def test_an_index_comes_back_as_it_was_written(upto: dict[str, int], files: list[str]) -> None:
    index = Index(id="1a2b", namespace="bus", created="2026", removal=Removal(tuple(files), upto))
    with TemporaryDirectory() as name:
        assert read_index(Path(name)) is None
        write_index(Path(name), index)
        assert read_index(Path(name)) == index
