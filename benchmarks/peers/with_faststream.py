"""FastStream: a task in a stream, pulled a hundred at a time, acknowledged; the answer is a plain message.

`python -m benchmarks.peers.with_faststream worker|ask|hold FOLDER`
"""

from __future__ import annotations

import asyncio
import sys
from itertools import count

import nats
from faststream import FastStream  # type: ignore[import-not-found]
from faststream.nats import JStream, NatsBroker, PullSub  # type: ignore[import-not-found]
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig

from benchmarks.peers import measuring

_STREAM = JStream("PEER", subjects=["peer.*"])


async def work(value: int) -> int:
    return value


async def worker() -> None:
    broker = NatsBroker(measuring.URL, logger=None)
    # The shorter, the earlier another gets what a dead worker held; what takes longer is done twice.
    config = ConsumerConfig(ack_wait=5) if measuring.IS_BEST else None
    for name, handler in {"work": work, "hold": measuring.hold}.items():
        pull = PullSub(batch_size=100)
        broker.subscriber(f"peer.{name}", durable=name, stream=_STREAM, pull_sub=pull, config=config)(handler)
    await FastStream(broker).run(log_level=30)


async def ask() -> None:
    connection = await nats.connect(measuring.URL)
    inbox, waiting, tokens = connection.new_inbox(), dict[str, asyncio.Future[bytes]](), count()

    async def answered(message: Msg) -> None:
        answer = waiting.pop((message.headers or {}).get("correlation_id", ""), None)
        if answer is not None:
            answer.set_result(message.data)

    await connection.subscribe(inbox, cb=answered)
    while "PEER" not in [each.config.name for each in await connection.jetstream().streams_info()]:
        await asyncio.sleep(0.1)
    async with NatsBroker(measuring.URL) as broker:

        async def do() -> object:
            token = str(next(tokens))
            answer = waiting[token] = asyncio.get_running_loop().create_future()
            await broker.publish(1, "peer.work", reply_to=inbox, stream="PEER", correlation_id=token)
            return await answer

        await measuring.measure(do)
    await connection.close()


async def send(folder: str) -> None:
    async with NatsBroker(measuring.URL) as broker:
        await broker.publish(folder, "peer.hold", stream="PEER")


if __name__ == "__main__":
    role, *arguments = sys.argv[1:]
    roles: measuring.Roles = {"worker": worker, "ask": ask, "hold": send}
    asyncio.run(roles[role](*arguments))
