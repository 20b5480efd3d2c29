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
from datetime import timedelta

import structlog
from msgspec.structs import replace

from agents.backlog import Backlog
from agents.clerk import Clerk
from agents.clockwork import Clockwork
from agents.custody import Custody
from agents.detours import Detours
from agents.directory import Directory
from agents.docket import Docket
from agents.herald import Herald, Need
from agents.leadership import Leadership
from agents.registrar import Registrar
from agents.sweep import Sweep
from bus.client import Client
from bus.clock import utc_now
from bus.errors import BusError, NotFound, Refused, Unavailable
from bus.log.record import Record
from bus.rules.commands import Cancel, Command, Fail
from bus.rules.events import RunStarted, archived
from bus.rules.folding import evolve
from bus.rules.run import PhaseState, RunState
from bus.rules.timers import Timer
from bus.runs import children
from bus.runs.ledger import commit_in
from bus.runs.schedule import Schedule

logger = structlog.get_logger(__name__)

_TICK_S = 0.05
_LOST_WORK_EVERY_S = 2.0
_STARVED_EVERY_S = 1.0
_DETOURS_EVERY_S = 0.5
_FLOOR_EVERY_S = 5.0
_SCHEDULES_EVERY_S = 1.0
_SWEEP_EVERY_S = 1.0
_AGAIN_S = 1.0


class Supervisor:
    """Leads or stands by until stopped. `name` tells supervisors apart in the lease."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name
        self._herald = Herald(client, name)
        self._leadership = Leadership(client, name)
        self._lease_s = client.settings.lease_s
        self._docket = Docket()
        self._registrar = Registrar(client)
        self._clerk = Clerk(client)
        self._position = 0
        self.leads = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until `stop` is set. An unreachable server is waited for; nothing ends this but `stop`."""
        stopped = asyncio.create_task(stop.wait())
        try:
            while not stop.is_set():
                term = asyncio.create_task(self._term())
                try:
                    await asyncio.wait({term, stopped}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    self.leads.clear()
                    await _ended(term)
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
        if not await self._leadership.claim():
            return
        logger.info("leading", lease=self._leadership.token)
        self._docket, self._herald = Docket(), Herald(self._client, self._name)
        self._registrar = Registrar(self._client)
        custody = Custody(self._client, self._docket, self._registrar, self._herald, self._name)
        self._clerk = Clerk(self._client)
        backlog = Backlog(self._client, self._docket, self._herald)
        newest = await self._client.log.last(self._client.subjects.runs)
        upto = newest.position if newest is not None else 0
        newest = await self._client.log.last(self._client.subjects.agents)
        agents_upto = newest.position if newest is not None else 0
        floor, agents_floor = await self._leadership.floors()
        # A floor above the log is not one of this log: everything is read.
        self._position = floor if floor <= upto else 0
        async with custody.watching(), asyncio.TaskGroup() as tasks:
            tasks.create_task(self._renew())
            caught_up = asyncio.Event()
            tasks.create_task(self._track(upto, caught_up))
            await caught_up.wait()
            logger.info("watching", open_runs=len(self._docket), position=self._position)
            self.leads.set()
            tasks.create_task(custody.look_round())
            tasks.create_task(self._every(_TICK_S, self._act_on_time))
            tasks.create_task(self._every(self._lease_s / 6, custody.check))
            tasks.create_task(self._every(_LOST_WORK_EVERY_S, backlog.look))
            tasks.create_task(self._every(_DETOURS_EVERY_S, Detours(self._client, self._docket).look))
            tasks.create_task(self._every(_STARVED_EVERY_S, self._mind_the_starved))
            tasks.create_task(self._every(_LOST_WORK_EVERY_S, self._mind_children))
            tasks.create_task(self._every(_LOST_WORK_EVERY_S, self._clerk.look))
            tasks.create_task(self._every(_FLOOR_EVERY_S, self._raise_floor))
            tasks.create_task(self._registrar.follow(agents_floor if agents_floor <= agents_upto else 0))
            tasks.create_task(Directory(self._client, self._registrar, custody.census).serve(agents_upto))
            tasks.create_task(self._every(_SWEEP_EVERY_S, Sweep(self._client, self._leadership.bucket).sweep))
            tasks.create_task(custody.heed())
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
            self._clerk.note(before, commit)

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
            if state.is_in_line and any(timer.attempt == 1 for timer in delayed):
                await self._client.ledger.line_up(state.run)
            commands = [command for timer in due if (command := timer.command(state)) is not None]
            await asyncio.gather(*(self._end(state, command) for command in commands))
        except Exception:
            asyncio.get_running_loop().call_later(_AGAIN_S, self._docket.arm, state.run)
            raise

    async def _end(self, state: RunState, command: Command) -> None:
        await self._submit(state.run, await self._with_reason(state, command))

    async def _with_reason(self, state: RunState, command: Command) -> Command:
        """Work that nobody took: because nobody offers to do it, or because nobody was free."""
        if not isinstance(command, Fail) or command.cause != "unclaimed":
            return command
        needed = Need.of(state, command.phase, command.item)
        if await self._herald.is_offered(needed):
            return replace(command, evidence=f"{needed} is offered, and nobody was free")
        evidence = f"no live agent offers {needed}"
        return replace(command, cause="starved", problem=replace(command.problem, detail=evidence), evidence=evidence)

    async def _submit(self, run: str, command: Command) -> None:
        try:
            await self._client.runs.submit(run, command)
        except Refused as error:
            logger.debug("already settled", run=run, command=type(command).__name__, reason=error.reason)

    # Work

    async def _mind_the_starved(self) -> None:
        await self._herald.look(self._docket.ready_since(utc_now() - timedelta(seconds=self._lease_s)))

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

    async def _raise_floor(self) -> None:
        runs = self._clerk.floor(self._docket.floor(self._position))
        await self._leadership.raise_floors(runs, self._registrar.floor)


def _is_delayed(state: RunState, timer: Timer) -> bool:
    """Whether it was made ready for a later time: a retry, or work that was sent with a delay."""
    opened_at = state.phases[timer.phase].opened_at
    return timer.attempt > 1 or (timer.item is None and opened_at is not None and timer.at > opened_at)


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
