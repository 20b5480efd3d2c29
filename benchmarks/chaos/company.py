"""The company: a server, its workers and two supervisors, each a process; what is done to them, and to whom it was.

Whoever ends is started again, as the service manager of a machine would.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from pathlib import Path

import msgspec

from agents.leadership import Leadership
from benchmarks.chaos.faults import Fault
from bus import Client
from bus.broker.connection import Connection
from bus.broker.server import Server
from bus.clock import utc_now
from bus.errors import BusError

ROOT = Path(__file__).parents[2]
_POLL_S = 0.1
_STOP_S = 10.0


class Done(msgspec.Struct, frozen=True):
    """A fault as it happened: what, when, and to which process (0: the server)."""

    kind: str
    at: datetime
    pid: int


class Post:
    """A process that is always there, unless it is `away` on purpose."""

    def __init__(self, name: str, module: str, folder: Path, environment: dict[str, str], *arguments: str) -> None:
        self.name = name
        self.away = False
        self._command = [sys.executable, "-m", module, name, *arguments]
        self._log = folder / f"{name}.log"
        self._environment = environment
        self._process = self._start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    def end(self) -> None:
        self.signal(signal.SIGKILL)
        self._process.wait()

    def again(self) -> None:
        """A new process in its place, if it has none."""
        if self.has_ended:
            self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)


def surroundings(server: Server, lease_s: float) -> dict[str, str]:
    """The environment of a process that belongs to the server."""
    return {
        **os.environ,
        "NATS_URL": server.url,
        "PHASEBUS_SYSTEM_URL": server.system_url,
        "PHASEBUS_LEASE_S": str(lease_s),
        "PHASEBUS_BEAT_S": str(lease_s / 3),
        "PYTHONPATH": str(ROOT),
    }


class Company:
    """All of them. `done` is every fault so far."""

    def __init__(self, server: Server, folder: Path, workers: int, lease_s: float) -> None:
        environment = surroundings(server, lease_s)
        self.server = server
        self.workers = [
            Post(f"worker-{number}", "benchmarks.chaos.worker", folder, environment) for number in range(workers)
        ]
        self.supervisors = [
            Post(f"supervisor-{number}", "benchmarks.chaos.supervisor", folder, environment) for number in range(2)
        ]
        self.done: list[Done] = []
        self._server_is_free = asyncio.Lock()

    @property
    def _posts(self) -> list[Post]:
        return [*self.workers, *self.supervisors]

    async def keep(self) -> None:
        """Start again whoever has ended, for ever."""
        while True:
            for post in self._posts:
                if not post.away:
                    post.again()
            await asyncio.sleep(_POLL_S)

    async def suffer(self, fault: Fault, client: Client) -> None:
        """One fault, from its beginning to its end."""
        worker = self.workers[fault.target]
        match fault.kind:
            case "kill worker":
                await self._kill(fault, worker)
            case "freeze worker":
                await self._freeze(fault, worker)
            case "stop worker":
                self._note(fault, worker.pid)
                worker.signal(signal.SIGTERM)
                # What it has begun it may finish; whoever keeps the company starts it again.
            case "kill leader":
                await self._kill(fault, await self._leader(client))
            case "freeze leader":
                await self._freeze(fault, await self._leader(client))
            case "kill standby":
                leader = await self._leader(client)
                await self._kill(fault, next(post for post in self.supervisors if post is not leader))
            case "kill server" | "stop server" | "freeze server":
                await self._hit_server(fault)
            case "lose work":
                await self._lose_work(fault)
            case "kill all":
                hit = [self._kill(fault, post) for post in [worker, *self.supervisors]]
                await asyncio.gather(self._hit_server(fault), *hit)

    def relieve(self) -> None:
        """No more faults: whoever is frozen goes on."""
        for post in self._posts:
            post.away = False
            post.signal(signal.SIGCONT)

    async def close(self) -> None:
        """End everybody, in good order if they can."""
        for post in self._posts:
            post.away = True
            post.signal(signal.SIGCONT)
            post.signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                while not all(post.has_ended for post in self._posts):
                    await asyncio.sleep(_POLL_S)
        for post in self._posts:
            post.end()

    async def _leader(self, client: Client) -> Post:
        """Who leads, as the lease says; the first, if nobody does or nobody knows."""
        name: str | None = None
        with suppress(BusError):
            name = await Leadership(client, "").leader()
        return next((post for post in self.supervisors if post.name == name), self.supervisors[0])

    async def _kill(self, fault: Fault, post: Post) -> None:
        post.away = True
        self._note(fault, post.pid)
        post.end()
        await asyncio.sleep(fault.lasts_s)
        post.away = False

    async def _freeze(self, fault: Fault, post: Post) -> None:
        pid = post.pid
        self._note(fault, pid)
        post.signal(signal.SIGSTOP)
        await asyncio.sleep(fault.lasts_s)
        if post.pid == pid:
            post.signal(signal.SIGCONT)

    async def _hit_server(self, fault: Fault) -> None:
        async with self._server_is_free:
            self._note(fault, 0)
            if fault.kind == "freeze server":
                self.server.signal(signal.SIGSTOP)
                await asyncio.sleep(fault.lasts_s)
                self.server.signal(signal.SIGCONT)
                return
            await (self.server.stop() if fault.kind == "stop server" else self.server.kill())
            await asyncio.sleep(fault.lasts_s)
            await self.server.start()

    async def _lose_work(self, fault: Fault) -> None:
        self._note(fault, 0)
        with suppress(BusError):
            async with Connection.open(self.server.operator_url, name="operator") as operator:
                await operator.request("$JS.API.STREAM.DELETE.BUS_WORK", timeout_s=5)

    def _note(self, fault: Fault, pid: int) -> None:
        self.done.append(Done(fault.kind, utc_now(), pid))


@asynccontextmanager
async def company(server: Server, folder: Path, workers: int, lease_s: float) -> AsyncIterator[Company]:
    """A company that is kept for as long as the block runs."""
    employed = Company(server, folder, workers, lease_s)
    keeping = asyncio.create_task(employed.keep())
    try:
        yield employed
    finally:
        keeping.cancel()
        await employed.close()
