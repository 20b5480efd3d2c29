"""SAQ on Redis: a task in a list and a key, its result in the same key, told by a message.

`python -m benchmarks.peers.with_saq worker|ask|hold FOLDER`
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

from saq import Queue, Worker  # type: ignore[import-not-found]

from benchmarks.peers import measuring

_LOOK_S = 0.05


async def work(_: object, *, value: int) -> int:
    return value


async def hold(_: object, *, folder: str) -> None:
    await measuring.hold(folder)


def _tries() -> dict[str, int]:
    """By itself it tries once. What takes longer than the timeout is stopped."""
    return {"timeout": 5, "retries": 3} if measuring.IS_BEST else {}


_LOOK_S = 0.05


async def worker() -> None:
    # Under load this may give up tasks that were just taken: it is no setting to keep.
    timers = {"sweep": 1} if measuring.IS_KILLED else None
    queue = Queue.from_url(measuring.URL)
    await Worker(queue, functions=[("work", work), ("hold", hold)], concurrency=100, timers=timers).start()


async def ask() -> None:
    queue = Queue.from_url(measuring.URL)
    await queue.connect()

    async def do() -> object:
        # Who is not heard of may have ended before the subscription, for which `apply` takes a second here: look again.
        job = await queue.enqueue("work", value=1, **_tries())
        while not job.completed:
            with suppress(asyncio.TimeoutError):
                await job.refresh(until_complete=_LOOK_S)
        return job.result

    await measuring.measure(do)
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
