"""What a thousand registered instances cost: finding them, hearing them; and what an idle worker takes.

`python -m benchmarks.registry`. The instances are in a few processes, each with a connection of its own; they register,
beat and answer, and take no work. A supervisor has a process of its own. All of it shares the machine, so what they and
the server do counts against the time of discovery, too.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agents.census import Census
from benchmarks.asks import Row
from bus import Client, connect
from bus.broker.reach import ask_all
from bus.broker.server import Server, embedded
from bus.registry.presence import is_offered

_INSTANCES = 1_000
_PROCESSES = 4
_REPEATS = 15
_MEASURED_S = 20.0
_APPEAR_S = 300.0
_SETTLED_S = 10.0
_IDLE = Path(__file__).with_name("worker.py")


async def main() -> None:
    for what, figure, wanted in await rows():
        print(f"{what:52} {figure:>18} {wanted:>10}")


async def rows() -> list[Row]:
    async with embedded() as server, connect(server.url) as client:
        with _running([[sys.executable, str(_IDLE)]], server.url):
            idle_mb = await _idle_mb(client)
        before = await _cpu_share(server)
        with _running([_leader(server), *_instances(server.url)], server.url):
            async with asyncio.timeout(_APPEAR_S):
                while len((await ask_all(client.connection, client.subjects.everyone)).answers) < _INSTANCES:
                    await asyncio.sleep(1)
            each = await _median_ms(lambda: ask_all(client.connection, client.subjects.everyone))
            await asyncio.sleep(_SETTLED_S)
            serving = await _cpu_share(server) - before
            hearing = await _hearing(client)
            everyone = await _median_ms(client.agents)
            some = await _median_ms(lambda: client.agents("idle.work", version=">=1.2,<2", tag="benchmark"))
            began = time.process_time()
            for _ in range(_REPEATS):
                known = len(await client.agents())
            asking = (time.process_time() - began) / _REPEATS * 1000
            offered = await _median_ms(lambda: is_offered(client.connection, client.subjects, "idle.work", 5))
    assert known == _INSTANCES, f"{known} found"
    return [
        (f"find all of {_INSTANCES:,} instances, median", f"{everyone:.0f} ms", "< 100 ms"),
        ("of that, processor time of who asks", f"{asking:.0f} ms", ""),
        ("the same by asking each, as without a supervisor", f"{each:.0f} ms", ""),
        ("the same by capability, version and tag", f"{some:.0f} ms", "< 100 ms"),
        ("is anybody there for a capability", f"{offered:.1f} ms", ""),
        ("beats: the server, of one core", f"{serving:.1%}", "< 3 %"),
        ("beats: who hears them all, of one core", f"{hearing:.1%}", "< 3 %"),
        ("an idle worker's memory", f"{idle_mb} MB", "< 60 MB"),
    ]


async def _median_ms(act: Callable[[], Awaitable[object]]) -> float:
    taken: list[float] = []
    for _ in range(_REPEATS):
        began = time.perf_counter()
        await act()
        taken.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(0.05)
    return statistics.median(taken)


async def _cpu_share(server: Server) -> float:
    """How much of a core the server takes while nothing is asked."""
    began = _cpu_s(server.pid)
    await asyncio.sleep(_MEASURED_S)
    return (_cpu_s(server.pid) - began) / _MEASURED_S


async def _hearing(client: Client) -> float:
    """How much of a core this process takes to hear all beats, as the supervisor does."""
    census = Census(client, lambda _: None)
    async with census.watching():
        began = time.process_time()
        await asyncio.sleep(_MEASURED_S)
        taken = time.process_time() - began
    assert len(census.beats) == _INSTANCES, f"{len(census.beats)} heard"
    return taken / _MEASURED_S


async def _idle_mb(client: Client) -> int:
    while not await client.agents():
        await asyncio.sleep(0.05)
    await asyncio.sleep(3)
    return (await client.agents())[0].memory_mb


def _instances(url: str) -> list[list[str]]:
    share = _INSTANCES // _PROCESSES
    firsts = range(0, _INSTANCES, share)
    return [[sys.executable, "-m", "benchmarks.instances", url, str(first), str(share)] for first in firsts]


def _leader(server: Server) -> list[str]:
    return [sys.executable, "-m", "benchmarks.leader", server.url, server.system_url]


@contextmanager
def _running(commands: list[list[str]], url: str) -> Iterator[None]:
    processes = [subprocess.Popen(command, env={**os.environ, "NATS_URL": url}) for command in commands]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    asyncio.run(main())
