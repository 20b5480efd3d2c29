"""What one save of one event costs: ours beside the floor, and beside the recorders that `eventsourcing` ships.

python -m benchmarks.eventsourcing [synced|fast]
"""

from __future__ import annotations

import asyncio
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Literal
from uuid import uuid4

import nats
from eventsourcing.persistence import ApplicationRecorder, InfrastructureFactory, StoredEvent
from eventsourcing.utils import Environment

from benchmarks.postgres import postgres
from bus.broker.server import Server

_STATE = b"x" * 300
_ALONE = 600
_TOGETHER = 3000
_THREADS = 100
_ROUNDS = 5

Pair = tuple[float, float]


def main(durability: Literal["synced", "fast"] = "synced") -> None:
    server = Server(Path(tempfile.mkdtemp(prefix="benchmark-")), None, durability, "bus")
    asyncio.run(server.start())
    try:
        with postgres() as postgres_env:
            if postgres_env is None:
                print("PostgreSQL left out: needs a server (Debian: postgresql) and pip install 'psycopg[pool]'")
            _print(_measure(server, postgres_env), durability)
    finally:
        asyncio.run(server.stop())


def _measure(server: Server, postgres_env: dict[str, str] | None) -> dict[str, Pair]:
    """Medians of rounds in which everybody has a turn, so that what else the machine does meets them all."""
    database = str(Path(tempfile.mkdtemp(prefix="benchmark-")) / "events.db")
    factories = {
        "phasebus on JetStream": _factory("bus.eventsourcing", NATS_URL=server.url, PHASEBUS_LOG_LEVEL="error"),
        "SQLite, file": _factory("eventsourcing.sqlite", SQLITE_DBNAME=database),
        "POPO, in memory": _factory("eventsourcing.popo"),
    }
    if postgres_env is not None:
        logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
        factories["PostgreSQL"] = _factory("eventsourcing.postgres", **postgres_env)
    floor = server.operator_url
    turns: dict[str, Callable[[], Pair]] = {"raw nats-py publish, awaited": lambda: asyncio.run(_floor(floor))}
    for name, factory in factories.items():
        recorder = factory.application_recorder()
        turns[name] = lambda recorder=recorder: _saves(recorder)  # type: ignore[misc]
    taken: dict[str, list[Pair]] = {name: [] for name in turns}
    for round_number in range(_ROUNDS + 1):
        for name, turn in turns.items():
            pair = turn()
            if round_number:  # the first warms up
                taken[name].append(pair)
    for factory in factories.values():
        factory.close()
    return {
        name: (statistics.median(pair[0] for pair in pairs), statistics.median(pair[1] for pair in pairs))
        for name, pairs in taken.items()
    }


def _factory(module: str, **env: str) -> InfrastructureFactory:
    return InfrastructureFactory.construct(Environment("Benchmark", {"PERSISTENCE_MODULE": module, **env}))


def _saves(recorder: ApplicationRecorder) -> Pair:
    def save() -> None:
        recorder.insert_events([StoredEvent(uuid4(), 1, "benchmark:Saved", _STATE)])

    began = time.perf_counter()
    for _ in range(_ALONE):
        save()
    alone = _ALONE / (time.perf_counter() - began)
    there = Barrier(_THREADS + 1)

    def some() -> None:
        save()  # every thread and its connection is there
        there.wait()
        for _ in range(_TOGETHER // _THREADS):
            save()

    with ThreadPoolExecutor(_THREADS) as threads:
        ended = [threads.submit(some) for _ in range(_THREADS)]
        there.wait()
        began = time.perf_counter()
        for each in ended:
            each.result()
        return alone, _TOGETHER / (time.perf_counter() - began)


async def _floor(url: str) -> Pair:
    connection = await nats.connect(url)
    stream = connection.jetstream()
    await stream.add_stream(name="FLOOR", subjects=["floor"])
    began = time.perf_counter()
    for _ in range(_ALONE):
        await stream.publish("floor", _STATE)
    alone = _ALONE / (time.perf_counter() - began)

    async def some() -> None:
        for _ in range(_TOGETHER // _THREADS):
            await stream.publish("floor", _STATE)

    began = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(_THREADS)))
    together = _TOGETHER / (time.perf_counter() - began)
    await stream.delete_stream("FLOOR")
    await connection.close()
    return alone, together


def _print(taken: dict[str, Pair], durability: str) -> None:
    floor = next(iter(taken.values()))
    print(f"saves of one event of 300 bytes, per second; nats-server {durability}; median of {_ROUNDS}")
    print(f"{'':30} {'one thread':>12} {'of floor':>9} {f'{_THREADS} threads':>13} {'of floor':>9}")
    for name, (alone, together) in taken.items():
        print(f"{name:30} {alone:12,.0f} {alone / floor[0]:9.2f} {together:13,.0f} {together / floor[1]:9.2f}")


if __name__ == "__main__":
    main("fast" if "fast" in sys.argv[1:] else "synced")
