"""taskiq on NATS: a task in a stream, its result in an object store, looked for every 10 ms.

`python -m benchmarks.peers.with_taskiq`, with NATS_URL; its worker is
`taskiq worker benchmarks.peers.with_taskiq:broker`.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress

from taskiq.exceptions import TaskiqError  # type: ignore[import-not-found]
from taskiq_nats import NATSObjectStoreResultBackend, PullBasedJetStreamBroker  # type: ignore[import-not-found]

from benchmarks.peers.measuring import measure

_URL = os.environ["NATS_URL"]
_LOOK_S = 0.01

broker = PullBasedJetStreamBroker(
    servers=_URL,
    subject="taskiq.work",
    stream_name="TASKIQ",
    durable="taskiq",
    pull_consume_batch=100,
    pull_consume_timeout=0.2,
).with_result_backend(NATSObjectStoreResultBackend(servers=_URL))


async def _work(value: int) -> int:
    return value


work = broker.register_task(_work, task_name="work")


async def main() -> None:
    await broker.startup()

    async def do() -> object:
        task = await work.kiq(1)
        while True:
            # Each look makes a consumer; with a hundred at once that times out now and then.
            with suppress(TaskiqError):
                return await task.wait_result(check_interval=_LOOK_S, timeout=60)

    await measure(do, repeats=50, total=500)
    await broker.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
