"""What is kept: a projection's rows as they are on a shelf, one or all, as of now or as of any position before."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import msgspec

from bus.client import Client
from bus.errors import NotFound
from bus.history.feed import said
from bus.log.record import Record
from projections.catchup import ahead, seen_by, uncollected
from projections.projection import MEMORY, Projection, R, Rows
from projections.runner import log_of
from projections.shelf import Build, Look, Shelf, decoder

G = TypeVar("G")


class Kept(Generic[R]):
    """The build of a projection that is served. Each call sees what is stored by then."""

    def __init__(self, client: Client, shelf: Shelf, projection: Projection[R], build: Build) -> None:
        self.build = build
        self._client = client
        self._shelf = shelf
        self._projection = projection
        self._decode: Callable[[str, str], R] = decoder(projection)

    @classmethod
    async def find(cls, client: Client, shelf: Shelf, projection: Projection[R]) -> Kept[R]:
        """Raises NotFound if nothing is served under that name, ShelfDamaged."""
        log, _ = await log_of(client)
        for build in await asyncio.to_thread(shelf.builds):
            if (build.projection, build.log, build.is_served) == (projection.name, log, True):
                return cls(client, shelf, projection, build)
        raise NotFound(f"projection {projection.name!r} is not built yet: `phasebus projection rebuild` builds it")

    async def position(self) -> int:
        """The position of the log that the rows are as of."""
        return await asyncio.to_thread(self._shelf.position, self.build.id)

    async def row(self, key: str, *, at: int | None = None) -> R | None:
        """One row, or None: as it is now, or was as of a position."""
        if at is None:
            found = await asyncio.to_thread(self._shelf.row, self.build.id, key)
            return None if found is None else self._decode(key, found)
        one = self._projection.subject_of
        return (await self._past(at, [self._full(one(key))] if one is not None else None))[1].get(key)

    async def rows(self, *, at: int | None = None) -> dict[str, R]:
        """Every row by key, as they are now, or were as of a position."""
        if at is None:
            found = await asyncio.to_thread(self._shelf.rows, self.build.id)
            return {key: self._decode(key, row) for key, row in found if not key.startswith(MEMORY)}
        mark, changed = await self._past(at)
        found = await asyncio.to_thread(self._shelf.rows, self.build.id, mark=mark) if mark else []
        rows: dict[str, Any] = {key: self._decode(key, row) for key, row in found if key not in changed.changes}
        rows |= {key: row for key, row in changed.changes.items() if row is not None}
        return {key: rows[key] for key in sorted(rows) if not key.startswith(MEMORY)}

    async def as_of(self, position: int) -> Rows[R]:
        """The rows as of a position, each looked up when it is asked for."""
        return (await self._past(position))[1]

    async def glances(self, kind: type[G]) -> dict[str, G]:
        """What a list shows of each row, by key."""
        decode = msgspec.json.Decoder(kind).decode
        return {key: decode(glance) for key, glance in await asyncio.to_thread(self._shelf.glances, self.build.id)}

    def _full(self, subject: str) -> str:
        return f"{self._client.subjects.namespace}.{subject}"

    async def _past(self, position: int, filters: Sequence[str] | None = None) -> tuple[int, Rows[R]]:
        """The newest mark before a position, and the rows as of that, with all that came between."""
        mark = await asyncio.to_thread(self._shelf.mark, self.build.id, position)
        marked = _Marked(self._shelf, self.build.id, mark, self._decode)
        rows: Rows[R] = Rows(marked)
        filters = filters or seen_by(self._projection, self._client.subjects)
        async with ahead(self._client.log.read(*filters, after=mark, upto=position)) as reading:
            while batch := await reading.take():
                await asyncio.to_thread(self._fold, rows, marked, batch)
        return mark, rows

    def _fold(self, rows: Rows[R], marked: _Marked[R], records: Sequence[Record]) -> None:
        with uncollected(), marked.many():
            rows.fold(self._projection, self._projection.wanted([said(record) for record in records]))


class _Marked(Generic[R]):
    """Finds a row as of a mark; many of them within one transaction."""

    def __init__(self, shelf: Shelf, build: str, mark: int, decode: Callable[[str, str], R]) -> None:
        self._shelf = shelf
        self._build = build
        self._mark = mark
        self._decode = decode
        self._look: Look | None = None

    def __call__(self, key: str) -> R | None:
        if not self._mark:
            return None
        if self._look is not None:
            found = self._look(self._build, key, self._mark)
        else:
            found = self._shelf.row(self._build, key, mark=self._mark)
        return None if found is None else self._decode(key, found)

    @contextmanager
    def many(self) -> Iterator[None]:
        with self._shelf.looking() as self._look:
            yield
        self._look = None
