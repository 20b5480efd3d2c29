"""The runner: reads the log once for many projections, and keeps their rows on a shelf as it goes on.

Rows and position are stored in one transaction, guarded by the position they were folded from. So it may be killed
anywhere, and run twice: what it did not store was not done, and who comes second looks again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache, partial
from typing import Any

import msgspec
import structlog

from bus.client import Client
from bus.format.subjects import pattern
from bus.history.feed import said
from bus.history.happening import Said
from bus.log.record import Record
from bus.log.streams import info
from projections.catchup import ahead, seen_by
from projections.projection import MEMORY, Aside, Projection, Rows
from projections.shelf import Build, Change, Look, Moved, Shelf, Step, decoder, encoded

logger = structlog.get_logger(__name__)

_CACHED_ROWS = 20_000
_STORED_KEYS = 1_000_000
_KNOWN_SUBJECTS = 10_000
MARK_EVERY = 5_000
"""Rows can be found again as of a position that is at most so many back; from there the log is folded."""


class Runner:
    """Keeps these projections on that shelf.

    `on_stored` is told each position up to which all of them are stored, `on_changed` each build whose rows have
    changed.
    """

    def __init__(
        self,
        client: Client,
        shelf: Shelf,
        projections: Iterable[Projection[Any]],
        on_stored: Callable[[int], None] = lambda _position: None,
        on_changed: Callable[[Build, int], None] = lambda _build, _position: None,
    ) -> None:
        self._client = client
        self._shelf = shelf
        self._growths = [Growth(client, shelf, each) for each in projections]
        self._on_stored = on_stored
        self._on_changed = on_changed
        self._log = ""
        # Asked of every record, and most of them are of a few runs.
        self._takers = lru_cache(_KNOWN_SUBJECTS)(self._find_takers)

    @property
    def positions(self) -> dict[str, int]:
        """How far each projection is, by name."""
        return {each.projection.name: each.position for each in self._growths}

    async def catch_up(self, *, afresh: bool = False) -> int:
        """Fold what the log has by now, from the beginning with `afresh`; returns the position. Raises Unavailable."""
        self._log, upto = await log_of(self._client)
        await asyncio.to_thread(self._settle, afresh=afresh)
        records = self._client.log.read(*self._filters(), after=self._position(), upto=upto)
        async with ahead(records) as reading:
            while batch := await reading.take():
                await self._add(batch)
        await self._add([], upto=upto)
        try:
            await asyncio.to_thread(self._serve)
        except Moved:
            # Another process has built it too, and was quicker.
            return await self.catch_up()
        return upto

    async def run(self, stop: asyncio.Event) -> None:
        """Catch up, then fold what comes, until `stop` is set. Raises Unavailable if the log can't be read at first."""
        await self.catch_up()
        stopping = asyncio.create_task(stop.wait())
        try:
            records = self._client.log.follow(*self._filters(), after=self._position())
            async with ahead(records) as arriving:
                while not stop.is_set():
                    taking = asyncio.create_task(arriving.take())
                    await asyncio.wait({taking, stopping}, return_when=asyncio.FIRST_COMPLETED)
                    if not taking.done():
                        taking.cancel()
                        return
                    await self._add(taking.result())
        finally:
            stopping.cancel()

    def _settle(self, *, afresh: bool = False) -> None:
        for each in self._growths:
            each.settle(self._log, afresh=afresh)

    def _serve(self) -> None:
        for each in self._growths:
            each.serve()

    async def _add(self, records: Sequence[Record], *, upto: int | None = None) -> None:
        """Fold records into whatever has not got them, and store it."""
        position = upto or (records[-1].position if records else 0)
        while True:
            steps = await asyncio.to_thread(self._fold, records, position, upto is not None)
            try:
                await asyncio.to_thread(self._shelf.save, steps)
            except Moved:
                # Another process folds the same, or has built it anew: what it has stored is as good.
                await asyncio.to_thread(self._settle)
                continue
            for growth in self._growths:
                if growth.stored():
                    self._on_changed(growth.build, growth.position)
            self._on_stored(position)
            return

    def _fold(self, records: Sequence[Record], position: int, is_last: bool = False) -> list[Step]:
        with self._shelf.looking() as look:
            growing = [each for each in self._growths if each.begin(position, look)]
            for record in records:
                takers = self._takers(record.subject)
                if takers:
                    once = said(record)
                    for each in takers:
                        each.add(once)
            steps = [each.step(is_last=is_last) for each in growing]
            return [each for each in steps if each is not None]

    def _find_takers(self, subject: str) -> list[Growth]:
        return [each for each in self._growths if each.wants(subject)]

    def _filters(self) -> list[str]:
        wanted = {subject for each in self._growths for subject in seen_by(each.projection, self._client.subjects)}
        # The server refuses filters that overlap.
        return [each for each in wanted if not any(each != other and _covers(other, each) for other in wanted)]

    def _position(self) -> int:
        return min((each.position for each in self._growths), default=0)


async def log_of(client: Client) -> tuple[str, int]:
    """What tells this log from any other, and its newest position. Raises Unavailable."""
    stream = await info(client.connection, client.subjects.stream, client.settings.request_timeout_s)
    return f"{client.subjects.stream} {stream.created}", stream.last


def _covers(wider: str, subject: str) -> bool:
    """Whether all that a subject with wildcards names is named by another: `run.*` is by `run.>`, not the reverse."""
    if subject.endswith(">") and not wider.endswith(">"):
        return False
    return pattern(wider).fullmatch(subject) is not None


class Growth:
    """One projection's build, as one process sees and extends it."""

    def __init__(self, client: Client, shelf: Shelf, projection: Projection[Any]) -> None:
        self.projection = projection
        self.position = 0
        self._shelf = shelf
        self._build: Build | None = None
        self._wanted = [pattern(subject).fullmatch for subject in seen_by(projection, client.subjects)]
        self._decode = decoder(projection)
        self._known: OrderedDict[str, Any] = OrderedDict()
        # Of a build that begins here, what has a row: what is not in it need not be looked for.
        self._stored: set[str] | None = None
        self._rows: Rows[Any] = Rows(lambda _key: None)
        self._asides: list[Aside] = []
        self._reached = 0
        self._took = self._is_stored = False

    @property
    def build(self) -> Build:
        assert self._build is not None, "a runner settles its projections before it folds"
        return self._build

    def settle(self, log: str, *, afresh: bool = False) -> None:
        """Find the build to extend, the served one first, or begin one; and forget what was known of its rows."""
        wanted = (self.projection.name, self.projection.version, log)
        fitting = (each for each in self._shelf.builds() if (each.projection, each.version, each.log) == wanted)
        self._build = (None if afresh else next(fitting, None)) or self._shelf.begin(*wanted)
        self._known.clear()
        self.position = self._shelf.position(self._build.id)
        self._stored = None if self.position else set()

    def wants(self, subject: str) -> bool:
        return any(fits(subject) for fits in self._wanted)

    def begin(self, position: int, look: Look) -> bool:
        """Fold what is to be added, up to a position, from where it stands; False if it has all that."""
        self._rows, self._asides, self._reached = Rows(partial(self._row, look)), [], position
        self._took = False
        return position > self.position

    def add(self, said: Said) -> None:
        """Fold a record in, unless it has it."""
        if said.position > self.position:
            self._took = True
            for each in self.projection.wanted(said):
                aside = self._rows.add(self.projection, each)
                if aside is not None:
                    self._asides.append(aside)
                    logger.warning(
                        "set aside", projection=self.projection.name, position=aside.position, reason=aside.reason
                    )

    def step(self, *, is_last: bool) -> Step | None:
        """What was added, as it is to be stored; None if there was nothing for it, and that can be told later."""
        self._is_stored = self._took or is_last or self._reached - self.position >= MARK_EVERY
        if not self._is_stored:
            return None
        marks = self._reached // MARK_EVERY > self.position // MARK_EVERY
        changes = [self._change(key, row) for key, row in self._rows.told.items()]
        return Step(self.build.id, self.position, self._reached, changes, self._asides, marks)

    def stored(self) -> bool:
        """What was folded last is on the shelf; whether it has changed any row."""
        is_new = self._is_stored and self._reached > self.position
        if is_new:
            self.position = self._reached
            self._known.update(self._rows.changes)
            if self._stored is not None:
                self._stored.update(self._rows.told)
                if len(self._stored) > _STORED_KEYS:
                    self._stored = None
            while len(self._known) > _CACHED_ROWS:
                self._known.popitem(last=False)
        return is_new and bool(self._rows.told)

    def serve(self) -> None:
        """Let the build be the one that is read. Raises Moved."""
        if not self.build.is_served:
            self._shelf.serve(self.build)
            self._build = msgspec.structs.replace(self.build, is_served=True)

    def _row(self, look: Look, key: str) -> Any:
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        if self._stored is not None and key not in self._stored:
            return None
        found = look(self.build.id, key)
        return None if found is None else self._decode(key, found)

    def _change(self, key: str, row: Any) -> Change:
        if row is None:
            return Change(key, None)
        glance = self.projection.glance
        shown = None if glance is None or key.startswith(MEMORY) else encoded(glance(row))
        return Change(key, encoded(row), shown)
