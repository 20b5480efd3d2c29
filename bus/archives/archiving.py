"""Archiving: what a policy lets go is written to files, compared with the log, told, and only then taken out of it.

Every step can be the last one before a crash: the log has it until the index has it, what the index has and the log
still has is shown once, and the next pass finishes what this one began.
"""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
from msgspec.structs import replace

from bus.archives import copying
from bus.archives.notices import REMOVED, SEALED, STARTED, Notices, SealedSegment
from bus.archives.outgoing import Outgoing, Tally, select
from bus.archives.retention import Policy, class_of
from bus.broker.connection import Connection
from bus.client import Client
from bus.clock import utc_now
from bus.errors import BusError, Forbidden, Misconfigured, Refused, SettingsError
from bus.format.envelope import envelope
from bus.log import streams
from bus.log.index import Index, Removal, read_index, write_index
from bus.log.log import Log, VersionConflict
from bus.log.record import Record
from bus.log.segment import Segment
from bus.rules.events import COMMIT, RunArchived, body

_AT_ONCE = 64
_SAID_SUBJECTS = 100

Progress = Callable[[str, int, int], None]
"""Called with the step, how much of it is done, and how much there is to do."""


class Outcome(msgspec.Struct, frozen=True):
    """What one pass did. `kept` are runs that went on while they were archived: the log has them still."""

    tallies: dict[str, Tally]
    segments: Sequence[Segment] = ()
    removed: int = 0
    kept: Sequence[str] = ()


async def choose(client: Client, policy: Policy) -> Outgoing:
    """What would go now: nothing is done. Raises Unavailable."""
    return await select(_live(client), policy, utc_now())


async def archive(
    client: Client, folder: Path, policy: Policy, *, by: str, take_over: bool = False, progress: Progress | None = None
) -> Outcome:
    """Finish what an earlier pass began in `folder`, then archive there what the policy lets go.

    `take_over`: another archiver began and will never end; what it has taken out is in its archive only.
    Raises Refused if another one is at work, SettingsError without the operator's login, Misconfigured, Unavailable,
    and ArchiveDamaged if what was written can't be read back as it was: then nothing has left the log.
    """
    if client.operator_url is None:
        raise SettingsError(
            "archiving takes records out of the log: PHASEBUS_OPERATOR_URL has to name a login that may"
        )
    timeout_s = client.settings.request_timeout_s
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    with _locked(folder):
        async with _operator(client, client.operator_url) as operator:
            made = (await streams.info(client.connection, client.subjects.stream, timeout_s)).created
            index = await asyncio.to_thread(read_index, folder)
            if index is None:
                index = Index(id=uuid4().hex[:12], namespace=client.subjects.namespace, created=made)
                # Before the log is told of it: who crashes right then is known again.
                await asyncio.to_thread(write_index, folder, index)
            if (index.namespace, index.created) != (client.subjects.namespace, made):
                raise Misconfigured(
                    f"{folder} is the archive of log {index.namespace!r} made at {index.created}, this is "
                    f"{client.subjects.namespace!r} made at {made}: give another folder"
                )
            return await _Pass(client, operator, folder, index, by, progress or _silent).run(
                policy, take_over=take_over
            )


class _Pass:
    """One pass over the log, to the archive that `index` is of."""

    def __init__(
        self, client: Client, operator: Connection, folder: Path, index: Index, by: str, progress: Progress
    ) -> None:
        self._client = client
        self._subjects = client.subjects
        self._log = _live(client)
        self._operator = operator
        self._folder = folder
        self._index = index
        self._by = by
        self._progress = progress
        self._notices = Notices(self._log, folder, index.id, by=by, source=client.source)

    async def run(self, policy: Policy, *, take_over: bool) -> Outcome:
        await self._notices.begin(take_over=take_over)
        removed, kept = 0, list[str]()
        if self._index.removal is not None:
            await self._notices.say(STARTED, finishes=True)
            removed, kept = await self._take_out(self._index.removal)
        selection = await select(self._log, policy, utc_now())
        if not selection.upto:
            if self._notices.is_open:
                # An earlier pass began, and had taken nothing out when it ended.
                await self._notices.say(REMOVED, records=0, subjects=0)
            return Outcome(selection.tallies, removed=removed, kept=kept)
        await self._notices.say(STARTED, policy=tuple(policy.rules()))
        segments = await self._copy(selection)
        now_removed, now_kept = await self._take_out(await self._enter(segments, selection))
        return Outcome(selection.tallies, segments, removed + now_removed, [*kept, *now_kept])

    # Into the archive

    async def _copy(self, selection: Outgoing) -> list[Segment]:
        newest = max(selection.upto.values())
        number = len(self._index.segments) + 1
        segments = await copying.write(
            self._folder, number, self._chosen(selection), lambda position: self._progress("written", position, newest)
        )
        await copying.compare(
            self._folder,
            segments,
            self._chosen(selection),
            lambda position: self._progress("verified", position, newest),
        )
        return segments

    async def _enter(self, segments: Sequence[Segment], selection: Outgoing) -> Removal:
        """From here on it is archived, and may leave the log."""
        removal = Removal(tuple(segment.file for segment in segments), selection.upto)
        await self._store(replace(self._index, segments=(*self._index.segments, *segments), removal=removal))
        self._progress("indexed", 1, 1)
        return removal

    async def _chosen(self, selection: Outgoing) -> AsyncGenerator[Record, None]:
        """The records of the selection that no earlier pass has archived."""
        after = {subject: self._index.upto(subject) for subject in selection.upto}
        classes = dict.fromkeys(class_of(subject) for subject in selection.upto)
        filters = [f"{self._subjects.namespace}.{name}.>" for name in classes]
        async with aclosing(self._log.read(*filters, upto=max(selection.upto.values()))) as records:
            async for record in records:
                if after.get(record.subject, record.position) < record.position <= selection.upto[record.subject]:
                    yield record

    # Out of the log

    async def _take_out(self, removal: Removal) -> tuple[int, list[str]]:
        """What the index has may go. Repeated after a crash, it does what is left of it."""
        await self._notices.say(SEALED, **self._sealed(removal))
        self._progress("sealed", 1, 1)
        kept = await self._close_runs([each for each in removal.upto.items() if class_of(each[0]) == "run"])
        going = {subject: upto for subject, upto in removal.upto.items() if subject not in set(kept)}
        removed = 0
        async for done, count in _together(self._remove(subject, upto) for subject, upto in going.items()):
            removed += count
            self._progress("removed", done, len(going))
        await self._notices.say(REMOVED, records=removed, subjects=len(going), kept=tuple(kept[:_SAID_SUBJECTS]))
        self._progress("told", 1, 1)
        await self._store(replace(self._index, removal=None))
        return removed, kept

    async def _close_runs(self, runs: Sequence[tuple[str, int]]) -> list[str]:
        """After this nothing is appended to them: what was archived is their end. Returns those that have gone on."""
        kept: list[str] = []
        async for done, moved in _together(self._close_run(subject, upto) for subject, upto in runs):
            kept += moved
            self._progress("closed", done, len(runs))
        return kept

    async def _close_run(self, subject: str, upto: int) -> list[str]:
        event = RunArchived(by=self._by, upto=upto, archive=self._index.id)
        # Repeated after a crash it is known by its id.
        run = self._subjects.run_of(subject)
        message = envelope(
            COMMIT,
            body([event]),
            id=f"{self._index.id}-{upto}",
            source=self._client.source,
            time=utc_now(),
            runid=run,
            correlationid=run,
        )
        try:
            await self._log.append(subject, message, expected=upto)
        except VersionConflict:
            return [subject]
        return []

    async def _remove(self, subject: str, upto: int) -> int:
        timeout_s = self._client.settings.request_timeout_s
        count = await streams.purge(self._operator, self._subjects.stream, subject, timeout_s, upto=upto)
        async for record in self._log.read(subject, upto=upto):
            raise BusError(f"{subject!r} still has position {record.position}, which the server said it took out")
        return count

    def _sealed(self, removal: Removal) -> dict[str, Any]:
        segments = [segment for segment in self._index.segments if segment.file in removal.files]
        classes: dict[str, int] = {}
        for segment in segments:
            for subject, span in segment.subjects.items():
                classes[class_of(subject)] = classes.get(class_of(subject), 0) + span.records
        files = tuple(SealedSegment(each.file, each.sha256, each.records, each.first, each.last) for each in segments)
        return {"records": classes, "subjects": len(removal.upto), "segments": files}

    async def _store(self, index: Index) -> None:
        await asyncio.to_thread(write_index, self._folder, index)
        self._index = index


def _live(client: Client) -> Log:
    """The log as the server has it, whatever archive the client reads."""
    return Log(client.connection, client.subjects, client.settings)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One archiver at a time in a folder. The lock ends with the process, however that ends."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"another process archives to {folder} at this moment") from None
        yield


@asynccontextmanager
async def _operator(client: Client, url: str) -> AsyncIterator[Connection]:
    """A connection that may take something out of the log: that is tried, on a subject nobody writes to."""
    settings = client.settings
    async with Connection.open(url, name="archiver", connect_timeout_s=settings.request_timeout_s) as connection:
        nobody = client.subjects.ops(uuid4().hex)
        try:
            await streams.purge(connection, client.subjects.stream, nobody, settings.request_timeout_s, upto=1)
        except Forbidden as error:
            raise Misconfigured(
                f"the login of PHASEBUS_OPERATOR_URL may not take anything out of {client.subjects.stream}: {error}"
            ) from error
        yield connection


async def _together(tasks: Iterable[Awaitable[Any]]) -> AsyncGenerator[tuple[int, Any], None]:
    """What they return, with how many have been done; some at a time."""
    waiting = iter(tasks)
    done = 0
    while batch := list(islice(waiting, _AT_ONCE)):
        for result in await asyncio.gather(*batch, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
            done += 1
            yield done, result


def _silent(step: str, done: int, of: int) -> None:
    pass
