"""Who answers with bare nats-py: takes a message from a consumer, acknowledges it, and replies."""

from __future__ import annotations

import asyncio
import sys

import nats
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig

_ANSWER = b"y" * 100


async def main(url: str) -> None:
    connection = await nats.connect(url)
    stream = connection.jetstream()
    tasks: set[asyncio.Task[None]] = set()

    async def core(message: Msg) -> None:
        await message.ack()
        await connection.publish((message.headers or {})["Answer-To"], _ANSWER)

    async def store(message: Msg) -> None:
        await stream.publish("floor.answers", _ANSWER)
        await core(message)

    async def stored(message: Msg) -> None:
        task = asyncio.create_task(store(message))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def request(message: Msg) -> None:
        await message.respond(_ANSWER)

    for name, answer in (("core", core), ("stored", stored)):
        # One for each: nats-py writes the names into what it is given.
        config = ConsumerConfig(max_ack_pending=10_000)
        await stream.subscribe(f"floor.{name}", durable=name, cb=answer, manual_ack=True, config=config)
    await connection.subscribe("floorless", cb=request, queue="workers")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
