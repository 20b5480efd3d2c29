"""The runner: reads the log once for many projections, and keeps their rows on a shelf as it goes on.

Rows and position are stored in one transaction, guarded by the position they were folded from. So it may be killed
anywhere, and run twice: what it did not store was not done, and who comes second looks again.
"""

from __future__ import annotations

import asyncio
import gc
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from typing import Any, ParamSpec, TypeVar

import msgspec
import structlog

from bus.client import Client
from bus.format.subjects import pattern
from bus.history.feed import said
from bus.history.happening import Said
from bus.log.record import Record
from bus.log.streams import info
from projections.catchup import ahead, seen_by, uncollected
from projections.projection import MEMORY, Projection, Rows
from projections.shelf import Build, Change, Look, Moved, Shelf, Step, decoder, encoded

logger = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

_CACHED_ROWS = 20_000
_CACHED_CHARACTERS = 16 * 2**20
_STORED_KEYS = 300_000
_KNOWN_SUBJECTS = 10_000
_BATCH = 2_500
# Folding makes no circles, but whatever else runs in this process may.
_COLLECTED_BATCHES = 100
_TIDY_BYTES = 16 * 2**20
MARK_EVERY = 2_500
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
        self._is_afresh = False
        self._untidy_bytes = 0
        self._is_tidied = False
        self._tidying: asyncio.Task[None] | None = None
        # Asked of every record, and most of them are of a few runs.
        self._takers = lru_cache(_KNOWN_SUBJECTS)(self._find_takers)

    @property
    def positions(self) -> dict[str, int]:
        """How far each projection is, by name."""
        return {each.projection.name: each.position for each in self._growths}

    async def catch_up(self, *, afresh: bool = False) -> int:
        """Fold what the log has by now, from the beginning with `afresh`; returns the position. Raises Unavailable."""
        self._log, upto = await log_of(self._client)
        self._is_afresh = afresh
        async with self._tidied():
            await _in_thread(self._settle, begin=afresh)
            while not await self._reach(upto):
                # Another process has replaced a build that was extended here: it is read again from where that stands.
                await _in_thread(self._settle)
        self._is_afresh = False
        return upto

    async def run(self, stop: asyncio.Event) -> None:
        """Catch up, then fold what comes, until `stop` is set. Raises Unavailable if the log can't be read at first."""
        await self.catch_up()
        stopping = asyncio.create_task(stop.wait())
        try:
            async with self._tidied():
                while not stop.is_set():
                    await self._follow(stopping)
        finally:
            stopping.cancel()

    async def _reach(self, upto: int) -> bool:
        """Fold up to there and let it be read; False if somebody else has moved a build."""
        after = self._seen()
        async with ahead(self._client.log.read(*self._filters(), after=after, upto=upto), _BATCH) as reading:
            with uncollected():
                batches = 0
                while batch := await reading.take():
                    if not await _in_thread(self._add, batch, after, batch[-1].position):
                        return False
                    after = batch[-1].position
                    self._tell(after)
                    self._tidy()
                    batches += 1
                    if not batches % _COLLECTED_BATCHES:
                        gc.collect()
        try:
            if not await _in_thread(self._finish, after, upto):
                return False
        except Moved:
            return False
        self._tell(upto)
        return True

    async def _follow(self, stopping: asyncio.Task[Any]) -> None:
        """Fold what comes, until it is enough, or somebody else has moved a build."""
        after = self._seen()
        async with ahead(self._client.log.follow(*self._filters(), after=after)) as arriving:
            while not stopping.done():
                taking = asyncio.create_task(arriving.take())
                await asyncio.wait({taking, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not taking.done():
                    taking.cancel()
                    return
                batch = taking.result()
                if not await _in_thread(self._add, batch, after, batch[-1].position):
                    await _in_thread(self._settle)
                    return
                after = batch[-1].position
                self._tell(after)
                self._tidy()

    def _settle(self, *, begin: bool = False) -> None:
        for each in self._growths:
            each.settle(self._log, begin=begin, afresh=self._is_afresh)

    def _finish(self, after: int, upto: int) -> bool:
        """Store the position, and let the builds be read. Raises Moved."""
        if not self._add([], after, upto, is_last=True):
            return False
        for each in self._growths:
            each.serve()
        return True

    def _add(self, records: Sequence[Record], after: int, position: int, *, is_last: bool = False) -> bool:
        """Fold what came after a position, up to another, into whatever has not got it, and store it.

        False: somebody else has built one of them anew, and less of it.
        """
        with uncollected():
            while self._seen() >= after:
                steps = self._fold(records, position, is_last)
                try:
                    self._shelf.save(steps)
                except Moved:
                    # Another process folds the same: what it has stored is as good.
                    self._settle()
                    continue
                for growth in self._growths:
                    growth.stored()
                self._untidy_bytes += sum(len(each.row or "") for step in steps for each in step.changes)
                if self._is_tidied:
                    self._shelf.checkpoint()
                    self._is_tidied, self._untidy_bytes = False, 0
                return True
        return False

    def _tell(self, position: int) -> None:
        for growth in self._growths:
            if growth.has_changed:
                self._on_changed(growth.build, growth.position)
        self._on_stored(position)

    def _fold(self, records: Sequence[Record], position: int, is_last: bool) -> list[Step]:
        with self._shelf.looking() as look:
            growing = [each for each in self._growths if each.begin(position, look)]
            for record in records:
                takers = self._takers(record.subject)
                if takers:
                    once = said(record)
                    for take in takers:
                        take(once)
            steps = [each.step(is_last=is_last) for each in growing]
            return [each for each in steps if each is not None]

    def _tidy(self) -> None:
        """What the database has to put in order takes longer than anybody wants to wait: it is done beside, and the
        little that came meanwhile afterwards."""
        if self._untidy_bytes >= _TIDY_BYTES and self._tidying is None:
            self._tidying = asyncio.create_task(asyncio.to_thread(self._shelf.checkpoint))
        elif self._tidying is not None and self._tidying.done():
            self._tidying.result()
            self._tidying, self._is_tidied = None, True

    @asynccontextmanager
    async def _tidied(self) -> AsyncIterator[None]:
        """What is tidied beside has ended when the block has. Raises ShelfDamaged."""
        try:
            yield
        except BaseException:
            if self._tidying is not None:
                await _ended(self._tidying)
                self._tidying = None
            raise
        if self._tidying is not None:
            tidying, self._tidying = self._tidying, None
            await tidying
            self._is_tidied = True

    def _find_takers(self, subject: str) -> list[Callable[[Said], None]]:
        return [each.records.append for each in self._growths if each.wants(subject)]

    def _filters(self) -> list[str]:
        wanted = {subject for each in self._growths for subject in seen_by(each.projection, self._client.subjects)}
        # The server refuses filters that overlap.
        return [each for each in wanted if not any(each != other and _covers(other, each) for other in wanted)]

    def _seen(self) -> int:
        return min((each.seen for each in self._growths), default=0)


async def _in_thread(do: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
    """A thread can't be stopped, and whoever waits for the runner closes the shelf: cancelled, this waits for it."""
    doing = asyncio.create_task(asyncio.to_thread(do, *arguments, **named))
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await _ended(doing)
        raise


async def _ended(doing: asyncio.Task[Any]) -> None:
    """Wait for it; what it raises comes behind what is raised already, and is only told."""
    await asyncio.wait({doing})
    if not doing.cancelled() and (error := doing.exception()) is not None:
        logger.warning("not stored", error=str(error))


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
        self.position = self.seen = 0
        self._shelf = shelf
        self._build: Build | None = None
        self._wanted = [pattern(subject).fullmatch for subject in seen_by(projection, client.subjects)]
        self._decode = decoder(projection)
        # Rows that are stored, and how long their text is; what was stored last is at the end.
        self._known: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._known_characters = 0
        # Of a build that begins here, what has a row: what is not in it need not be looked for.
        self._stored: set[str] | None = None
        self._rows: Rows[Any] = Rows(lambda _key: None)
        self._step: Step | None = None
        self._reached = 0
        self.has_changed = False
        """Whether what was stored last has changed any row."""
        self.records: list[Said] = []
        """What is to be folded, in order; some of it may have been."""

    @property
    def build(self) -> Build:
        assert self._build is not None, "a runner settles its projections before it folds"
        return self._build

    def settle(self, log: str, *, begin: bool, afresh: bool) -> None:
        """Find the build to extend, the one begun here first, then the served one; and forget what was known of its
        rows. If there is none, or with `begin`, a new one is begun; with `afresh` no other's is extended."""
        wanted = (self.projection.name, self.projection.version, log)
        builds = self._shelf.builds()
        own = [each for each in builds if self._build is not None and each.id == self._build.id]
        fitting = [each for each in builds if (each.projection, each.version, each.log) == wanted]
        found = [] if begin else own or ([] if afresh else fitting)
        self._build = found[0] if found else self._shelf.begin(*wanted)
        self._known.clear()
        self._known_characters = 0
        self.position = self._shelf.position(self._build.id)
        # There was nothing for it between what is stored and what it has seen.
        self.seen = max(self.seen, self.position) if self._build in own else self.position
        self._stored = None if self.position else set()

    def wants(self, subject: str) -> bool:
        return any(fits(subject) for fits in self._wanted)

    def begin(self, position: int, look: Look) -> bool:
        """Have records folded, up to a position, from where it stands; False if it has all that."""
        self._rows, self._reached = Rows(partial(self._row, look)), position
        self._step, self.has_changed = None, False
        self.records.clear()
        return position > self.seen

    def step(self, *, is_last: bool) -> Step | None:
        """Fold the records; what is to be stored of it. None if there was nothing, and that can be told later."""
        records = self.records
        if records and records[0].position <= self.seen:
            records = [each for each in records if each.position > self.seen]
        if not (records or is_last or self._reached - self.position >= MARK_EVERY):
            return None
        asides = self._rows.fold(self.projection, self.projection.wanted(records))
        for aside in asides:
            logger.warning("set aside", projection=self.projection.name, position=aside.position, reason=aside.reason)
        marks = self._reached // MARK_EVERY > self.position // MARK_EVERY
        changes = [self._change(key, row) for key, row in self._rows.told.items()]
        self.records.clear()
        self._step = Step(self.build.id, self.position, self._reached, changes, asides, marks)
        return self._step

    def stored(self) -> None:
        """What was folded last is on the shelf."""
        self.seen = max(self.seen, self._reached)
        if self._step is None:
            return
        self.position = self._reached
        self.has_changed = bool(self._step.changes)
        known, rows = self._known, self._rows.changes
        for each in self._step.changes:
            key, size = each.key, len(each.row or "")
            before = known.pop(key, None)
            known[key] = rows[key], size
            self._known_characters += size - (before[1] if before is not None else 0)
        if self._stored is not None:
            self._stored.update([each.key for each in self._step.changes])
            if len(self._stored) > _STORED_KEYS:
                self._stored = None
        while len(known) > _CACHED_ROWS or self._known_characters > _CACHED_CHARACTERS:
            self._known_characters -= known.popitem(last=False)[1][1]
        self._rows, self._step = Rows(lambda _key: None), None

    def serve(self) -> None:
        """Let the build be the one that is read. Raises Moved."""
        if not self.build.is_served:
            self._shelf.serve(self.build)
            self._build = msgspec.structs.replace(self.build, is_served=True)

    def _row(self, look: Look, key: str) -> Any:
        known = self._known.get(key)
        if known is not None:
            return known[0]
        if self._stored is not None and key not in self._stored:
            return None
        found = look(self.build.id, key)
        return None if found is None else self._decode(key, found)

    def _change(self, key: str, row: Any) -> Change:
        is_new = self._rows.is_new(key)
        if row is None:
            return Change(key, None, is_new=is_new)
        glance = self.projection.glance
        shown = None if glance is None or key.startswith(MEMORY) else encoded(glance(row))
        return Change(key, encoded(row), shown, is_new)
