"""An agent that writes a line for each time its handler is called, and for each time it gets to its end."""

import asyncio
import os

from bus import Agent, Context

agent = Agent("marker")


@agent.capability("mark", concurrency=4)
async def mark(query: dict[str, object], context: Context) -> int:
    """Appends to `file`, takes `s` seconds in its first attempt, and appends again."""
    note(str(query["file"]), f"began {context.run} {context.attempt}")
    if context.attempt == 1:
        await asyncio.sleep(float(str(query["s"])))
    note(str(query["file"]), f"ended {context.run} {context.attempt}")
    return context.attempt


def note(file: str, text: str) -> None:
    """One write: lines of several processes do not mix."""
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{text}\n".encode())
    os.close(descriptor)


if __name__ == "__main__":
    agent.run()
