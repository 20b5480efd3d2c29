"""arq on Redis: a task in a key and a sorted set, its result in a key; both are looked for every 10 ms.

`python -m benchmarks.peers.with_arq worker|ask|hold FOLDER`
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, ClassVar

from arq import create_pool, func  # type: ignore[import-not-found]
from arq.connections import RedisSettings  # type: ignore[import-not-found]
from arq.worker import run_worker  # type: ignore[import-not-found]

from benchmarks.peers import measuring

_REDIS = RedisSettings.from_dsn(measuring.URL)


async def work(_: object, value: int) -> int:
    return value


async def hold(_: object, folder: str) -> None:
    await measuring.hold(folder)


class Settings:
    redis_settings = _REDIS
    functions: ClassVar = [func(work, name="work"), func(hold, name="hold")]
    max_jobs = 100
    poll_delay = measuring.POLL_S
    # Another takes it ten seconds after that. What takes longer than this is stopped.
    job_timeout = 5 if measuring.IS_BEST else 300


async def ask() -> None:
    pool = await create_pool(_REDIS)

    async def do() -> Any:
        job = await pool.enqueue_job("work", 1)
        return await job.result(poll_delay=measuring.POLL_S)

    await measuring.measure(do)
    await pool.aclose()


async def send(folder: str) -> None:
    pool = await create_pool(_REDIS)
    await pool.enqueue_job("hold", folder)
    await pool.aclose()


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    if role == "worker":
        asyncio.set_event_loop(asyncio.new_event_loop())
        run_worker(Settings)
    else:
        roles: measuring.Roles = {"ask": ask, "hold": send}
    asyncio.run(roles[role](*arguments))
