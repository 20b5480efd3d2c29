"""What the log costs beside bare nats-py, on the same server in the same run: appending, reading, memory.

python -m benchmarks.log [--synced]     # without --synced the disk is not waited for, so that our own cost shows
"""

from __future__ import annotations

import asyncio
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import nats
from nats.aio.client import Client as Raw
from nats.aio.msg import Msg

from bus import connect
from bus.broker.configuration import Durability
from bus.broker.server import Server, embedded
from bus.format.envelope import Envelope, encode, envelope
from bus.log.log import Log, Part
from bus.rules import events

_ROUNDS = 5
_AWAITED = 500
_PIPELINED = 10_000
_READ = 100_000
_RUNS = 500
_MILLION = 1_000_000
_AT = datetime(2026, 1, 1, tzinfo=UTC)
_EVENT = events.PhaseProgressed("collect", 1, 0.5, "x" * 12)


def _message(count: int = 1) -> Envelope:
    """A commit of `count` events; with one it has about 300 bytes."""
    return envelope(events.COMMIT, events.body([_EVENT] * count), id=uuid4().hex, source="/b", time=_AT, runid="r")


_BYTES = encode(_message())


@asynccontextmanager
async def _raw(server: Server) -> AsyncIterator[Raw]:
    connection = await nats.connect(server.operator_url)
    try:
        await connection.jetstream().add_stream(name="FLOOR", subjects=["floor.>"])
        yield connection
        await connection.jetstream().delete_stream("FLOOR")
    finally:
        await connection.close()


async def _per_second(count: int, work: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await work()
    return count / (time.perf_counter() - began)


async def _paired(
    count: int, raw: Callable[[], Awaitable[None]], ours: Callable[[], Awaitable[None]]
) -> tuple[float, float, float]:
    """Medians per second, and the median ratio of rounds that stood next to each other: the machine is noisy."""
    floors, rates = [], []
    for _ in range(_ROUNDS):
        floors.append(await _per_second(count, raw))
        rates.append(await _per_second(count, ours))
    ratio = statistics.median(rate / floor for rate, floor in zip(rates, floors, strict=True))
    return statistics.median(floors), statistics.median(rates), ratio


def _say(what: str, floor: float, rate: float, ratio: float, wanted: str) -> None:
    print(f"{what:<52} {floor:>10,.0f} {rate:>10,.0f} {ratio:>8.2f}   {wanted}")


async def _appends(server: Server, log: Log) -> None:
    async with _raw(server) as connection:
        stream = connection.jetstream(publish_async_max_pending=1_000)

        async def raw_awaited() -> None:
            for number in range(_AWAITED):
                await stream.publish(f"floor.r{number % _RUNS}", _BYTES)

        async def awaited() -> None:
            for number in range(_AWAITED):
                await log.append(f"bus.run.r{number % _RUNS}", _message())

        async def raw_pipelined() -> None:
            answers = [await stream.publish_async(f"floor.r{n % _RUNS}", _BYTES) for n in range(_PIPELINED)]
            await asyncio.gather(*answers)

        async def pipelined() -> None:
            async with log.pipeline() as pipeline:
                for number in range(_PIPELINED):
                    await pipeline.append(Part(f"bus.run.r{number % _RUNS}", _message()))

        async def tens() -> None:
            for _ in range(_AWAITED // 10):
                await log.append("bus.run.tens", _message(10))

        _say("appends awaited one by one", *await _paired(_AWAITED, raw_awaited, awaited), ">= 0.8")
        _say("appends pipelined, 1,000 unanswered", *await _paired(_PIPELINED, raw_pipelined, pipelined), ">= 0.7")
        _say("events in commits of 10 (beside: commits of 1)", *await _paired(_AWAITED, awaited, tens), ">= 5")


async def _reads(server: Server, log: Log) -> None:
    async with log.pipeline() as pipeline:
        for number in range(_READ):
            await pipeline.append(Part(f"bus.topic.r{number % _RUNS}", _message()))

    async def ours() -> None:
        assert len([None async for _ in log.read("bus.topic.*")]) == _READ

    best = {"push consumer": _pushed(server), "ordered consumer": _ordered(server), "batched direct get": _got(server)}
    rates = {name: [await _per_second(_READ, work) for _ in range(3)] for name, work in best.items()}
    for name, found in rates.items():
        print(f"  raw, {name:<45} {statistics.median(found):>10,.0f}")
    fastest = max(best, key=lambda name: statistics.median(rates[name]))
    _say(f"reading {_READ:,} back (beside: {fastest})", *await _paired(_READ, best[fastest], ours), ">= 0.7")


def _pushed(server: Server) -> Callable[[], Awaitable[None]]:
    """A push consumer without acknowledgements into a bare subscription."""

    async def read() -> None:
        connection = await nats.connect(server.url)
        done, take = _counter()
        inbox = connection.new_inbox()
        await connection.subscribe(inbox, cb=take, pending_msgs_limit=-1, pending_bytes_limit=-1)
        config = {"deliver_subject": inbox, "ack_policy": "none", "filter_subject": "bus.topic.*", "mem_storage": True}
        request = {"stream_name": "BUS", "config": config}
        await connection.request("$JS.API.CONSUMER.CREATE.BUS", json.dumps(request).encode())
        await done
        await connection.close()

    return read


def _ordered(server: Server) -> Callable[[], Awaitable[None]]:
    async def read() -> None:
        connection = await nats.connect(server.url)
        done, take = _counter()
        stream = connection.jetstream()
        await stream.subscribe("bus.topic.*", stream="BUS", ordered_consumer=True, cb=take)
        await done
        await connection.close()

    return read


def _got(server: Server) -> Callable[[], Awaitable[None]]:
    async def read() -> None:
        connection = await nats.connect(server.url)
        arrived: asyncio.Queue[Msg] = asyncio.Queue()
        inbox = connection.new_inbox()

        async def take(message: Msg) -> None:
            arrived.put_nowait(message)

        await connection.subscribe(inbox, cb=take, pending_msgs_limit=-1, pending_bytes_limit=-1)
        position = 1
        while True:
            request = {"batch": 1_000, "seq": position, "next_by_subj": "bus.topic.*"}
            await connection.publish("$JS.API.DIRECT.GET.BUS", json.dumps(request).encode(), reply=inbox)
            headers = (await arrived.get()).headers or {}
            while "Status" not in headers:
                headers = (await arrived.get()).headers or {}
            if headers.get("Nats-Num-Pending", "0") == "0":
                break
            position = int(headers["Nats-Last-Sequence"]) + 1
        await connection.close()

    return read


def _counter() -> tuple[asyncio.Future[None], Callable[[Msg], Awaitable[None]]]:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    missing = _READ

    async def take(_: Msg) -> None:
        nonlocal missing
        missing -= 1
        if not missing:
            done.set_result(None)

    return done, take


async def _memory(server: Server, log: Log) -> None:
    """A process of its own reads a million records; its peak over what it had when it was connected."""
    async with log.pipeline() as pipeline:
        for number in range(_MILLION):
            await pipeline.append(Part(f"bus.ops.r{number % _RUNS}", _message()))
    reader = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "benchmarks.log", "--read", server.url, stdout=subprocess.PIPE
    )
    said, _ = await reader.communicate()
    count, grown_mb, rate = json.loads(said)
    what = f"memory grown while reading {count:,}, at {rate:,.0f}/s"
    print(f"{what:<52} {'':>10} {grown_mb:>7.1f} MB {'':>8}   < 50 MB")


async def _read_a_million(url: str) -> None:
    async with connect(url) as client:
        began, before = time.perf_counter(), _peak_mb()
        count = 0
        async for _ in client.log.read("bus.ops.*"):
            count += 1
        print(json.dumps([count, _peak_mb() - before, count / (time.perf_counter() - began)]))


def _peak_mb() -> float:
    """Of this process alone: what `getrusage` says begins with the parent's."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    [peak] = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
    return int(peak.split()[1]) / 2**10


async def main() -> None:
    durability: Durability = "synced" if "--synced" in sys.argv else "fast"
    print(f"{f'{durability}; events of {len(_BYTES)} bytes':<52} {'raw /s':>10} {'ours /s':>10} {'ratio':>8}   wanted")
    async with embedded(durability=durability) as server, connect(server.url, durability=durability) as client:
        await _appends(server, client.log)
    async with embedded(durability="fast") as server, connect(server.url, durability="fast") as client:
        await _reads(server, client.log)
        await _memory(server, client.log)


if __name__ == "__main__":
    if "--read" in sys.argv:
        asyncio.run(_read_a_million(sys.argv[-1]))
    else:
        asyncio.run(main())
