"""Each on the same server, one after the other, several times; the best of each.

`python -m benchmarks.peers PYTHON`: an interpreter that has `faststream[nats]`, `taskiq` and `taskiq-nats`. Each has a
worker in a process of its own. What nothing is stored of is beside what is not stored either.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bus.broker.server import Server, embedded

_ROOT = Path(__file__).parents[2]
_ROUNDS = 3
_BOUND_S = 120


async def main(peer: str) -> None:
    best: dict[str, tuple[float, float]] = {}
    for _ in range(_ROUNDS):
        async with embedded() as server:
            for name, (worker, asker) in _commands(peer, server).items():
                median_ms, rate = await asyncio.to_thread(_measured, worker, asker, server)
                before = best.get(name, (median_ms, rate))
                best[name] = min(before[0], median_ms), max(before[1], rate)
    ours_ms, ours_per_s = best["phasebus, ask"]
    print(f"{'':24} {'one by one':>12} {'100 at once':>14} {'of ask':>16}")
    for name, (median_ms, rate) in best.items():
        ratio = f"{median_ms / ours_ms:.1f} x, {ours_per_s / rate:.1f} x"
        print(f"{name:24} {median_ms:9.2f} ms {rate:12.0f}/s {ratio:>16}")


def _commands(peer: str, server: Server) -> dict[str, tuple[list[str], list[str]]]:
    """The worker and the asker of each."""
    ours, faststream, taskiq = (f"benchmarks.peers.with_{name}" for name in ("phasebus", "faststream", "taskiq"))
    worker = [sys.executable, "benchmarks/worker.py"]
    taskiq_worker = [peer, "-m", "taskiq", "worker", "--workers", "1", "--log-level", "ERROR", f"{taskiq}:broker"]
    return {
        "phasebus, ask": (worker, [sys.executable, "-m", ours, server.url]),
        "phasebus, ask fast": (worker, [sys.executable, "-m", ours, server.url, "fast"]),
        "faststream": (
            [peer, "-m", faststream, server.operator_url, "worker"],
            [peer, "-m", faststream, server.operator_url],
        ),
        "taskiq-nats": (taskiq_worker, [peer, "-m", taskiq]),
    }


def _measured(worker: Sequence[str], asker: Sequence[str], server: Server) -> tuple[float, float]:
    is_ours = worker[0] == sys.executable
    url = server.url if is_ours else server.operator_url
    environment = {**os.environ, "NATS_URL": url, "PYTHONPATH": str(_ROOT)}
    with _running(worker, environment):
        done = subprocess.run(
            asker, env=environment, cwd=_ROOT, stdout=subprocess.PIPE, text=True, timeout=_BOUND_S, check=True
        )
    found = json.loads(done.stdout.splitlines()[-1])
    return found["median_ms"], found["per_s"]


@contextmanager
def _running(command: Sequence[str], environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=_ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield
    finally:
        # Some have children of their own.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
