"""What a phase costs, alone, side by side and in many runs; how long recovery, folding and listing take.

python -m benchmarks.runs
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from agents.supervisor import Supervisor
from benchmarks.floor import consumed_per_s, publish_ms
from bus import Client, Phase, Plan, connect, ref
from bus.broker.server import Server, embedded
from bus.rules.commands import Begin, Command, Complete, Take
from bus.rules.decide import decide
from bus.rules.events import Commit, PhaseStarted
from bus.rules.folding import evolve, fold
from bus.rules.run import RunState
from projections.kept import Kept
from projections.runner import Runner
from projections.runs import RUNS, Glance, glance, listed
from projections.shelf import Change, Step, encoded, open_shelf

_KEYS = range(-8, 16)
_REPEATS = 15
_KILLS = 20
_WORKER = Path(__file__).with_name("worker.py")

_RUNS, _PHASES = 200, 10
_WIDTHS = (10, 100, 1_000)
_LISTED = 10_000

SEQUENTIAL = Plan("sequential", phases=[Phase(key, "noop", after=[key - 1] if key > _KEYS[0] else []) for key in _KEYS])
PARALLEL = Plan("parallel", phases=[Phase(key, "noop") for key in _KEYS])
TEN = Plan("ten", phases=[Phase(key, "noop", after=[key - 1] if key else []) for key in range(_PHASES)])
WIDE = Plan("wide", phases=[Phase("each", "noop", each=ref("input.items"))])


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
            raw = await consumed_per_s(server.operator_url)
            one = await _phases_per_s(client)
            wide = [await _cpu_ms(client, server, start.processes, width) for width in _WIDTHS]
            start()
            await _there(client, 2)
            two = await _phases_per_s(client)
        floor = statistics.mean(floors)
        listing = await _listing_ms(client)
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
        (f"{_RUNS} runs x {_PHASES} phases, 1 worker", f"{one:,.0f}/s", f"{one / raw:.2f} of raw", ">= 0.25"),
        (f"{_RUNS} runs x {_PHASES} phases, 2 workers", f"{two:,.0f}/s", f"{two / raw:.2f} of raw", ">= 0.25"),
        ("raw nats-py: publish, pull, ack", f"{raw:,.0f}/s", "", ""),
        *(
            (
                f"CPU per phase, {width} parallel phases",
                f"{cpu:.2f} ms",
                f"{cpu / wide[0]:.2f} of {_WIDTHS[0]}",
                "linear",
            )
            for width, cpu in zip(_WIDTHS, wide, strict=True)
        ),
        ("folding a run of 10,000 events", f"{_fold_ms():.0f} ms", "", "< 50 ms"),
        (f"listing {_LISTED:,} stored runs", f"{listing:.0f} ms", "", "< 100 ms"),
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


class _Workers:
    """Worker processes; each call starts one more."""

    def __init__(self, url: str) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self._environment = {**os.environ, "NATS_URL": url}

    def __call__(self) -> None:
        self.processes.append(subprocess.Popen([sys.executable, str(_WORKER)], env=self._environment))


@contextmanager
def _workers(url: str) -> Iterator[_Workers]:
    workers = _Workers(url)
    try:
        yield workers
    finally:
        for process in workers.processes:
            process.kill()
            process.wait()


async def _phases_per_s(client: Client) -> float:
    """Phases a second of many runs at once, from the first start to the last end."""
    began = time.perf_counter()
    receipts = await asyncio.gather(*(client.start(TEN) for _ in range(_RUNS)))
    await asyncio.gather(*(client.result(receipt.run, timeout_s=120) for receipt in receipts))
    return _RUNS * _PHASES / (time.perf_counter() - began)


async def _cpu_ms(client: Client, server: Server, workers: list[subprocess.Popen[bytes]], width: int) -> float:
    """CPU time per item of one `each` phase: of server, workers and this process. As often as the clock needs."""
    pids = [os.getpid(), server.pid, *(worker.pid for worker in workers)]
    before = sum(map(_cpu_s, pids))
    repeats = _WIDTHS[-1] // width
    for _ in range(repeats):
        receipt = await client.start(WIDE, {"items": list(range(width))})
        state = await client.result(receipt.run, timeout_s=120)
        assert state.status == "completed", f"{state.run} is {state.status}"
    return (sum(map(_cpu_s, pids)) - before) * 1000 / (width * repeats)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _fold_ms() -> float:
    """Folding the commits of a run with over 10,000 events."""
    state: RunState | None = None
    commits: list[Commit] = []
    events, now = 0, datetime.now(UTC)
    commands: list[Command] = [Begin(WIDE, msgspec.Raw(msgspec.json.encode({"items": list(range(3_400))})))]
    while events < 10_000:
        happened = decide(state, commands.pop(), run="r", now=now)
        commit = Commit("r", "c", now, len(commits) + 1, happened)
        state = evolve(state, commit)
        commits.append(commit)
        events += len(happened)
        if not commands:
            ready = [item for item in state.phases["each"].items if item.status == "ready"]
            commands = [Complete("each", item.index, 1, "one", msgspec.Raw(b"1")) for item in ready]
            for item in ready:
                taken = decide(state, Take("each", item.index, 1, "noop", "a", "one", 60.0), run="r", now=now)
                commit = Commit("r", "c", now, len(commits) + 1, taken)
                state = evolve(state, commit)
                commits.append(commit)
                events += len(taken)
    began = time.perf_counter()
    fold(commits)
    return (time.perf_counter() - began) * 1000


async def _listing_ms(client: Client) -> float:
    """Reading the glances of 10,000 stored runs and sorting them, as `phasebus run ls` does."""
    with tempfile.TemporaryDirectory() as folder:
        shelf = open_shelf(f"sqlite:///{folder}/rows.db")
        await Runner(client, shelf, [RUNS]).catch_up()
        kept = await Kept.find(client, shelf, RUNS)
        row = next(iter((await kept.rows()).values()))
        glanced = glance(row)
        copies = [
            Change(f"copy-{number}", encoded(row), encoded(msgspec.structs.replace(glanced, run=f"copy-{number}")))
            for number in range(_LISTED)
        ]
        position = await kept.position()
        shelf.save([Step(kept.build.id, position, position + 1, copies)])
        taken: list[float] = []
        for _ in range(5):
            began = time.perf_counter()
            found = listed((await kept.glances(Glance)).values(), datetime.now(UTC))
            assert len(found) >= _LISTED
            taken.append((time.perf_counter() - began) * 1000)
        shelf.close()
        return statistics.median(taken)


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
