"""taskiq: on NATS a task in a stream and its result in an object store, on Redis in a stream and a key; the result is
looked for every 10 ms.

`python -m benchmarks.peers.with_taskiq worker|ask|hold FOLDER`, on what PEER_URL names.
"""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from typing import Any

from taskiq.exceptions import TaskiqError  # type: ignore[import-not-found]

from benchmarks.peers import measuring

# How long a task is a worker's own without a word from it. What takes longer is done twice.
_HELD_S = 5


def _broker(url: str) -> Any:
    if url.startswith("redis"):
        from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker  # type: ignore[import-not-found]

        best = {"idle_timeout": _HELD_S * 1000, "xread_block": 1000} if measuring.IS_BEST else {}
        return RedisStreamBroker(url, consumer_id="0", **best).with_result_backend(RedisAsyncResultBackend(url))
    from nats.js.api import AckPolicy, ConsumerConfig
    from taskiq_nats import (  # type: ignore[import-not-found]
        NATSObjectStoreResultBackend,
        PullBasedJetStreamBroker,
    )

    config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, durable_name="taskiq", ack_wait=_HELD_S)
    return PullBasedJetStreamBroker(
        servers=url,
        subject="taskiq.work",
        stream_name="TASKIQ",
        durable="taskiq",
        consumer_config=config if measuring.IS_BEST else None,
        pull_consume_batch=100,
        pull_consume_timeout=0.2,
    ).with_result_backend(NATSObjectStoreResultBackend(servers=url))


async def _work(value: int) -> int:
    return value


broker = _broker(measuring.URL)
work = broker.register_task(_work, task_name="work")
hold = broker.register_task(measuring.hold, task_name="hold")


async def ask() -> None:
    await broker.startup()

    async def do() -> object:
        task = await work.kiq(1)
        while True:
            # On NATS each look makes a consumer; with a hundred at once that times out now and then.
            with suppress(TaskiqError):
                return await task.wait_result(check_interval=measuring.POLL_S, timeout=60)

    few = {} if measuring.URL.startswith("redis") else {"repeats": 50, "total": 500}
    await measuring.measure(do, **few)
    await broker.shutdown()


async def send(folder: str) -> None:
    await broker.startup()
    await hold.kiq(folder)
    await broker.shutdown()


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    if role == "worker":
        command = ["-m", "taskiq", "worker", "--workers", "1", "--log-level", "ERROR"]
        os.execv(sys.executable, [sys.executable, *command, "benchmarks.peers.with_taskiq:broker"])
    roles: measuring.Roles = {"ask": ask, "hold": send}
    asyncio.run(roles[role](*arguments))
