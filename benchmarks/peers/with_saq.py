"""SAQ on Redis: a task in a list and a key, its result in the same key, told by a message.

`python -m benchmarks.peers.with_saq worker|ask|hold FOLDER`
"""

from __future__ import annotations

import asyncio
import sys

from saq import Queue, Worker  # type: ignore[import-not-found]

from benchmarks.peers import measuring


async def work(_: object, *, value: int) -> int:
    return value


async def hold(_: object, *, folder: str) -> None:
    await measuring.hold(folder)


def _tries() -> dict[str, int]:
    """By itself it tries once. What takes longer than the timeout is stopped."""
    return {"timeout": 5, "retries": 3} if measuring.IS_BEST else {}


async def worker() -> None:
    timers = {"sweep": 1} if measuring.IS_BEST else None
    queue = Queue.from_url(measuring.URL)
    await Worker(queue, functions=[("work", work), ("hold", hold)], concurrency=100, timers=timers).start()


async def ask() -> None:
    best = _tries()
    queue = Queue.from_url(measuring.URL)
    await queue.connect()
    await measuring.measure(lambda: queue.apply("work", value=1, **best))
    await queue.disconnect()


async def send(folder: str) -> None:
    queue = Queue.from_url(measuring.URL)
    await queue.connect()
    await queue.enqueue("hold", folder=folder, **_tries())
    await queue.disconnect()


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    roles: measuring.Roles = {"worker": worker, "ask": ask, "hold": send}
    asyncio.run(roles[role](*arguments))
