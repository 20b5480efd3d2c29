"""What happens to runs, from after a position on: NATS_URL=nats://auditor:...@127.0.0.1:4222 python events.py 0"""

import asyncio
import sys
from contextlib import aclosing

import bus


async def main(position: int) -> None:
    async with (
        bus.connect(alone=False) as client,
        aclosing(client.events(subjects=["bus.run.*"], after=position, follow=True)) as events,
    ):
        async for event in events:
            print(event.position, event.type, event.phase or "", flush=True)


asyncio.run(main(int(sys.argv[1])))
