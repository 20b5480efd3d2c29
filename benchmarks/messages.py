"""Every figure that is wanted of messages and of a thousand agents, in one table, beside bare nats-py where it has one.

`python -m benchmarks.messages`. What is measured, and how, is `benchmarks.asks`, `benchmarks.sends` and
`benchmarks.registry`; here one more: work whose holder is killed while another instance is there.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from agents.supervisor import Supervisor
from benchmarks import asks, registry, sends
from benchmarks.asks import Row
from bus import Client, connect
from bus.broker.server import Server, embedded
from bus.rules.events import PhaseStarted

_KILLS = 15
_BOUND_S = 60.0


async def main() -> None:
    rows = [*await asks.rows(), *await sends.rows(), *await registry.rows(), await _killed()]
    print(f"{'':52} {'figure':>18} {'wanted':>10}")
    for what, figure, wanted in rows:
        print(f"{what:52} {figure:>18} {wanted:>10}")


async def _killed() -> Row:
    """From a SIGKILL to the start of the same work in another process, by the clock of who kills."""
    async with (
        embedded() as server,
        connect(server.url) as client,
        connect(server.url, system_url=server.system_url, name="supervisor") as own,
        asyncio.TaskGroup() as tasks,
    ):
        stop = asyncio.Event()
        supervisor = Supervisor(own, "benchmark")
        tasks.create_task(supervisor.run(stop))
        processes = [_holder(server) for _ in range(2)]
        try:
            async with asyncio.timeout(_BOUND_S * _KILLS):
                await supervisor.leads.wait()
                taken_ms = [await _kill_once(client, server, processes) for _ in range(_KILLS)]
        finally:
            for process in processes:
                process.kill()
                process.wait()
            stop.set()
    return "killed with work in hand: begun elsewhere, median", f"{statistics.median(taken_ms):.0f} ms", "< 300 ms"


async def _kill_once(client: Client, server: Server, processes: list[subprocess.Popen[bytes]]) -> float:
    while len(await client.agents("hold")) < len(processes):
        await asyncio.sleep(0.05)
    run = (await client.send("hold", {})).run
    killed_s = 0.0
    async for happening in client.watch(run):
        event: Any = happening.event
        if not isinstance(event, PhaseStarted):
            continue
        if killed_s:
            break
        holder = next(each for each in await client.agents("hold") if each.instance == event.instance)
        process = next(each for each in processes if each.pid == holder.pid)
        killed_s = time.perf_counter()
        process.kill()
    taken_ms = (time.perf_counter() - killed_s) * 1000
    await client.result(run, timeout_s=_BOUND_S)
    process.wait()
    processes.remove(process)
    processes.append(_holder(server))
    return taken_ms


def _holder(server: Server) -> subprocess.Popen[bytes]:
    file = Path(__file__).with_name("holder.py")
    environment = {**os.environ, "NATS_URL": server.url, "PYTHONPATH": str(file.parents[1])}
    return subprocess.Popen([sys.executable, str(file), "holder", "hold"], env=environment, stderr=subprocess.DEVNULL)


if __name__ == "__main__":
    asyncio.run(main())
