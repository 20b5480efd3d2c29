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
from bus.commands import Begin, Command, Complete, Offer, Take
from bus.decide import decide
from bus.envelope import Envelope, encode, envelope
from bus.events import COMMIT, Commit, body
from bus.folding import evolve
from bus.log import Part
from bus.run import RunState
from bus.server import embedded
from bus.streams import info
from projections.kept import Kept
from projections.projection import Projection
from projections.runner import Runner
from projections.runs import RUNS
from projections.shelf import Shelf, open_shelf

PLAN = Plan("ten", phases=[Phase(f"p{n}", "noop", after=[f"p{n - 1}"] if n else []) for n in range(10)])
PROJECTIONS: Sequence[Projection[Any]] = [RUNS]
EVENTS = 1_000_000
LOOKS = 100


async def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with embedded(durability="fast") as server, connect(server.url) as client:
            written = await _fill(client, count)
            print(f"{written:,} events of runs of {len(PLAN.phases)} phases, in {await _records(client):,} commits")
            floor = await _timed(_read(client), written)
            print(f"{'reading alone':32} {floor:>10,.0f} events/s")
            for projections in [*([each] for each in PROJECTIONS), PROJECTIONS]:
                name = projections[0].name if len(projections) == 1 else "all together"
                shelf = open_shelf(f"sqlite:///{folder}/{name}.db")
                rate = await _timed(Runner(client, shelf, projections).catch_up(), written)
                print(f"{name:32} {rate:>10,.0f} events/s {rate / floor:>8.2f} of reading alone")
            taken = await _looks(client, shelf)
            print(f"{'as of a random position, p99':32} {taken * 1000:>10,.0f} ms")


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


async def _looks(client: Client, shelf: Shelf) -> float:
    """How long it takes to have one run as of a random position, the slowest of a hundred."""
    kept = await Kept.find(client, shelf, RUNS)
    random, upto = Random(7), await kept.position()
    taken: list[float] = []
    for _ in range(LOOKS):
        began = time.perf_counter()
        await kept.row("r0000001", at=random.randrange(1, upto))
        taken.append(time.perf_counter() - began)
    return max(taken)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else EVENTS))
