"""Runs on the log: read the tail, decide, append, dispatch; on conflict, read what came in between and decide again.

Commands for the same run that meet in one process are decided together and stored as one commit, so a wide fan-in
costs fewer appends the busier it gets. Whoever commits also dispatches: work follows the commit that made it ready.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from uuid import uuid4

import msgspec
import structlog

from bus import dead, events
from bus.commands import Command
from bus.connection import Connection
from bus.decide import decide
from bus.envelope import Envelope, encode, envelope
from bus.errors import BusError, MalformedMessage, NotFound, Refused, TooLarge, Unavailable
from bus.events import Commit, Event, PhaseReady
from bus.folding import Folding, fold
from bus.inputs import work
from bus.log import Log, VersionConflict
from bus.record import Record
from bus.run import RunState

logger = structlog.get_logger(__name__)

WORK = "phase.work.v1"
_CACHED_RUNS = 1_000
_BATCH = 200
# How bytes that anybody could publish fail to be a commit: undecodable, or about phases that are not there.
_NOT_FOLLOWING = (MalformedMessage, AssertionError, LookupError, ValueError, TypeError, AttributeError, OverflowError)
_LETTERS_IN_BATCH = 500
_PAUSE_S = 0.2


class Decided(msgspec.Struct, frozen=True):
    """What a command led to: its own events, and the run as of the commit that holds them."""

    events: Sequence[Event]
    state: RunState


class _Waiting(msgspec.Struct):
    command: Command
    done: asyncio.Future[Decided]
    causation: str | None


class _Lane(msgspec.Struct):
    """One run in this process: the newest state known, and the commands that wait to be decided."""

    state: RunState | None = None
    waiting: deque[_Waiting] = msgspec.field(default_factory=deque)
    busy: bool = False


def utc_now() -> datetime:
    return datetime.now(UTC)


class Runs:
    """Every run of a namespace, as one process sees and moves them. `tasks` outlives whatever is submitted."""

    def __init__(
        self,
        log: Log,
        connection: Connection,
        tasks: asyncio.TaskGroup,
        *,
        source: str,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._log = log
        self._connection = connection
        self._tasks = tasks
        self._source = source
        self._clock = clock
        self._lanes: OrderedDict[str, _Lane] = OrderedDict()

    async def submit(self, run: str, command: Command, *, causation: str | None = None) -> Decided:
        """Carry out a command; it is in the log when this returns.

        Raises Refused with the reason if the run's present state does not allow it, TooLarge, Unavailable.
        Cancelling the caller does not take the command back.
        """
        lane = self._lane(run)
        waiting = _Waiting(command, asyncio.get_running_loop().create_future(), causation)
        lane.waiting.append(waiting)
        if not lane.busy:
            serving = self._serve(run, lane)
            try:
                self._tasks.create_task(serving)
            except RuntimeError:
                serving.close()
                lane.waiting.clear()
                raise Unavailable("the client is closed") from None
            lane.busy = True
        return await waiting.done

    async def load(self, run: str) -> RunState:
        """The run as it is now. Raises NotFound."""
        lane = self._lane(run)
        state = await self._refresh(run, lane.state)
        if state is None:
            raise NotFound(f"there is no run {run!r} in this log")
        if not lane.busy:
            lane.state = state
        return state

    async def as_of(self, run: str, position: int) -> RunState:
        """The run as it was at a position of the log. Raises NotFound if it had not started then."""
        subject = self._log.subjects.run(run)
        state = _fold(run, [record async for record in self._log.read(subject, upto=position)], None)
        if state is None:
            raise NotFound(f"there was no run {run!r} at position {position}")
        return state

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

    def dispatch(self, state: RunState, ready: Iterable[tuple[str, int | None]]) -> None:
        """Publish the work of items that can be taken. Harmless if it is already waiting: the server keeps one."""
        for key, index in ready:
            waiting = work(state, key, index)
            # The subject says it all; who takes the work derives the rest from the log.
            message = self._envelope(WORK, None, state, phase=key, attempt=waiting.attempt)
            try:
                self._connection.publish(self._log.subjects.work(waiting), encode(message))
            except BusError as error:
                # The log has it as ready; the supervisor publishes what has no message.
                logger.warning("not dispatched", run=state.run, phase=key, error=str(error))

    def _lane(self, run: str) -> _Lane:
        lane = self._lanes.get(run)
        if lane is None:
            lane = self._lanes[run] = _Lane()
            if len(self._lanes) > _CACHED_RUNS:
                idle = next((name for name, other in self._lanes.items() if not other.busy), None)
                if idle is not None:
                    del self._lanes[idle]
        else:
            self._lanes.move_to_end(run)
        return lane

    async def _serve(self, run: str, lane: _Lane) -> None:
        try:
            while lane.waiting:
                batch = [lane.waiting.popleft() for _ in range(min(len(lane.waiting), _BATCH))]
                try:
                    await self._commit(run, lane, batch)
                except TooLarge as error:
                    await self._one_by_one(run, lane, batch, error)
                except Exception as error:  # noqa: BLE001 - it is raised where the command was submitted
                    # What this process knows of the run may be behind what was stored.
                    lane.state = None
                    _reject(batch, error)
                except BaseException:
                    _reject([*batch, *lane.waiting], Unavailable("the client was closed before the answer came"))
                    raise
        finally:
            lane.busy = False

    async def _one_by_one(self, run: str, lane: _Lane, batch: list[_Waiting], error: TooLarge) -> None:
        """Together they were over the limit; alone, only what is really too large is."""
        if len(batch) == 1:
            _reject(batch, error)
            return
        lane.waiting.extendleft(reversed(batch[1:]))
        try:
            await self._commit(run, lane, batch[:1])
        except BusError as alone:
            _reject(batch[:1], alone)

    async def _commit(self, run: str, lane: _Lane, batch: list[_Waiting]) -> None:
        """Decide the batch on the newest state, and store what comes of it as one commit."""
        is_fresh = lane.state is None
        state = await self._refresh(run, None) if is_fresh else lane.state
        identity = uuid4().hex
        while True:
            now = self._clock()
            decided, refused = _decide(run, state, batch, now)
            if refused and not is_fresh:
                # A refusal must be true now, not as of what this process happened to know.
                state, is_fresh = await self._refresh(run, state), True
                continue
            happened = [event for _, caused in decided for event in caused]
            if not happened:
                lane.state = state
                break
            commit = Commit(run, identity, now, (state.position if state else 0) + 1, happened)
            after = fold([commit], state)
            assert after is not None, "a commit leaves a state"
            try:
                position = await self._append(after, commit, _shared_causation(batch), state)
            except VersionConflict as conflict:
                newer = _fold(run, conflict.tail, state)
                if newer is None or newer.position == (state.position if state is not None else 0):
                    raise MalformedMessage(f"what stands on the subject of run {run!r} is no run") from conflict
                state, is_fresh = newer, True
                continue
            lane.state = msgspec.structs.replace(after, position=position)
            self.dispatch(lane.state, _still_ready(lane.state, happened))
            break
        for waiting, caused in decided:
            if not waiting.done.done():
                assert lane.state is not None, "what was decided has a state"
                waiting.done.set_result(Decided(caused, lane.state))
        for waiting, error in refused:
            _reject([waiting], error)

    async def _append(self, after: RunState, commit: Commit, causation: str | None, before: RunState | None) -> int:
        subject = self._log.subjects.run(commit.run)
        message = self._envelope(
            events.COMMIT, events.body(commit.events), after, id=commit.id, at=commit.at, causation=causation
        )
        expected = before.position if before is not None else 0
        letters = dead.letters(after, commit.events)
        if not letters:
            return await self._log.append(subject, message, expected=expected)
        try:
            return await self._append_with(subject, message, expected, letters, after, commit)
        except TooLarge:
            # The events themselves fit or raise again; letters repeat what the run's events hold.
            short = [dead.shortened(letter) for letter in letters]
            return await self._append_with(subject, message, expected, short, after, commit)

    async def _append_with(
        self,
        subject: str,
        message: Envelope,
        expected: int,
        letters: Sequence[dead.DeadLetter],
        after: RunState,
        commit: Commit,
    ) -> int:
        """Append the commit and its dead letters together; of very many, the rest in batches that follow."""
        parts: list[tuple[str, Envelope, int | None]] = [(subject, message, expected)]
        for letter in letters:
            record = self._envelope(dead.LETTER, letter, after, at=commit.at, phase=letter.phase, causation=commit.id)
            parts.append((self._log.subjects.dead(letter.capability), record, None))
        position = await self._log.append_together(parts[: _LETTERS_IN_BATCH + 1])
        for begin in range(_LETTERS_IN_BATCH + 1, len(parts), _LETTERS_IN_BATCH):
            await self._log.append_together(parts[begin : begin + _LETTERS_IN_BATCH])
        return position

    async def _refresh(self, run: str, state: RunState | None) -> RunState | None:
        """The run with what was stored since. Insists like an append, when the line breaks on the way."""
        after = state.position if state is not None else 0
        deadline = time.monotonic() + self._log.patience_s
        while True:
            try:
                records = [record async for record in self._log.read(self._log.subjects.run(run), after=after)]
                return _fold(run, records, state)
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_PAUSE_S)

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
            time=at or self._clock(),
            correlationid=state.correlation,
            causationid=causation,
            runid=state.run,
            phase=phase,
            attempt=attempt,
        )


def _decide(
    run: str, state: RunState | None, batch: list[_Waiting], now: datetime
) -> tuple[list[tuple[_Waiting, Sequence[Event]]], list[tuple[_Waiting, Refused]]]:
    """Each command on the state that the ones before it leave."""
    decided: list[tuple[_Waiting, Sequence[Event]]] = []
    refused: list[tuple[_Waiting, Refused]] = []
    folding = Folding(state)
    for waiting in batch:
        try:
            caused = decide(folding.state, waiting.command, run=run, now=now)
        except Refused as error:
            refused.append((waiting, error))
            continue
        folding.add(Commit(run, "", now, (folding.state.position if folding.state else 0) + 1, caused))
        decided.append((waiting, caused))
    return decided, refused


def _shared_causation(batch: list[_Waiting]) -> str | None:
    """What caused the commit, if one message did."""
    causes = {waiting.causation for waiting in batch}
    return causes.pop() if len(causes) == 1 else None


def _fold(run: str, records: Sequence[Record], state: RunState | None) -> RunState | None:
    """The run after these records. What is not a commit of it, or does not follow, is set aside, and said."""
    try:
        return fold([commit_in(run, record) for record in records], state) if records else state
    except _NOT_FOLLOWING:
        pass
    for record in records:
        try:
            state = fold([commit_in(run, record)], state)
        except _NOT_FOLLOWING as error:
            logger.exception("record set aside", run=run, position=record.position, error=str(error))
            if state is not None:
                # It counts as seen: the next commit is expected to stand after it.
                state = msgspec.structs.replace(state, position=record.position)
    return state


def _readable(run: str, record: Record) -> list[Commit]:
    """The commit in a record, or none, and that is said."""
    try:
        return [commit_in(run, record)]
    except MalformedMessage as error:
        logger.warning("record set aside", run=run, position=record.position, error=str(error))
        return []


def commit_in(run: str, record: Record) -> Commit:
    """The commit of a run in a record on its subject. Raises MalformedMessage, also for another run's commit."""
    commit = events.commit(record.envelope(), record.position)
    if commit.run != run:
        raise MalformedMessage(f"position {record.position} holds a commit of {commit.run!r} on the subject of {run!r}")
    return commit


def _still_ready(state: RunState, happened: Iterable[Event]) -> list[tuple[str, int | None]]:
    """What the commit made ready and did not use up itself."""
    return [
        (event.phase, event.item)
        for event in happened
        if isinstance(event, PhaseReady) and event.due_at is None and _is_ready(state, event)
    ]


def _is_ready(state: RunState, event: PhaseReady) -> bool:
    item = state.phases[event.phase].item(event.item)
    return item is not None and (item.status, item.attempt) == ("ready", event.attempt)


def _reject(batch: Iterable[_Waiting], error: Exception) -> None:
    for waiting in batch:
        if not waiting.done.done():
            waiting.done.set_exception(error)
