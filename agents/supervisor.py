"""The supervisor: the one process that acts when nobody else does.

It follows the log, keeps the open runs, and does what is due: delayed retries, deadlines, expiries, work that was
lost on its way, attempts whose process is gone. Everything it does is a command like anybody else's, guarded by the
run's version, so a second supervisor, or a result that arrives at the same moment, can't be harmed by it. One leads,
others stand by; while none lives, healthy runs go on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import datetime

import msgspec
import structlog

from agents.census import Census
from agents.leadership import Leadership
from bus import events
from bus.client import Client
from bus.commands import Command, Fail
from bus.errors import BusError, MalformedMessage, Refused
from bus.events import Cause, Commit, RunStarted
from bus.log import Record
from bus.problem import Problem
from bus.run import RunState, fold
from bus.runs import utc_now
from bus.subjects import Work
from bus.timers import Timer, armed

logger = structlog.get_logger(__name__)

_TICK_S = 0.05
_LOST_WORK_EVERY_S = 2.0
_FLOOR_EVERY_S = 5.0

Key = tuple[str, str, int | None, int]
"""An attempt: run, phase, item, number."""


class Supervisor:
    """Leads or stands by until stopped. `name` tells supervisors apart in the lease."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._leadership = Leadership(client, name)
        self._lease_s = client.settings.lease_s
        self._suspects: asyncio.Queue[str] = asyncio.Queue()
        self._census = Census(client, self._suspects.put_nowait)
        self._open: dict[str, RunState] = {}
        self._began: dict[str, int] = {}
        self._due: dict[str, list[Timer]] = {}
        self._missing: dict[Key, float] = {}
        self._position = 0
        self.leads = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. An unreachable server is waited for; nothing ends this but `stop`."""
        stopped = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                term = asyncio.create_task(self._term())
                await asyncio.wait({term, stopped}, return_when=asyncio.FIRST_COMPLETED)
                await _ended(term)
                self.leads.clear()
                if not stop.is_set():
                    await asyncio.wait({stopped}, timeout=min(self._lease_s / 3, 1.0))
            await self._leadership.release()
        except BusError as error:
            logger.warning("lease not released", error=str(error))
        finally:
            stopped.cancel()

    async def _term(self) -> None:
        """Become the leader and lead until the lease is lost. Returns, at once or then, if it can't be had."""
        await self._leadership.set_up()
        if not await self._leadership.claim():
            return
        logger.info("leading", lease=self._leadership.revision)
        self._open, self._began, self._due, self._missing = {}, {}, {}, {}
        self._position = await self._leadership.floor()
        newest = await self._client.log.last(self._client.subjects.runs)
        async with self._census.watching(), asyncio.TaskGroup() as tasks:
            tasks.create_task(self._renew())
            caught_up = asyncio.Event()
            tasks.create_task(self._track(newest.position if newest else 0, caught_up))
            await caught_up.wait()
            logger.info("watching", open_runs=len(self._open), position=self._position)
            self.leads.set()
            tasks.create_task(self._every(_TICK_S, self._act_on_time))
            tasks.create_task(self._every(self._lease_s / 6, self._check_holders))
            tasks.create_task(self._every(_LOST_WORK_EVERY_S, self._restore_work))
            tasks.create_task(self._every(_FLOOR_EVERY_S, self._raise_floor))
            tasks.create_task(self._heed_suspects())

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._leadership.ttl_s / 3)
            if not await self._leadership.claim():
                raise _Deposed

    async def _every(self, pause_s: float, act: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await act()
            except BusError as error:
                # It is due again in a moment, and nothing of it is remembered here only.
                logger.warning("put off", act=act.__name__.strip("_"), error=str(error))
            await asyncio.sleep(pause_s)

    # The log

    async def _track(self, newest: int, caught_up: asyncio.Event) -> None:
        if self._position >= newest:
            caught_up.set()
        async for record in self._client.log.follow(self._client.subjects.runs, after=self._position):
            try:
                await self._note(record)
            except (MalformedMessage, AssertionError, KeyError):
                logger.exception("unreadable commit", position=record.position)
            self._position = record.position
            if record.position >= newest:
                caught_up.set()

    async def _note(self, record: Record) -> None:
        commit = events.commit(record.envelope(), record.position)
        state = await self._fold(commit)
        if state.is_open:
            self._open[commit.run] = state
            self._began.setdefault(commit.run, commit.position)
            self._due[commit.run] = sorted(armed(state))
        else:
            for known in (self._open, self._began, self._due):
                known.pop(commit.run, None)

    async def _fold(self, commit: Commit) -> RunState:
        before = self._open.get(commit.run)
        if before is None and not isinstance(commit.events[0], RunStarted):
            # An ended run goes on; its beginning is older than what has been followed.
            return await self._client.runs.load(commit.run)
        after = fold([commit], before)
        assert after is not None, "a commit folds to a state"
        return after

    # Time

    async def _act_on_time(self) -> None:
        now = utc_now()
        due = [(run, timers) for run, timers in self._due.items() if timers and timers[0].at <= now]
        await asyncio.gather(*(self._act(run, timers, now) for run, timers in due))

    async def _act(self, run: str, timers: list[Timer], now: datetime) -> None:
        due = [timer for timer in timers if timer.at <= now]
        del timers[: len(due)]
        state = self._open[run]
        # What was ready at once has been dispatched by whoever made it so; a retry's time comes only now.
        delayed = [t for t in due if t.kind == "dispatch" and t.attempt > 1]
        self._client.runs.dispatch(state, [(timer.phase, timer.item) for timer in delayed])
        commands = [command for timer in due if (command := timer.command(state)) is not None]
        await asyncio.gather(*(self._submit(run, command) for command in commands))

    # Holders

    async def _heed_suspects(self) -> None:
        """Someone's connection has closed."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                instance = await self._suspects.get()
                if self._held_by(instance):
                    tasks.create_task(self._examine(instance, "its connection closed"))

    async def _check_holders(self) -> None:
        holders = {attempt.instance for state in self._open.values() for _, _, attempt in state.held()}
        silent = [instance for instance in holders if self._census.silent_s(instance) > self._lease_s]
        await asyncio.gather(*(self._examine(each, "its beats stopped") for each in silent))
        await asyncio.gather(*(self._check_forgotten(each) for each in holders))
        self._census.forget(holders)

    async def _examine(self, instance: str, evidence: str) -> None:
        try:
            fate = await self._census.confirm(instance)
        except BusError as error:
            logger.warning("not confirmed", instance=instance, error=str(error))
            return
        if fate == "frozen" and self._census.silent_s(instance) <= self._lease_s:
            # It has a lease to answer in.
            return
        if fate != "alive":
            await self._recover(instance, self._held_by(instance), fate, evidence)

    async def _check_forgotten(self, instance: str) -> None:
        """A living instance that does not list an attempt for a whole lease has lost it, or could not store its end."""
        beat = self._census.beat(instance)
        now = time.monotonic()
        listed = {(each.run, each.phase, each.item, each.attempt) for each in beat.held} if beat is not None else set()
        forgotten: list[Key] = []
        for key in self._held_by(instance):
            if beat is None or key in listed:
                self._missing.pop(key, None)
            elif now - self._missing.setdefault(key, now) > self._lease_s:
                del self._missing[key]
                forgotten.append(key)
        if forgotten:
            await self._recover(instance, forgotten, "forgotten", "it lives, but does not hold the attempt")

    def _held_by(self, instance: str) -> list[Key]:
        return [
            (state.run, phase.key, item.index, attempt.number)
            for state in self._open.values()
            for phase, item, attempt in state.held()
            if attempt.instance == instance
        ]

    async def _recover(self, instance: str, held: list[Key], cause: Cause, evidence: str) -> None:
        problem = Problem("lost", f"{instance} {_WORDS[cause]}", "transient", detail=evidence)
        for run, phase, item, attempt in held:
            logger.warning("recovering", run=run, phase=phase, item=item, attempt=attempt, cause=cause)
        await asyncio.gather(
            *(
                self._submit(run, Fail(phase, item, attempt, instance, problem, cause, evidence))
                for run, phase, item, attempt in held
            )
        )

    async def _submit(self, run: str, command: Command) -> None:
        try:
            await self._client.runs.submit(run, command)
        except Refused as error:
            logger.debug("already settled", run=run, command=type(command).__name__, reason=error.reason)

    # Work

    async def _restore_work(self) -> None:
        """Publish again what is ready in the log but has no message: it was lost on its way."""
        before = utc_now().timestamp() - _LOST_WORK_EVERY_S / 2
        late = [
            (state, timer)
            for run, state in self._open.items()
            for timer in armed(state)
            if timer.kind == "dispatch" and timer.at.timestamp() < before
        ]
        if not late:
            return
        there = await self._work_subjects()
        for state, timer in late:
            capability = state.plan.graph[timer.phase].phase.capability or ""
            work = Work(capability, state.run, timer.phase, timer.item, timer.attempt)
            if self._client.subjects.work(work) not in there:
                logger.warning("work restored", run=state.run, phase=timer.phase, item=timer.item)
                self._client.runs.dispatch(state, [(timer.phase, timer.item)])

    async def _work_subjects(self) -> set[str]:
        subjects = self._client.subjects
        there: set[str] = set()
        while True:
            request = msgspec.json.encode({"subjects_filter": ">", "offset": len(there)})
            subject = f"$JS.API.STREAM.INFO.{subjects.work_stream}"
            answer = await self._client.connection.request(
                subject, request, timeout_s=self._client.settings.request_timeout_s
            )
            page = _info.decode(answer.data)
            found = page.state.subjects or {}
            there.update(found)
            if not found or len(there) >= page.total:
                return there

    async def _raise_floor(self) -> None:
        floor = min(self._began.values(), default=self._position + 1) - 1
        await self._leadership.raise_floor(floor)


_WORDS = {"crashed": "is gone", "frozen": "does not answer", "forgotten": "has lost the attempt"}


class _StreamState(msgspec.Struct, frozen=True):
    subjects: dict[str, int] | None = None


class _Info(msgspec.Struct, frozen=True):
    state: _StreamState = _StreamState()
    total: int = 0


_info = msgspec.json.Decoder(_Info)


class _Deposed(Exception):
    """The lease is somebody else's now."""


async def _ended(term: asyncio.Task[None]) -> None:
    """Wait for a term to end, and say why it did. A bug is raised; a lost lease or line is not one."""
    term.cancel()
    await asyncio.wait({term})
    error = None if term.cancelled() else term.exception()
    if error is None:
        return
    reasons, bugs = (error, None) if isinstance(error, BusError) else _split(error)
    if bugs is not None:
        raise bugs
    logger.warning("term ended", reason=str(reasons))


def _split(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    if isinstance(error, BaseExceptionGroup):
        return error.split((_Deposed, BusError))
    return None, error
