"""What a phase costs, what parallel phases cost, how long recovery takes, how fast the command line starts.

python -m benchmarks.runs
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from agents.supervisor import Supervisor
from benchmarks.floor import publish_ms
from bus import Client, Phase, Plan, connect
from bus.events import PhaseStarted
from bus.server import embedded

_KEYS = range(-8, 16)
_REPEATS = 15
_KILLS = 20
_WORKER = Path(__file__).with_name("worker.py")

SEQUENTIAL = Plan("sequential", phases=[Phase(key, "noop", after=[key - 1] if key > _KEYS[0] else []) for key in _KEYS])
PARALLEL = Plan("parallel", phases=[Phase(key, "noop") for key in _KEYS])


async def main() -> None:
    async with embedded() as server, connect(server.url) as client:
        with _workers(server.url) as start:
            start()
            await _there(client, 1)
            await _median_ms(client, SEQUENTIAL, repeats=3)
            floors = [await publish_ms(server.operator_url)]
            sequential = await _median_ms(client, SEQUENTIAL)
            parallel = await _median_ms(client, PARALLEL)
            floors.append(await publish_ms(server.operator_url))
        floor = statistics.mean(floors)
        async with connect(server.url, system_url=server.system_url) as supervising:
            recovery = await _recovery_ms(client, supervising, server.url)
    phase = sequential / len(_KEYS)
    rows = [
        ("one awaited nats-py publish", f"{floor:.2f} ms", "", ""),
        (f"{len(_KEYS)} sequential phases, per phase", f"{phase:.2f} ms", f"{phase / floor:.1f} publishes", "<= 4"),
        (
            f"{len(_KEYS)} parallel phases, in all",
            f"{parallel:.1f} ms",
            f"{sequential / parallel:.1f} x faster",
            ">= 2",
        ),
        (f"kill -9 to the next start, median of {_KILLS}", f"{recovery:.0f} ms", "", "< 300 ms"),
        ("phasebus --help", f"{_help_ms():.0f} ms", "", "< 150 ms"),
    ]
    for what, figure, ratio, wanted in rows:
        print(f"{what:44} {figure:>10} {ratio:>16} {wanted:>10}")


async def _median_ms(client: Client, plan: Plan, repeats: int = _REPEATS) -> float:
    """Median of what the log says a run took, from its first event to its last."""
    taken: list[float] = []
    for _ in range(repeats):
        receipt = await client.start(plan)
        state = await client.result(receipt.run, timeout_s=60)
        assert state.status == "completed" and state.ended_at is not None, f"{state.run} is {state.status}"
        taken.append((state.ended_at - state.started_at).total_seconds() * 1000)
    return statistics.median(taken)


async def _recovery_ms(client: Client, supervising: Client, url: str) -> float:
    stop = asyncio.Event()
    supervisor = Supervisor(supervising, "bench")
    serving = asyncio.create_task(supervisor.run(stop))
    await supervisor.leads.wait()
    taken: list[float] = []
    with _workers(url) as start:
        start()
        for _ in range(_KILLS):
            start()
            await _there(client, 2)
            receipt = await client.send("nap", 0.3)
            killed = 0.0
            async for happening in client.watch(receipt.run):
                if isinstance(happening.event, PhaseStarted) and not killed:
                    pids = {beat.instance: beat.pid for beat in await client.agents()}
                    killed = time.perf_counter()
                    os.kill(pids[happening.event.instance], signal.SIGKILL)
                elif isinstance(happening.event, PhaseStarted):
                    taken.append((time.perf_counter() - killed) * 1000)
    stop.set()
    await serving
    return statistics.median(taken)


@contextmanager
def _workers(url: str) -> Iterator[Callable[[], None]]:
    processes: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "NATS_URL": url}
    try:
        yield lambda: processes.append(subprocess.Popen([sys.executable, str(_WORKER)], env=environment))
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def _there(client: Client, count: int) -> None:
    while len(await client.agents()) < count:
        await asyncio.sleep(0.02)


def _help_ms() -> float:
    command = Path(sys.executable).with_name("phasebus")
    taken: list[float] = []
    for _ in range(7):
        began = time.perf_counter()
        subprocess.run([command, "--help"], check=True, capture_output=True)
        taken.append((time.perf_counter() - began) * 1000)
    return statistics.median(taken)


if __name__ == "__main__":
    asyncio.run(main())
