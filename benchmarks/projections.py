"""How fast projections catch up, go back in time and follow, next to reading the same log without them.

python -m benchmarks.projections [--events 1000000] [--rounds 3] [--looks 1000] [--live-s 20]

Two ways of reading all runs without folding anything are beside each rate. `bare nats-py` is the fastest that the
library has of its own: an ordered consumer with a callback, which looks where each message stands, since whoever keeps
rows has to know. `client.log.read` is what the projections read with, record by record, with nothing decoded. Beside
the rates is the CPU time of this process: on a machine that others use, that is the figure to compare.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import resource
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import nats
from msgspec import Struct
from nats.aio.msg import Msg

from benchmarks.story import PHASES, fill
from bus import Client, connect
from bus.broker.server import embedded
from bus.log.streams import info
from projections.catalogue import BUILT_IN
from projections.kept import Kept
from projections.projection import Projection
from projections.runner import Runner
from projections.runs import RUNS
from projections.shelf import open_shelf
from projections.traffic import TRAFFIC

PROJECTIONS: Sequence[Projection[Any]] = list(BUILT_IN.values())
LIVE_EVENTS_PER_S = 2_000
_BOUND_S = 300.0


class Pace(Struct, frozen=True):
    """How fast it went, and what of it this process had to work for."""

    events_per_s: float
    cpu_us: float


class Floors(Struct, frozen=True):
    """Reading without folding: bare, and with our own reader."""

    bare: Pace
    own: Pace

    def said(self, pace: Pace) -> str:
        """A pace, and how much of both it is."""
        bare, own = (pace.events_per_s / floor.events_per_s for floor in (self.bare, self.own))
        return f"{_said(pace)} {bare:>6.2f} of bare nats-py {own:>6.2f} of client.log.read"


async def main(events: int, rounds: int, looks: int, live_s: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with embedded(folder / "log", durability="fast") as server, connect(server.url) as client:
            began = time.perf_counter()
            written = await fill(client, events)
            stored = (await info(client.connection, client.subjects.stream, 5.0)).messages
            took = time.perf_counter() - began
            print(f"{written:,} events of runs of {PHASES} phases, in {stored:,} commits, made in {took:,.0f} s")
            url = await _catch_up(client, server.operator_url, folder, written, rounds)
            for projection, key in ((RUNS, "r0000001"), (TRAFFIC, "noop/bench")):
                taken = await _looks(client, url, projection, key, looks)
                print(f"{f'{projection.name} as of any position':40} {_spread(taken)}")
            lags = await _live(server.url, url, live_s)
            print(f"{f'live, at {LIVE_EVENTS_PER_S:,} events/s':40} {_spread(lags)}")
            print(f"{'memory at most':40} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:>10,.0f} MB")


async def _catch_up(client: Client, operator_url: str, folder: Path, events: int, rounds: int) -> str:
    """Each projection alone, then all of them, in rounds beside reading; returns the shelf that has all of them."""
    floors = await _floors(client, operator_url, events)
    for each in PROJECTIONS:
        if {"run.*", "run.>"} & set(each.subjects):
            pace = await _timed(partial(_built, client, f"sqlite:///{folder}/{each.name}.db", [each]), events)
            print(f"{each.name:40} {floors.said(pace)}")
    url = ""
    for number in range(1, rounds + 1):
        url = f"sqlite:///{folder}/all-{number}.db"
        floors = await _floors(client, operator_url, events)
        pace = await _timed(partial(_built, client, url, PROJECTIONS), events)
        print(f"{f'round {number}, all {len(PROJECTIONS)} together':40} {floors.said(pace)}")
    return url


async def _floors(client: Client, operator_url: str, events: int) -> Floors:
    floors = Floors(
        await _timed(partial(_read_bare, client, operator_url), events), await _timed(partial(_read, client), events)
    )
    print(f"{'bare nats-py':40} {_said(floors.bare)}")
    print(f"{'client.log.read':40} {_said(floors.own)}")
    return floors


async def _built(client: Client, url: str, projections: Sequence[Projection[Any]]) -> None:
    shelf = open_shelf(url)
    try:
        await Runner(client, shelf, projections).catch_up()
    finally:
        shelf.close()


async def _read_bare(client: Client, operator_url: str) -> None:
    ended = asyncio.Event()

    async def look(message: Msg) -> None:
        if not message.metadata.num_pending:
            ended.set()

    async with await nats.connect(operator_url) as connection:
        await connection.jetstream().subscribe(
            client.subjects.runs, stream=client.subjects.stream, ordered_consumer=True, cb=look
        )
        async with asyncio.timeout(_BOUND_S):
            await ended.wait()


async def _read(client: Client) -> None:
    async with aclosing(client.log.read(client.subjects.runs)) as records:
        async for _ in records:
            pass


async def _timed(work: Callable[[], Awaitable[None]], events: int) -> Pace:
    began, spent = time.perf_counter(), time.process_time()
    await work()
    return Pace(events / (time.perf_counter() - began), (time.process_time() - spent) / events * 1e6)


def _said(pace: Pace) -> str:
    return f"{pace.events_per_s:>10,.0f} events/s {pace.cpu_us:>6.1f} us of CPU each"


async def _looks(client: Client, url: str, projection: Projection[Any], key: str, looks: int) -> list[float]:
    """How long it takes to have a row as of a random position."""
    shelf = open_shelf(url)
    kept = await Kept.find(client, shelf, projection)
    random, upto = Random(7), await kept.position()
    taken: list[float] = []
    for _ in range(looks):
        began = time.perf_counter()
        await kept.row(key, at=random.randrange(1, upto))
        taken.append(time.perf_counter() - began)
    shelf.close()
    return taken


async def _live(server: str, url: str, seconds: float) -> list[float]:
    """From when each event is sent, by another process, until every projection has it stored."""
    stored: list[tuple[int, float]] = []
    shelf = open_shelf(url)
    stop = asyncio.Event()
    async with connect(server) as client:
        runner = Runner(client, shelf, PROJECTIONS, on_stored=lambda at: stored.append((at, time.monotonic())))
        running = asyncio.create_task(runner.run(stop))
        while not stored:
            await asyncio.sleep(0.05)
        gc.freeze()  # as `phasebus projection run`
        command = [sys.executable, "-m", "benchmarks.story", server, str(LIVE_EVENTS_PER_S), str(seconds)]
        sending = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        said, _ = await sending.communicate()
        sent = [(int(position), float(at)) for position, at in map(str.split, said.decode().splitlines())]
        async with asyncio.timeout(60):
            while stored[-1][0] < sent[-1][0]:
                await asyncio.sleep(0.05)
        stop.set()
        await running
    shelf.close()
    steps = iter(stored)
    upto, when = next(steps)
    lags: list[float] = []
    for position, at in sent:
        while upto < position:
            upto, when = next(steps)
        lags.append(when - at)
    # The first second is for beginning, or half of what there is.
    return lags[int(len(lags) / max(seconds, 2.0)) :]


def _spread(taken: Sequence[float]) -> str:
    half, most = (_percentile(taken, share) * 1000 for share in (0.5, 0.99))
    return f"{half:>10,.1f} ms at p50 {most:>8,.1f} ms at p99"


def _percentile(taken: Sequence[float], share: float) -> float:
    return sorted(taken)[min(int(share * len(taken)), len(taken) - 1)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--looks", type=int, default=1_000)
    parser.add_argument("--live-s", type=float, default=20.0)
    given = parser.parse_args()
    asyncio.run(main(given.events, given.rounds, given.looks, given.live_s))
