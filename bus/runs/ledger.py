"""The ledger: the log as runs use it. Reads commits, appends them with their dead letters, dispatches the work."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from datetime import datetime
from functools import partial
from uuid import uuid4

import msgspec
import structlog

from bus.broker.connection import Connection
from bus.clock import utc_now
from bus.errors import Archived, BusError, MalformedMessage, NotFound, TooLarge
from bus.format.envelope import Envelope, encode, envelope
from bus.format.subjects import Work
from bus.log.log import Log, Part, VersionConflict
from bus.log.record import Record
from bus.log.streams import info
from bus.rules import dead, events
from bus.rules.events import Commit, archived
from bus.rules.folding import evolve, fold
from bus.rules.inputs import work
from bus.rules.run import RunState
from bus.runs.halts import Halt
from bus.runs.lane import RESUMED, Resumed, beginning, is_resuming, lane_of, placed
from bus.runs.task import WORK as WORK_PHASE
from bus.runs.unknown import report
from bus.runs.waiting import Waiting

logger = structlog.get_logger(__name__)

WORK = "phase.work.v1"
# How bytes that anybody could publish fail to be a commit: undecodable, or about phases that are not there.
_NOT_FOLLOWING = (MalformedMessage, AssertionError, LookupError, ValueError, TypeError, AttributeError, OverflowError)
LETTERS_IN_BATCH = 500
"""So many are stored together with the commit that gives their work up; `agents.clerk` looks after the rest."""


class Ledger:
    """Every run's commits. It decides nothing: see `bus.runs.runs`."""

    def __init__(self, log: Log, connection: Connection, *, source: str) -> None:
        self._log = log
        self._connection = connection
        self._source = source
        self._waiting = Waiting(connection, log.subjects)

    def remind(self, work: Work) -> None:
        """Tell instances that this waits, wherever that is: they may not know that something waits there."""
        try:
            self._waiting.ring(work)
        except BusError as error:
            logger.debug("not rung", capability=work.capability, error=str(error))

    async def as_of(self, run: str, position: int) -> RunState:
        """The run as it was at a position of the log. Raises NotFound if it had not started then, Archived."""
        subject = self._log.subjects.run(run)
        state = fold_records(run, [record async for record in self._log.read(subject, upto=position)], None)
        if state is None:
            # Or it was archived since: then this says so.
            await self.refresh(run, None)
            raise NotFound(f"there was no run {run!r} at position {position}")
        return state

    async def names(self) -> list[str]:
        """Every run that has something in the log, by name. What only an archive holds is not among them."""
        subjects = self._log.subjects
        there = await info(self._connection, subjects.stream, self._log.patience_s, subjects=subjects.runs)
        return sorted(map(subjects.run_of, there.subjects))

    async def commits(self, run: str, *, after: int = 0, upto: int | None = None) -> AsyncGenerator[Commit, None]:
        """A run's commits in order."""
        async for record in self._log.read(self._log.subjects.run(run), after=after, upto=upto):
            for commit in _readable(run, record):
                yield commit

    async def follow(self, run: str, *, after: int = 0) -> AsyncGenerator[Commit, None]:
        """A run's commits, those to come included; never ends by itself."""
        async with aclosing(self._log.follow(self._log.subjects.run(run), after=after)) as records:
            async for record in records:
                for commit in _readable(run, record):
                    yield commit

    def dispatch(
        self,
        state: RunState,
        ready: Iterable[tuple[str, int | None]],
        *,
        causation: str | None = None,
        in_line: bool = False,
    ) -> None:
        """Publish the work of items that can be taken, which the commit `causation` made ready, if that is known.

        Harmless if it is already waiting: the server keeps one. What stands in line needs no message: its place is one,
        unless who has that says so (`in_line`).
        """
        if state.is_in_line and not in_line:
            return
        for key, index in ready:
            self._waiting.put(work(state, key, index), partial(self._publish, state, causation))

    def _publish(self, state: RunState, causation: str | None, waiting: Work) -> None:
        # The subject says it all; who takes the work derives the rest from the log.
        message = self._envelope(WORK, None, state, causation=causation, phase=waiting.phase, attempt=waiting.attempt)
        try:
            self._connection.publish(self._log.subjects.work(waiting), encode(message))
            self._waiting.ring(waiting)
        except BusError as error:
            # The log has it as ready; the supervisor publishes what has no message.
            logger.warning("not dispatched", run=state.run, phase=waiting.phase, error=str(error))

    def halt(self, halts: Mapping[str, Halt]) -> None:
        """Tell instances what is no longer theirs. Harmless if they know: they look into the log."""
        for instance, halt in halts.items():
            try:
                self._connection.publish(self._log.subjects.halt(instance), msgspec.json.encode(halt))
            except BusError as error:
                # The supervisor sees in its beats that it goes on, and tells it again.
                logger.warning("not told to stop", instance=instance, error=str(error))

    async def append(self, after: RunState, commit: Commit, causation: str | None, before: RunState | None) -> int:
        subject = self._log.subjects.run(commit.run)
        message = self._envelope(
            events.COMMIT, events.body(commit.events), after, id=commit.id, at=commit.at, causation=causation
        )
        expected = before.position if before is not None else 0
        if before is None and after.key and not _is_for_later(commit):
            # First: whoever is handed it finds the run, or begins it from what the place holds.
            await self._log.append(self._line(after), placed(message))
        letters = dead.letters(before, commit)
        words = [self.resumed(after, causation=commit.id)] if is_resuming(before, after) else []
        if not letters and not words:
            return await self._log.append(subject, message, expected=expected)
        first = [Part(subject, message, expected), *words]
        try:
            return await self._append_with(first, [self._part(letter, after, commit) for letter in letters])
        except TooLarge:
            # The events themselves fit or raise again; letters repeat what the run's events hold.
            short = [self._part(dead.shortened(letter), after, commit) for letter in letters]
            return await self._append_with(first, short)

    async def _append_with(self, first: list[Part], letters: list[Part]) -> int:
        """Append the commit and its dead letters together; of very many, the rest in batches that follow."""
        position = await self._log.append_together(first + letters[:LETTERS_IN_BATCH])
        for begin in range(LETTERS_IN_BATCH, len(letters), LETTERS_IN_BATCH):
            await self._log.append_together(letters[begin : begin + LETTERS_IN_BATCH])
        return position

    async def begin(self, place: Envelope) -> None:
        """Store the beginning that a place holds, if nobody has: who sent it died, or has not come to that yet.

        Raises MalformedMessage, Unavailable.
        """
        message = beginning(place)
        assert message.runid is not None, "a place names its run"
        try:
            # Anybody could have published it.
            begun = fold([events.commit(message, 1)], None)
        except _NOT_FOLLOWING as error:
            raise MalformedMessage(f"the place of run {message.runid!r} holds no beginning: {error}") from error
        if begun is None or not begun.key:
            raise MalformedMessage(f"the place of run {message.runid!r} begins nothing that stands in line")
        try:
            await self._log.append(self._log.subjects.run(message.runid), message, expected=0)
        except VersionConflict:
            logger.debug("begun meanwhile", run=message.runid)

    async def line_up(self, run: str) -> None:
        """Let a run take its place now, that was begun for later. Once more does no harm. Raises Unavailable."""
        async with aclosing(self._log.read(self._log.subjects.run(run))) as records:
            first = (await anext(records)).envelope()
        state = await self.refresh(run, None)
        assert state is not None, "a run that has records has a state"
        await self._log.append(self._line(state), placed(first))

    def resumed(self, state: RunState, *, letter: str = "", causation: str | None = None) -> Part:
        """What says in its lane that the run's key may go on, for the batch that redrives the run, or discards its
        letter."""
        said = self._envelope(RESUMED, Resumed(state.key, letter), state, causation=causation)
        return Part(self._line(state), said)

    def _line(self, state: RunState) -> str:
        capability = state.capability(WORK_PHASE)
        assert capability is not None, "what has a key is a task"
        return self._log.subjects.line(capability, lane_of(state.key))

    async def complete_letters(self, before: RunState | None, commit: Commit) -> int:
        """Store the letters of a commit that are not there; returns how many. `before` is the run without it.

        Raises TooLarge, Unavailable.
        """
        there: set[str] = set()
        async for record in self._log.read(self._log.subjects.dead_letters, after=commit.position):
            try:
                message = record.envelope()
            except MalformedMessage:
                continue
            if message.causationid == commit.id:
                there.add(message.id)
        missing = [each for each in dead.letters(before, commit) if dead.name_of(each) not in there]
        after = evolve(before, commit)
        # In one stream of bytes, each for itself: a batch that holds an id the server knows is refused as a whole.
        async with self._log.pipeline() as pipeline:
            for letter in missing:
                try:
                    await pipeline.append(self._part(letter, after, commit))
                except TooLarge:
                    await pipeline.append(self._part(dead.shortened(letter), after, commit))
        return len(missing)

    def _part(self, letter: dead.DeadLetter, after: RunState, commit: Commit) -> Part:
        name = dead.name_of(letter)
        record = self._envelope(
            dead.LETTER, letter, after, id=name, at=commit.at, phase=letter.phase, causation=commit.id
        )
        return Part(self._log.subjects.dead(letter.capability), record)

    async def refresh(self, run: str, state: RunState | None) -> RunState | None:
        """The run with what was stored since. Raises Archived if only what an archived run leaves behind is there."""
        after = state.position if state is not None else 0
        records = [record async for record in self._log.read(self._log.subjects.run(run), after=after)]
        return fold_records(run, records, state)

    def _envelope(
        self,
        kind: str,
        data: object,
        state: RunState,
        *,
        id: str | None = None,
        at: datetime | None = None,
        causation: str | None = None,
        phase: str | None = None,
        attempt: int | None = None,
    ) -> Envelope:
        return envelope(
            kind,
            data,
            id=id or uuid4().hex,
            source=self._source,
            time=at or utc_now(),
            correlationid=state.correlation,
            causationid=causation,
            runid=state.run,
            phase=phase,
            attempt=attempt,
        )


def _is_for_later(commit: Commit) -> bool:
    """Whether what it makes ready may not begin yet."""
    return any(isinstance(event, events.PhaseReady) and event.due_at is not None for event in commit.events)


def fold_records(run: str, records: Sequence[Record], state: RunState | None) -> RunState | None:
    """The run after these records. What is not a commit of it, or does not follow, is set aside, and said.

    Raises Archived if the records begin where the run was archived.
    """
    try:
        return fold([commit_in(run, record) for record in records], state) if records else state
    except _NOT_FOLLOWING:
        pass
    for record in records:
        try:
            state = _with(run, record, state)
        except Archived:
            raise
        except _NOT_FOLLOWING as error:
            logger.exception("record set aside", run=run, position=record.position, error=str(error))
            if state is not None:
                # It counts as seen: the next commit is expected to stand after it.
                state = msgspec.structs.replace(state, position=record.position)
    return state


def _with(run: str, record: Record, state: RunState | None) -> RunState | None:
    commit = commit_in(run, record)
    if state is None and (last := archived(commit)) is not None:
        raise Archived(run, last.archive)
    return fold([commit], state)


def _readable(run: str, record: Record) -> list[Commit]:
    """The commit in a record, or none, and that is said."""
    try:
        return [commit_in(run, record)]
    except MalformedMessage as error:
        logger.warning("record set aside", run=run, position=record.position, error=str(error))
        return []


def commit_in(run: str, record: Record) -> Commit:
    """The commit of a run in a record on its subject. Raises MalformedMessage, also for another run's commit."""
    position = record.position
    commit = events.commit(record.envelope(), position, lambda type: report(type, run=run, position=position))
    if commit.run != run:
        raise MalformedMessage(f"position {record.position} holds a commit of {commit.run!r} on the subject of {run!r}")
    return commit
