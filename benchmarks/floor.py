"""The floor: what bare nats-py needs for one awaited JetStream publish on the same server, in the same run."""

from __future__ import annotations

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
