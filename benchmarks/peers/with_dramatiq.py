"""Dramatiq on Redis: a task in a list and a hash, its result in a key that is waited for.

`python -m benchmarks.peers.with_dramatiq worker|ask|hold FOLDER`
"""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import dramatiq  # type: ignore[import-not-found]
from dramatiq.brokers.redis import RedisBroker  # type: ignore[import-not-found]
from dramatiq.results import Results  # type: ignore[import-not-found]
from dramatiq.results.backends import RedisBackend  # type: ignore[import-not-found]

from benchmarks.peers import measuring

_AT_ONCE = 100
# A worker not heard of for so long is dead; it is looked for with every hundredth command instead of every thousandth.
_BEST = {"heartbeat_timeout": 5_000, "maintenance_chance": 10_000} if measuring.IS_BEST else {}

broker = RedisBroker(url=measuring.URL, **_BEST)
broker.add_middleware(Results(backend=RedisBackend(url=measuring.URL)))
dramatiq.set_broker(broker)


def _work(value: int) -> int:
    return value


work = dramatiq.actor(_work, actor_name="work", store_results=True)
hold = dramatiq.actor(measuring.hold_blocking, actor_name="hold")


def _ask() -> object:
    return work.send(1).get_result(block=True, timeout=60_000)


async def ask() -> None:
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        await measuring.measure(lambda: loop.run_in_executor(pool, _ask))


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    if role == "worker":
        if measuring.IS_BEST:
            os.environ["dramatiq_worker_timeout"] = str(round(measuring.POLL_S * 1000))  # noqa: SIM112 - its own name
        command = ["-m", "dramatiq", "--processes", "1", "--threads", "8", "benchmarks.peers.with_dramatiq"]
        os.execv(sys.executable, [sys.executable, *command])
    elif role == "hold":
        hold.send(*arguments)
    else:
        asyncio.run(ask())
