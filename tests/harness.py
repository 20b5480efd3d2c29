"""What tests of the whole need: agents in this process or in their own, a supervisor, and waiting for what happens."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

from agents.supervisor import Supervisor
from bus import Agent, Client, Happening, connect
from bus.broker.server import Server
from bus.worker.worker import serve

ROOT = Path(__file__).parents[1]
BOUND_S = 20.0


class Served(Protocol):
    """A server of ours, or any other, by its addresses."""

    @property
    def url(self) -> str: ...

    @property
    def system_url(self) -> str: ...


@asynccontextmanager
async def serving(server: Served, *agents: Agent) -> AsyncIterator[None]:
    """Each agent as one instance in this process; stopped gracefully at the end."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks, connect(server.url) as client:
        before = len(await client.agents())
        for agent in agents:
            tasks.create_task(serve(agent, stop, url=server.url))
        await until(lambda: _more_than(client, before + len(agents) - 1))
        try:
            yield
        finally:
            stop.set()


@asynccontextmanager
async def supervised(server: Served, **settings: object) -> AsyncIterator[Supervisor]:
    """A leading supervisor in this process, with a login of the system account."""
    stop = asyncio.Event()
    async with (
        connect(server.url, system_url=server.system_url, name="supervisor", **settings) as client,
        asyncio.TaskGroup() as tasks,
    ):
        supervisor = Supervisor(client, "test")
        tasks.create_task(supervisor.run(stop))
        async with asyncio.timeout(BOUND_S):
            await supervisor.leads.wait()
        try:
            yield supervisor
        finally:
            stop.set()


@contextmanager
def agent_processes(server: Server, file: Path, count: int = 1) -> Iterator[list[subprocess.Popen[bytes]]]:
    """`count` processes that run an agent file as a user would; killed at the end. The list may be added to."""
    processes = [agent_process(server, file) for _ in range(count)]
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()


def agent_process(server: Server, file: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "NATS_URL": server.url, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, str(file)], env=environment, stderr=subprocess.DEVNULL)


async def pid_of(client: Client, instance: str) -> int:
    """The process behind an instance."""
    return next(beat.pid for beat in await client.agents() if beat.instance == instance)


def has_ended(pid: int) -> bool:
    """Whether a process is over. One that nobody has reaped yet is."""
    return _stat(pid) in ("", "Z")


async def freeze(pid: int) -> None:
    """Stop a process with SIGSTOP, and wait until it has stopped: a signal that was sent may not have arrived."""
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: _stat(pid) == "T")


def _stat(pid: int) -> str:
    """What state a process is in, as `ps` calls it; empty if there is none."""
    shown = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return shown.strip()[:1]


async def agents_there(client: Client, count: int) -> None:
    """Wait until `count` instances answer."""
    await until(lambda: _more_than(client, count - 1))


async def until(condition: Callable[[], object], bound_s: float = BOUND_S) -> None:
    """Wait until an (async) condition holds, by asking it again and again."""
    async with asyncio.timeout(bound_s):
        while True:
            answer = condition()
            if await answer if asyncio.iscoroutine(answer) else answer:
                return
            await asyncio.sleep(0.02)


async def happenings(client: Client, run: str) -> list[Happening]:
    """Every event of a run until it ends."""
    async with asyncio.timeout(BOUND_S):
        return [happening async for happening in client.watch(run)]


async def _more_than(client: Client, count: int) -> bool:
    return len(await client.agents()) > count
