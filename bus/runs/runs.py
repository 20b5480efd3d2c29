"""Runs on the log: read the tail, decide, append, dispatch; on conflict, read what came in between and decide again.

Commands for the same run that meet in one process are decided together and stored as one commit, so a wide fan-in
costs fewer appends the busier it gets. Whoever commits also dispatches: work follows the commit that made it ready.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict, deque
from collections.abc import Coroutine, Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import uuid4

import msgspec
import structlog
from msgspec.structs import replace

from bus.clock import utc_now
from bus.errors import BusError, MalformedMessage, NotFound, Refused, TooLarge, Unavailable
from bus.log.log import VersionConflict
from bus.registry.signposts import Signposts
from bus.rules.commands import Begin, Command, Together
from bus.rules.decide import carry_out
from bus.rules.events import Commit, Event, PhaseReady
from bus.rules.folding import placed
from bus.rules.route import Routes
from bus.rules.run import RunState
from bus.runs import children
from bus.runs.causality import Facts, served
from bus.runs.halts import halts
from bus.runs.ledger import Ledger, fold_records

logger = structlog.get_logger(__name__)

_CACHED_RUNS = 1_000
_BATCH = 200


class Decided(msgspec.Struct, frozen=True):
    """What a command led to: its own events, and the run as of the commit that holds them, which is called `commit`."""

    events: Sequence[Event]
    state: RunState
    commit: str


class _Waiting(msgspec.Struct):
    command: Command
    done: asyncio.Future[Decided]
    causation: str | None
    id: str | None


class _Lane(msgspec.Struct):
    """One run in this process: the newest state known, and the commands that wait to be decided."""

    state: RunState | None = None
    waiting: deque[_Waiting] = msgspec.field(default_factory=deque)
    busy: bool = False


class Runs:
    """Every run of a namespace, as one process sees and moves them. `tasks` outlives whatever is submitted."""

    def __init__(self, ledger: Ledger, tasks: asyncio.TaskGroup, signposts: Signposts) -> None:
        self.sender = secrets.token_hex(4)
        """On whose account work waits that nobody else is named for: each client is a sender of its own."""
        self._ledger = ledger
        self._signposts = signposts
        self._tasks = tasks
        self._lanes: OrderedDict[str, _Lane] = OrderedDict()
        self._is_closed = False

    def close(self) -> None:
        """Take nothing more. What was submitted is still carried out, and what follows from it."""
        self._is_closed = True

    async def submit(
        self, run: str, command: Command, *, causation: str | None = None, id: str | None = None
    ) -> Decided:
        """Carry out a command; it is in the log when this returns.

        `causation` is the id of what it came of; within a handler, that of what the handler serves. `id` is what the
        commit is to be called, if this is the first command in it.
        Raises Refused with the reason if the run's present state does not allow it, TooLarge, Unavailable.
        Cancelling the caller does not take the command back.
        """
        if self._is_closed:
            raise Unavailable("the client is closed")
        return await self._submit(run, command, causation, id)

    def soon(self, doing: Coroutine[Any, Any, None]) -> None:
        """Have something done in the background, within the client's life. What it raises ends the client."""
        if self._is_closed:
            doing.close()
            return
        try:
            self._tasks.create_task(doing)
        except RuntimeError:
            doing.close()

    async def _submit(self, run: str, command: Command, causation: str | None, id: str | None = None) -> Decided:
        if (facts := served()) is not None:
            causation = causation or facts.causation
            if isinstance(command, Begin):
                command = _begun_for(command, facts)
        if isinstance(command, Begin) and not command.sender:
            command = replace(command, sender=self.sender)
        lane = self._lane(run)
        waiting = _Waiting(command, asyncio.get_running_loop().create_future(), causation, id)
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

    async def _follow(self, run: str, command: Command, causation: str) -> None:
        """Do for another run what a commit of this one leads to."""
        try:
            await self._submit(run, command, causation)
        except BusError as error:
            # It was done before, or the supervisor does it.
            logger.debug("not followed", run=run, command=type(command).__name__, reason=str(error))

    async def load(self, run: str) -> RunState:
        """The run as it is now. Raises NotFound."""
        lane = self._lane(run)
        state = await self._ledger.refresh(run, lane.state)
        if state is None:
            raise NotFound(f"there is no run {run!r} in this log")
        if not lane.busy:
            lane.state = state
        return state

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
                    await self._store(run, lane, batch)
                except Exception as error:  # noqa: BLE001 - it is raised where the command was submitted
                    # What this process knows of the run may be behind what was stored.
                    lane.state = None
                    _reject(batch, error)
                except BaseException:
                    _reject([*batch, *lane.waiting], Unavailable("the client was closed before the answer came"))
                    raise
        finally:
            lane.busy = False

    async def _store(self, run: str, lane: _Lane, batch: list[_Waiting]) -> None:
        """Commit the batch. Where together they are over the limit, the first alone: what is left of `batch`.

        The others wait for their turn again; alone, only what is really too large is.
        """
        try:
            await self._commit(run, lane, batch)
        except TooLarge:
            if len(batch) == 1:
                raise
            lane.waiting.extendleft(reversed(batch[1:]))
            del batch[1:]
            await self._commit(run, lane, batch)

    async def _commit(self, run: str, lane: _Lane, batch: list[_Waiting]) -> None:
        """Decide the batch on the newest state, and store what comes of it as one commit."""
        # What begins a run expects that there is none: it need not be looked for first.
        is_fresh = lane.state is None and _beginning(batch[0].command) is None
        state = await self._ledger.refresh(run, None) if is_fresh else lane.state
        identity = batch[0].id or uuid4().hex
        await self._signposts.known()
        routes = self._signposts.standing
        while True:
            now = utc_now()
            decided, refused, after = _decide(run, state, batch, now, routes)
            if refused and not is_fresh:
                # A refusal must be true now, not as of what this process happened to know.
                state, is_fresh = await self._ledger.refresh(run, state), True
                continue
            happened = [event for _, caused in decided for event in caused]
            if not happened:
                lane.state = state
                break
            commit = Commit(run, identity, now, (state.position if state else 0) + 1, happened)
            assert after is not None, "a commit leaves a state"
            try:
                position = await self._ledger.append(after, commit, _shared_causation(batch), state)
            except VersionConflict as conflict:
                newer = fold_records(run, conflict.tail, state)
                if newer is None or newer.position == (state.position if state is not None else 0):
                    raise MalformedMessage(f"what stands on the subject of run {run!r} is no run") from conflict
                state, is_fresh = newer, not conflict.has_more
                continue
            lane.state = placed(after, happened, state.position if state else 0, position)
            self._ledger.dispatch(lane.state, _still_ready(lane.state, happened), causation=identity)
            self._ledger.halt(halts(state, lane.state, happened))
            for other, command in children.steps(state, lane.state):
                self._tasks.create_task(self._follow(other, command, identity))
            break
        for waiting, caused in decided:
            if not waiting.done.done():
                assert lane.state is not None, "what was decided has a state"
                waiting.done.set_result(Decided(caused, lane.state, identity))
        for waiting, error in refused:
            _reject([waiting], error)


def _decide(
    run: str, state: RunState | None, batch: list[_Waiting], now: datetime, routes: Routes
) -> tuple[list[tuple[_Waiting, Sequence[Event]]], list[tuple[_Waiting, Refused]], RunState | None]:
    """Each command on the state that the ones before it leave; and the state that the last one leaves."""
    decided: list[tuple[_Waiting, Sequence[Event]]] = []
    refused: list[tuple[_Waiting, Refused]] = []
    for waiting in batch:
        try:
            state, caused = carry_out(state, waiting.command, run=run, now=now, routes=routes)
        except Refused as error:
            refused.append((waiting, error))
            continue
        decided.append((waiting, caused))
    return decided, refused, state


def _begun_for(begin: Begin, facts: Facts) -> Begin:
    """The beginning as one of the story that a handler serves: its work waits where the handler's has."""
    return replace(
        begin,
        correlation=begin.correlation or facts.correlation,
        priority=begin.priority or begin.plan.priority or facts.priority,
        sender=begin.sender or facts.sender,
        sticky=begin.sticky or ("" if begin.key else facts.sticky),
    )


def _beginning(command: Command) -> Begin | None:
    """The beginning that the command is, or holds."""
    if isinstance(command, Together):
        command = command.commands[0]
    return command if isinstance(command, Begin) else None


def _shared_causation(batch: list[_Waiting]) -> str | None:
    """What caused the commit, if one message did."""
    causes = {waiting.causation for waiting in batch}
    return causes.pop() if len(causes) == 1 else None


def _still_ready(state: RunState, happened: Iterable[Event]) -> list[tuple[str, int | None]]:
    """What the commit made ready and did not use up itself. Of a paused run nothing can be taken."""
    if state.paused_at is not None:
        return []
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
