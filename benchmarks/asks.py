"""What asking costs, beside what the same takes with bare nats-py on the same server, in turn.

python -m benchmarks.asks
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import nats
from nats.aio.client import Client as Connection
from nats.aio.msg import Msg

from bus import Client, connect
from bus.broker.server import Server, embedded

_REPEATS = 300
_AT_ONCE = 100
_TOTAL = 1_000
_ROUNDS = 7
_PAUSE_S = 0.003
_PAYLOAD = b"x" * 300
_WORKER = Path(__file__).with_name("worker.py")
_FLOOR_WORKER = Path(__file__).with_name("floor_worker.py")

Ask = Callable[[], Awaitable[object]]
Row = tuple[str, str, str]
"""What was measured, the figure, and the one that is wanted."""


class Floor:
    """The same with bare nats-py: a synced publish, a consumer, its acknowledgement, and a reply."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._stream = connection.jetstream()
        self._inbox = connection.new_inbox()
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._count = 0

    async def open(self) -> None:
        await self._connection.subscribe(f"{self._inbox}.*", cb=self._answered)

    async def core(self) -> object:
        """The reply is a plain message."""
        return await self._ask("floor.core")

    async def stored(self) -> object:
        """The reply is stored as well, before it is told."""
        return await self._ask("floor.stored")

    async def request(self) -> object:
        """Nothing is stored."""
        return await self._connection.request("floorless", _PAYLOAD, timeout=10)

    async def _ask(self, subject: str) -> object:
        self._count += 1
        token = str(self._count)
        answer = self._waiting[token] = asyncio.get_running_loop().create_future()
        await self._stream.publish(subject, _PAYLOAD, headers={"Answer-To": f"{self._inbox}.{token}"})
        return await answer

    async def _answered(self, message: Msg) -> None:
        answer = self._waiting.pop(message.subject.rpartition(".")[2], None)
        if answer is not None:
            answer.set_result(message.data)


async def main() -> None:
    for what, figure, wanted in await rows():
        print(f"{what:52} {figure:>18} {wanted:>10}")


async def rows() -> list[Row]:
    async with embedded() as server, connect(server.url) as client:
        connection = await nats.connect(server.operator_url)
        await connection.jetstream().add_stream(name="FLOOR", subjects=["floor.*"])
        processes = _workers(server)
        try:
            floor = Floor(connection)
            await floor.open()
            while not await client.agents():
                await asyncio.sleep(0.02)
            asks = _asks(client, floor)
            for ask in asks.values():
                await _warm(ask)
            medians = await _medians_ms(asks)
            rates = [await _rates(asks) for _ in range(_ROUNDS)]
        finally:
            for process in processes:
                process.kill()
                process.wait()
            await connection.close()
    rate = {name: statistics.median(each[name] for each in rates) for name in asks}
    core, stored, request, asked, fast = asks
    return [
        *((name, f"{medians[name]:.2f} ms {rate[name]:.0f}/s", "") for name in asks),
        ("ask, of publish + consume + ack + reply", f"{medians[asked] / medians[core]:.2f}", "<= 1.5"),
        ("ask, of the same with a stored reply", f"{medians[asked] / medians[stored]:.2f}", ""),
        ("fast ask, of request + reply", f"{medians[fast] / medians[request]:.2f}", "<= 1.5"),
        (f"{_AT_ONCE} asks at once, of the floor's rate", f"{rate[asked] / rate[core]:.2f}", ">= 0.5"),
    ]


def _workers(server: Server) -> list[subprocess.Popen[bytes]]:
    environment = {**os.environ, "NATS_URL": server.url}
    return [
        subprocess.Popen([sys.executable, _FLOOR_WORKER, server.operator_url]),
        subprocess.Popen([sys.executable, _WORKER], env=environment),
    ]


def _asks(client: Client, floor: Floor) -> dict[str, Ask]:
    return {
        "nats-py: publish + consume + ack + reply": floor.core,
        "nats-py: the same, the reply stored before": floor.stored,
        "nats-py: request + reply": floor.request,
        "ask": lambda: client.ask("noop", 1),
        "ask, fast": lambda: client.ask("noop", 1, fast=True),
    }


async def _warm(ask: Ask) -> None:
    async with asyncio.timeout(30):
        for _ in range(50):
            await ask()


async def _medians_ms(asks: dict[str, Ask]) -> dict[str, float]:
    """In turn, so that all meet the same moments of the machine, and none what the one before has left to do."""
    taken: dict[str, list[float]] = {name: [] for name in asks}
    for _ in range(_REPEATS):
        for name, ask in asks.items():
            began = time.perf_counter()
            await ask()
            taken[name].append(time.perf_counter() - began)
            await asyncio.sleep(_PAUSE_S)
    return {name: statistics.median(each) * 1000 for name, each in taken.items()}


async def _rates(asks: dict[str, Ask]) -> dict[str, float]:
    rates: dict[str, float] = {}
    for name, ask in asks.items():
        left = iter(range(_TOTAL))

        async def lane(ask: Ask = ask, left: Iterator[int] = left) -> None:
            for _ in left:
                await ask()

        began = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(_AT_ONCE)))
        rates[name] = _TOTAL / (time.perf_counter() - began)
    return rates


if __name__ == "__main__":
    asyncio.run(main())
