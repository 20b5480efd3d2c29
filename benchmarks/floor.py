"""The floor: what bare nats-py needs for one awaited JetStream publish on the same server, in the same run."""

from __future__ import annotations

import asyncio
import statistics
import time

import nats

_PAYLOAD = b"x" * 300


async def publish_ms(url: str, count: int = 300) -> float:
    """Median milliseconds of an awaited `js.publish` of 300 bytes to a file stream, by a login that may remove it."""
    connection = await nats.connect(url)
    try:
        stream = connection.jetstream()
        await stream.add_stream(name="FLOOR", subjects=["floor"])
        taken: list[float] = []
        for _ in range(count):
            began = time.perf_counter()
            await stream.publish("floor", _PAYLOAD)
            taken.append(time.perf_counter() - began)
        await stream.delete_stream("FLOOR")
        return statistics.median(taken) * 1000
    finally:
        await connection.close()


async def consumed_per_s(url: str, count: int = 3_000) -> float:
    """Messages a second that bare nats-py publishes (100 awaited at a time), pulls by the hundred and acknowledges."""
    connection = await nats.connect(url)
    try:
        stream = connection.jetstream()
        await stream.add_stream(name="FLOOR", subjects=["floor"])
        pulling = await stream.pull_subscribe("floor", durable="floor")
        began = time.perf_counter()

        async def publish() -> None:
            for _ in range(count // 100):
                await asyncio.gather(*(stream.publish("floor", _PAYLOAD) for _ in range(100)))

        async def consume() -> None:
            taken = 0
            while taken < count:
                for message in await pulling.fetch(100, timeout=5):
                    await message.ack()
                    taken += 1

        await asyncio.gather(publish(), consume())
        rate = count / (time.perf_counter() - began)
        await stream.delete_stream("FLOOR")
        return rate
    finally:
        await connection.close()
