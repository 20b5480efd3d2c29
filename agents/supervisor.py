"""The supervisor: the one process that acts when nobody else does.

It follows the log, keeps the open runs, and does what is due: delayed retries, deadlines, expiries, work that was
lost on its way, attempts whose process is gone. Everything it does is a command like anybody else's, guarded by the
run's version, so a second supervisor, or a result that arrives at the same moment, can't be harmed by it. One leads,
others stand by; while none lives, healthy runs go on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection
from datetime import timedelta

import structlog

from agents.census import Census
from agents.clockwork import Clockwork
from agents.docket import Docket, Key
from agents.leadership import Leadership
from bus import children
from bus.client import Client
from bus.commands import Cancel, Command, Fail
from bus.errors import BusError, NotFound, Refused, Unavailable
from bus.events import Cause, RunStarted, archived
from bus.folding import evolve
from bus.halts import Halt
from bus.inputs import work
from bus.ledger import commit_in, utc_now
from bus.presence import Held
from bus.problem import Problem
from bus.record import Record
from bus.run import PhaseState, RunState
from bus.schedule import Schedule
from bus.streams import info
from bus.timers import Timer

logger = structlog.get_logger(__name__)

_TICK_S = 0.05
_LOST_WORK_EVERY_S = 2.0
_FLOOR_EVERY_S = 5.0
_SCHEDULES_EVERY_S = 1.0
_AGAIN_S = 1.0


class Supervisor:
    """Leads or stands by until stopped. `name` tells supervisors apart in the lease."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._leadership = Leadership(client, name)
        self._lease_s = client.settings.lease_s
        self._suspects: asyncio.Queue[str] = asyncio.Queue()
        self._census = Census(client, self._suspects.put_nowait)
        self._docket = Docket()
        self._missing: dict[Key, float] = {}
        self._foreign: dict[str, set[Held]] = {}
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
                await self._step_down()
                if not stop.is_set():
                    await asyncio.wait({stopped}, timeout=min(self._lease_s / 3, 1.0))
        finally:
            stopped.cancel()

    async def _step_down(self) -> None:
        """Let another one lead: also after a term that failed, because only this one may be the reason."""
        try:
            await self._leadership.release()
        except BusError as error:
            logger.warning("lease not released", error=str(error))

    async def _term(self) -> None:
        """Become the leader and lead until the lease is lost. Returns, at once or then, if it can't be had."""
        await self._leadership.set_up()
        if not await self._leadership.claim():
            return
        logger.info("leading", lease=self._leadership.revision)
        self._docket, self._missing, self._foreign = Docket(), {}, {}
        newest = await self._client.log.last(self._client.subjects.runs)
        upto = newest.position if newest is not None else 0
        floor = await self._leadership.floor()
        # A floor above the log is not one of this log: everything is read.
        self._position = floor if floor <= upto else 0
        async with self._census.watching(), asyncio.TaskGroup() as tasks:
            tasks.create_task(self._renew())
            caught_up = asyncio.Event()
            tasks.create_task(self._track(upto, caught_up))
            await caught_up.wait()
            logger.info("watching", open_runs=len(self._docket), position=self._position)
            self.leads.set()
            tasks.create_task(self._every(_TICK_S, self._act_on_time))
            tasks.create_task(self._every(self._lease_s / 6, self._check_holders))
            tasks.create_task(self._every(_LOST_WORK_EVERY_S, self._restore_work))
            tasks.create_task(self._every(_LOST_WORK_EVERY_S, self._mind_children))
            tasks.create_task(self._every(_FLOOR_EVERY_S, self._raise_floor))
            tasks.create_task(self._heed_suspects())
            clockwork = Clockwork(self._client, self._open_run_of)
            tasks.create_task(self._every(_SCHEDULES_EVERY_S, clockwork.look))
            tasks.create_task(clockwork.serve())

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
                logger.warning("put off", act=act.__name__.strip("_"), error=str(error))
            except Exception:
                # One thing that can't be done must not keep this from everything else.
                logger.exception("bug", act=act.__name__.strip("_"))
            await asyncio.sleep(pause_s)

    # The log

    async def _track(self, newest: int, caught_up: asyncio.Event) -> None:
        if self._position >= newest:
            caught_up.set()
        async for record in self._client.log.follow(self._client.subjects.runs, after=self._position):
            try:
                await self._note(record)
            except Unavailable:
                raise
            except Exception:
                # Bytes that anybody could publish: they concern one run, and nobody else's.
                logger.exception("record set aside", subject=record.subject, position=record.position)
            self._position = record.position
            if record.position >= newest:
                caught_up.set()

    async def _note(self, record: Record) -> None:
        run = self._client.subjects.run_of(record.subject)
        commit = commit_in(run, record)
        if archived(commit) is not None:
            # It has ended, and does not go on.
            return
        before = self._docket.get(run)
        if before is None and not isinstance(commit.events[0], RunStarted):
            # An ended run goes on; its beginning is older than what has been followed.
            self._docket.note(await self._client.runs.load(run), record.position)
        else:
            self._docket.note(evolve(before, commit), record.position)

    async def _open_run_of(self, schedule: Schedule) -> str | None:
        """An open run of the schedule, as of all that is in the log by now."""
        newest = await self._client.log.last(self._client.subjects.runs)
        deadline = time.monotonic() + self._client.settings.request_timeout_s
        while newest is not None and self._position < newest.position:
            if time.monotonic() > deadline:
                raise Unavailable(f"the log was not followed up to position {newest.position}")
            await asyncio.sleep(_TICK_S / 10)
        return next(filter(schedule.has, self._docket.open_runs()), None)

    # Time

    async def _act_on_time(self) -> None:
        now = utc_now()
        await asyncio.gather(*(self._act(state, due) for state, due in self._docket.take_due(now)))

    async def _act(self, state: RunState, due: list[Timer]) -> None:
        try:
            # What was ready at once has been dispatched by whoever made it so; the time of a retry comes only now.
            delayed = [timer for timer in due if timer.kind == "dispatch" and _is_delayed(state, timer)]
            self._client.ledger.dispatch(state, [(timer.phase, timer.item) for timer in delayed])
            commands = [command for timer in due if (command := timer.command(state)) is not None]
            await asyncio.gather(*(self._submit(state.run, command) for command in commands))
        except Exception:
            asyncio.get_running_loop().call_later(_AGAIN_S, self._docket.arm, state.run)
            raise

    # Holders

    async def _heed_suspects(self) -> None:
        """Someone's connection has closed."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                instance = await self._suspects.get()
                if self._docket.held_by(instance):
                    tasks.create_task(self._examine(instance, "its connection closed"))

    async def _check_holders(self) -> None:
        holders = self._docket.holders
        silent = [instance for instance in holders if self._census.silent_s(instance) > self._lease_s]
        await asyncio.gather(*(self._examine(each, "its beats stopped") for each in silent))
        await asyncio.gather(*(self._check_forgotten(each) for each in holders))
        self._tell_again()
        self._census.forget(holders)

    async def _examine(self, instance: str, evidence: str) -> None:
        """Confirm a suspicion, and take back what the instance holds if it is true."""
        try:
            fate = await self._census.confirm(instance)
            if fate == "frozen" and self._census.silent_s(instance) <= self._lease_s:
                # It has a lease to answer in.
                return
            if fate != "alive":
                await self._recover(instance, self._docket.held_by(instance), fate, evidence)
        except BusError as error:
            # It stays silent, so it is examined again.
            logger.warning("not examined", instance=instance, error=str(error))

    async def _check_forgotten(self, instance: str) -> None:
        """A living instance that does not list an attempt for a whole lease has lost it, or could not store its end."""
        beat = self._census.beat(instance)
        now = time.monotonic()
        listed = {(each.run, each.phase, each.item, each.attempt) for each in beat.held} if beat is not None else set()
        forgotten: list[Key] = []
        for key in self._docket.held_by(instance):
            if beat is None or key in listed:
                self._missing.pop(key, None)
            elif now - self._missing.setdefault(key, now) > self._lease_s:
                del self._missing[key]
                forgotten.append(key)
        if forgotten:
            await self._recover(instance, forgotten, "forgotten", "it lives, but does not hold the attempt")

    def _tell_again(self) -> None:
        """An instance that still lists what is not its own has not heard that it was taken from it."""
        foreign: dict[str, set[Held]] = {}
        for beat in self._census.beats:
            own = {Held(*key) for key in self._docket.held_by(beat.instance)}
            foreign[beat.instance] = set(beat.held) - own
        # Seen twice: what it has only just taken may not have been read here yet.
        again = {each: held & self._foreign.get(each, set()) for each, held in foreign.items()}
        self._foreign = foreign
        self._client.ledger.halt(
            {each: Halt(tuple(held), "the log has it as over") for each, held in again.items() if held}
        )

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
        late = list(self._docket.ready_since(utc_now() - timedelta(seconds=_LOST_WORK_EVERY_S / 2)))
        if not late:
            return
        there = await self._work_subjects()
        for state, timer in late:
            if self._client.subjects.work(work(state, timer.phase, timer.item)) not in there:
                logger.warning("work restored", run=state.run, phase=timer.phase, item=timer.item)
                self._client.ledger.dispatch(state, [(timer.phase, timer.item)])

    async def _mind_children(self) -> None:
        """Start, report and stop what parents and children should have been told, and were not."""
        late = utc_now() - timedelta(seconds=_LOST_WORK_EVERY_S / 2)
        for state in self._docket:
            for phase in state.phases.values():
                is_late = phase.opened_at is not None and phase.opened_at < late
                if phase.status == "waiting" and phase.child and is_late and self._docket.get(phase.child) is None:
                    await self._settle_child(state, phase)
            if state.parent is not None and not children.is_wanted(state, self._docket.get(state.parent.run)):
                await self._submit(state.run, Cancel(by="supervisor", reason="its parent does not wait for it"))

    async def _settle_child(self, parent: RunState, phase: PhaseState) -> None:
        try:
            child = await self._client.runs.load(phase.child)
        except NotFound:
            logger.warning("child started", run=parent.run, phase=phase.key, child=phase.child)
            await self._submit(*children.begin(parent, phase))
            return
        if not child.is_open:
            await self._submit(*children.report(child))

    async def _work_subjects(self) -> Collection[str]:
        stream, timeout_s = self._client.subjects.work_stream, self._client.settings.request_timeout_s
        try:
            return (await info(self._client.connection, stream, timeout_s, subjects=">")).subjects
        except NotFound:
            # A worker makes it again; nothing waits in it.
            return ()

    async def _raise_floor(self) -> None:
        await self._leadership.raise_floor(self._docket.floor(self._position))


def _is_delayed(state: RunState, timer: Timer) -> bool:
    """Whether it was made ready for a later time: a retry, or work that was sent with a delay."""
    opened_at = state.phases[timer.phase].opened_at
    return timer.attempt > 1 or (timer.item is None and opened_at is not None and timer.at > opened_at)


_WORDS = {
    "crashed": "is gone",
    "frozen": "does not answer: it is frozen, or a handler blocks its event loop (a plain `def` runs in a thread)",
    "forgotten": "has lost the attempt",
}


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
