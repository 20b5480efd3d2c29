"""FastStream: a task in a stream, pulled a hundred at a time, acknowledged; the answer is a plain message.

`python -m benchmarks.peers.with_faststream URL [worker]`
"""

from __future__ import annotations

import asyncio
import sys
from itertools import count

import nats
from faststream import FastStream  # type: ignore[import-not-found]
from faststream.nats import JStream, NatsBroker, PullSub  # type: ignore[import-not-found]
from nats.aio.msg import Msg

from benchmarks.peers.measuring import measure

_STREAM = JStream("PEER", subjects=["peer.work"])


async def work(value: int) -> int:
    return value


async def serve(url: str) -> None:
    broker = NatsBroker(url, logger=None)
    broker.subscriber("peer.work", durable="peer", stream=_STREAM, pull_sub=PullSub(batch_size=100))(work)
    await FastStream(broker).run(log_level=30)


async def ask(url: str) -> None:
    connection = await nats.connect(url)
    inbox, waiting, tokens = connection.new_inbox(), dict[str, asyncio.Future[bytes]](), count()

    async def answered(message: Msg) -> None:
        answer = waiting.pop((message.headers or {}).get("correlation_id", ""), None)
        if answer is not None:
            answer.set_result(message.data)

    await connection.subscribe(inbox, cb=answered)
    while "PEER" not in [each.config.name for each in await connection.jetstream().streams_info()]:
        await asyncio.sleep(0.1)
    async with NatsBroker(url) as broker:

        async def do() -> object:
            token = str(next(tokens))
            answer = waiting[token] = asyncio.get_running_loop().create_future()
            await broker.publish(1, "peer.work", reply_to=inbox, stream="PEER", correlation_id=token)
            return await answer

        await measure(do, repeats=300, total=3_000)
    await connection.close()


if __name__ == "__main__":
    asyncio.run((serve if sys.argv[2:] == ["worker"] else ask)(sys.argv[1]))
