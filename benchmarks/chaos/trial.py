"""A trial: runs are started all the while faults are done; then the faults stop, and everything has to end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from benchmarks.chaos.company import Company, company
from benchmarks.chaos.faults import Fault, schedule
from benchmarks.chaos.figures import Recovery, counted, processes, recoveries
from benchmarks.chaos.invariants import Violation, check
from benchmarks.chaos.plans import drawn, plans
from bus import Client, Plan, connect
from bus.broker.server import Server, embedded
from bus.errors import BusError, Refused
from bus.log.streams import info
from bus.rules.events import Event

_AGAIN_S = 0.1
_UP_S = 30.0
# One run in so many is cancelled a moment after its start.
_CANCELLED = 20


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial is made of; all else follows."""

    seed: int = 7
    seconds: float = 180.0
    runs: int = 200
    phases: int = 10
    workers: int = 6
    lease_s: float = 3.0
    settle_s: float = 90.0

    @property
    def faults(self) -> Sequence[Fault]:
        return schedule(self.seed, self.seconds, self.workers, self.lease_s)


class Report(msgspec.Struct, kw_only=True):
    """What came of it."""

    violations: list[Violation]
    runs: Counter[str]
    plans: Counter[str]
    faults: Counter[str]
    attempts: Counter[str]
    recoveries: list[Recovery]
    stories: dict[str, list[tuple[str, Event]]]
    settled_s: float
    events: int


class Trial:
    """One of them, on a company that is there."""

    def __init__(self, options: Options, client: Client, staff: Company) -> None:
        self._options = options
        self._client = client
        self._staff = staff
        self._acknowledged: dict[str, int] = {}
        self._cancelled: set[str] = set()
        self._kinds = drawn(options.seed, options.runs)

    async def run(self) -> Report:
        options = self._options
        made = plans(options.phases, options.lease_s)
        async with asyncio.TaskGroup() as tasks:
            for number, kind in enumerate(self._kinds):
                at_s = number * options.seconds / options.runs
                tasks.create_task(self._start(number, made[kind], at_s))
            for fault in options.faults:
                tasks.create_task(self._do(fault))
        self._staff.relieve()
        began = time.monotonic()
        await self._settle()
        return await self._report(time.monotonic() - began)

    async def _do(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at_s)
        await self._staff.suffer(fault, self._client)

    async def _start(self, number: int, plan: Plan, at_s: float) -> None:
        """Start a run, and insist: what counts is what was acknowledged."""
        await asyncio.sleep(at_s)
        run = f"run-{number:04}"
        while run not in self._acknowledged:
            try:
                self._acknowledged[run] = (await self._client.start(plan, run=run)).position
            except Refused:
                # An earlier try was stored, and its answer lost.
                self._acknowledged[run] = 0
            except BusError:
                await asyncio.sleep(_AGAIN_S)
        if number % _CANCELLED == _CANCELLED - 1:
            await asyncio.sleep(1.0)
            await self._cancel(run)

    async def _cancel(self, run: str) -> None:
        while True:
            try:
                await self._client.cancel(run, by="chaos")
            except Refused:
                return  # it has ended, perhaps by an earlier try
            except BusError:
                await asyncio.sleep(_AGAIN_S)
            else:
                self._cancelled.add(run)
                return

    async def _settle(self) -> None:
        """Wait until nothing is open and no work waits, or for as long as that may take."""
        waiting = list(self._acknowledged)
        deadline = time.monotonic() + self._options.settle_s
        while time.monotonic() < deadline:
            try:
                states = [await self._client.runs.load(run) for run in waiting]
                waiting = [state.run for state in states if state.is_open]
                there = await info(self._client.connection, self._client.subjects.work_stream, 5)
            except BusError:
                await asyncio.sleep(_AGAIN_S)
                continue
            if not waiting and not there.messages:
                return
            await asyncio.sleep(0.2)

    async def _report(self, settled_s: float) -> Report:
        client = self._client
        violations = await check(client, self._acknowledged, self._cancelled)
        pids = await processes(client)
        attempts: Counter[str] = Counter()
        statuses: Counter[str] = Counter()
        found: list[Recovery] = []
        stories: defaultdict[str, list[tuple[str, Event]]] = defaultdict(list)
        broken = {violation.run for violation in violations}
        total = 0
        for run in await client.ledger.names():
            commits = [commit async for commit in client.ledger.commits(run)]
            events = [event for commit in commits for event in commit.events]
            total += len(events)
            attempts += counted(events)
            found += recoveries(commits, self._staff.done, pids)
            statuses[(await client.runs.load(run)).status] += 1
            if run in broken:
                stories[run] += [(f"{c.at:%H:%M:%S.%f} {c.position}", event) for c in commits for event in c.events]
        return Report(
            violations=violations,
            runs=statuses,
            plans=Counter(self._kinds),
            faults=Counter(each.kind for each in self._staff.done),
            attempts=attempts,
            recoveries=found,
            stories=stories,
            settled_s=settled_s,
            events=total,
        )


@asynccontextmanager
async def _ready(options: Options, server: Server, folder: Path) -> AsyncIterator[tuple[Client, Company]]:
    """A client, and a company of which everybody is there."""
    async with (
        connect(server.url, name="chaos", append_timeout_s=10.0) as client,
        company(server, folder, options.workers, options.lease_s) as staff,
    ):
        async with asyncio.timeout(_UP_S):
            while len(await client.agents()) < options.workers:
                await asyncio.sleep(_AGAIN_S)
        yield client, staff


async def trial(options: Options, folder: Path) -> Report:
    """One trial on a server of its own. The log, and the logs of all processes, are left in `folder`."""
    async with embedded(folder / "store") as server, _ready(options, server, folder) as (client, staff):
        return await Trial(options, client, staff).run()
