"""An agent that holds on to its work in every way there is, and writes down what it is told; for tests that stop it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from pathlib import Path

from bus import Agent, Context

agent = Agent("holder")


def note(folder: str, name: str, text: object = "") -> None:
    """A file of that name, whole as soon as it is there."""
    draft = Path(folder, f".{name}")
    draft.write_text(str(text))
    draft.rename(Path(folder, name))


def may_go(folder: str) -> bool:
    return Path(folder, "go").exists()


@agent.capability("hold.async", concurrency=2)
async def hold_async(folder: str, context: Context) -> str:
    """Waits to be cancelled, or for a file `go`."""
    note(folder, "async.began", os.getpid())
    try:
        while not may_go(folder):
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        note(folder, "async.ended", context.pulse.ended)
        raise
    return f"went on in attempt {context.attempt}"


@agent.capability("hold.stubborn")
async def hold_stubborn(folder: str) -> str:
    """Is cancelled, and does not care until there is a file `go`."""
    note(folder, "stubborn.began", os.getpid())
    while not may_go(folder):
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            note(folder, "stubborn.ended")
    return "too late"


@agent.capability("hold.thread")
def hold_thread(folder: str, context: Context) -> None:
    """Looks whether it is still wanted."""
    note(folder, "thread.began", os.getpid())
    while not context.cancelled:
        time.sleep(0.01)
    note(folder, "thread.ended", context.pulse.ended)


@agent.capability("hold.reporting")
def hold_reporting(folder: str, context: Context) -> None:
    """Says again and again how far it is."""
    note(folder, "reporting.began", os.getpid())
    while not context.cancelled:
        context.progress(0.5, "still here")
        time.sleep(0.05)
    note(folder, "reporting.ended", context.pulse.ended)


@agent.capability("hold.process", isolation="process")
def hold_process(folder: str) -> None:
    """Starts another process, and neither ends by itself."""
    child = subprocess.Popen(["sleep", "600"])
    note(folder, "process.began", f"{os.getpid()} {os.getppid()} {child.pid}")
    child.wait()


if __name__ == "__main__":
    agent.run()
