"""An agent that writes down what it does, in a file that all its processes share: one line for each piece of work."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from bus import Agent, Context, Reject, Retry

agent = Agent("booker")
BOOK = Path(os.environ["PHASEBUS_WORKDIR"]) / "book"


@agent.capability("keep", ordered=True, on_dead="park", concurrency=4)
async def keep(order: tuple[str, int]) -> None:
    key, number = order
    await asyncio.sleep(0.01)
    if number == 5 and key.endswith(("0", "1", "2", "3")) and not (BOOK.parent / "mended").exists():
        raise Reject("not yet")
    with BOOK.open("a") as lines:
        lines.write(f"{key} {number}\n")


@agent.capability("book", ordered=True, concurrency=4)
async def book(order: tuple[str, int], context: Context) -> int:
    key, number = order
    with BOOK.open("a") as lines:
        lines.write(f"{key} {number}\n")
    await asyncio.sleep(0.02)
    if number % 7 == 3 and context.attempt == 1:
        raise Retry(0.05)
    return number


if __name__ == "__main__":
    agent.run()
