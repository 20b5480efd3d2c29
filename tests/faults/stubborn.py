"""An agent whose handlers can't be ended: one keeps its cancellation to itself, one waits for a thread."""

import asyncio
import time
from contextlib import suppress
from pathlib import Path

from bus import Agent

agent = Agent("stubborn")


def begun(file: str) -> None:
    with Path(file).open("a") as lines:
        lines.write("began\n")


@agent.capability("swallow")
async def swallow(file: str) -> None:
    begun(file)
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)


@agent.capability("thread")
async def thread(file: str) -> None:
    begun(file)
    await asyncio.to_thread(time.sleep, 600)


if __name__ == "__main__":
    agent.run()
