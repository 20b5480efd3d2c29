"""How fast projections catch up, go back in time and follow, next to reading the same log without them.

python -m benchmarks.projections [EVENTS]
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Awaitable, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from random import Random
from typing import Any
from uuid import uuid4

import msgspec

from bus import Client, Phase, Plan, connect
from bus.broker.server import embedded
from bus.format.envelope import Envelope, encode, envelope
from bus.log.log import Part
from bus.log.streams import info
from bus.rules.commands import Begin, Command, Complete, Offer, Take
from bus.rules.decide import decide
from bus.rules.events import COMMIT, Commit, body
from bus.rules.folding import evolve
from bus.rules.run import RunState
from projections.catalogue import BUILT_IN
from projections.kept import Kept
from projections.projection import Projection
from projections.runner import Runner
from projections.runs import RUNS
from projections.shelf import Shelf, open_shelf
from projections.traffic import TRAFFIC

PLAN = Plan("ten", phases=[Phase(f"p{n}", "noop", after=[f"p{n - 1}"] if n else []) for n in range(10)])
PROJECTIONS: Sequence[Projection[Any]] = list(BUILT_IN.values())
EVENTS = 1_000_000
LOOKS = 1_000
LIVE_EVENTS_PER_S, LIVE_S = 2_000, 20


async def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with embedded(durability="fast") as server, connect(server.url) as client:
            written = await _fill(client, count)
            print(f"{written:,} events of runs of {len(PLAN.phases)} phases, in {await _records(client):,} commits")
            floor = max([await _timed(_read(client), written) for _ in range(3)])
            print(f"{'reading alone, the best of 3':32} {floor:>10,.0f} events/s")
            seen = [each for each in PROJECTIONS if {"run.*", "run.>"} & set(each.subjects)]
            for projections in [*([each] for each in seen), PROJECTIONS]:
                name = projections[0].name if len(projections) == 1 else f"all {len(projections)} together"
                shelf = open_shelf(f"sqlite:///{folder}/{name}.db")
                rate = await _timed(Runner(client, shelf, projections).catch_up(), written)
                print(f"{name:32} {rate:>10,.0f} events/s {rate / floor:>8.2f} of reading alone")
            for projection, key, looks in ((RUNS, "r0000001", LOOKS), (TRAFFIC, "noop/bench", LOOKS // 10)):
                taken = await _looks(client, shelf, projection, key, looks)
                print(f"{f'{projection.name} as of any position, p99':32} {taken * 1000:>10,.0f} ms")
            middle, late = await _live(client, server.url, shelf)
            print(f"{'live, from event to row, p50, p99':32} {middle * 1000:>10,.1f} ms {late * 1000:>8.1f} ms")


async def _fill(client: Client, count: int) -> int:
    """Runs that completed, stored as fast as the log takes them; returns the number of events."""
    bodies, events = _story()
    written = 0
    async with client.log.pipeline() as pipeline:
        number = 0
        while written < count:
            number += 1
            for body in bodies:
                message = msgspec.json.decode(body.replace(b"RUN", b"r%07d" % number), type=Envelope)
                fresh = msgspec.structs.replace(message, id=uuid4().hex)
                await pipeline.append(Part(client.subjects.run(f"r{number:07}"), fresh))
            written += events
    return written


def _story() -> tuple[list[bytes], int]:
    """The commits of one run, as they are stored, with RUN for its id; and how many events they have."""
    state: RunState | None = None
    bodies: list[bytes] = []
    count = 0
    now = datetime.now(UTC)
    offer = Offer("noop", "bench", 60.0)
    commands: list[Command] = [Begin(PLAN, msgspec.Raw(b"{}")), Take("p0", None, 1, "noop", "bench", "bench-1", 60.0)]
    commands += [Complete(f"p{n}", None, 1, "bench-1", msgspec.Raw(b'{"ok":true}'), offer) for n in range(10)]
    for command in commands:
        happened = decide(state, command, run="r", now=now)
        commit = Commit("r", uuid4().hex, now, len(bodies) + 1, happened)
        state = evolve(state, commit)
        message = envelope(
            COMMIT, body(happened), id=commit.id, source="/bench", time=now, runid="RUN", correlationid="RUN"
        )
        bodies.append(encode(message))
        count += len(happened)
    assert state is not None and state.status == "completed"
    return bodies, count


async def _records(client: Client) -> int:
    return (await info(client.connection, client.subjects.stream, 5.0)).messages


async def _read(client: Client) -> int:
    count = 0
    async with aclosing(client.log.read(client.subjects.runs)) as records:
        async for _ in records:
            count += 1
    return count


async def _timed(work: Awaitable[object], events: int) -> float:
    began = time.perf_counter()
    await work
    return events / (time.perf_counter() - began)


async def _looks(client: Client, shelf: Shelf, projection: Projection[Any], key: str, looks: int) -> float:
    """How long it takes to have a row as of a random position: what 99 of 100 do not exceed."""
    kept = await Kept.find(client, shelf, projection)
    random, upto = Random(7), await kept.position()
    taken: list[float] = []
    for _ in range(looks):
        began = time.perf_counter()
        await kept.row(key, at=random.randrange(1, upto))
        taken.append(time.perf_counter() - began)
    return _percentile(taken, 0.99)


async def _live(client: Client, url: str, shelf: Shelf) -> tuple[float, float]:
    """From when an event is sent until every projection has it stored, while 2,000 a second come: p50 and p99."""
    bodies, events = _story()
    sent: list[tuple[int, float]] = []
    stored: list[tuple[int, float]] = []
    stop = asyncio.Event()
    async with connect(url) as own:
        runner = Runner(own, shelf, PROJECTIONS, on_stored=lambda at: stored.append((at, time.perf_counter())))
        running = asyncio.create_task(runner.run(stop))
        began = time.perf_counter()
        for number in range(LIVE_S * LIVE_EVENTS_PER_S // events):
            for place, body in enumerate(bodies):
                due = began + (number + place / len(bodies)) * events / LIVE_EVENTS_PER_S
                await asyncio.sleep(max(due - time.perf_counter(), 0))
                message = msgspec.json.decode(body.replace(b"RUN", b"live-%07d" % number), type=Envelope)
                at = time.perf_counter()
                fresh = msgspec.structs.replace(message, id=uuid4().hex)
                sent.append((await client.log.append(client.subjects.run(f"live-{number:07}"), fresh), at))
        async with asyncio.timeout(60):
            while not stored or stored[-1][0] < sent[-1][0]:
                await asyncio.sleep(0.05)
        stop.set()
        await running
    steps = iter(stored)
    upto, when = next(steps)
    lags: list[float] = []
    # The first second is for catching up.
    for position, at in sent[len(sent) // LIVE_S :]:
        while upto < position:
            upto, when = next(steps)
        lags.append(when - at)
    return _percentile(lags, 0.5), _percentile(lags, 0.99)


def _percentile(taken: Sequence[float], share: float) -> float:
    return sorted(taken)[min(int(share * len(taken)), len(taken) - 1)]


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS))
