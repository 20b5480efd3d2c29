"""An agent whose handlers run in processes of their own, for tests that crash, burden and kill them."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bus import Agent, Context, Reject, Retry
from bus.runs.causality import served

agent = Agent("isolated")


@agent.capability("echo", isolation="process", concurrency=8)
def echo(query: Any) -> Any:
    """The input, after some noise."""
    print("on stdout")
    print("on stderr", file=sys.stderr)
    return query


@agent.capability("facts", isolation="process")
async def facts(_: object, context: Context) -> dict[str, Any]:
    await context.progress(0.5, "half \ud800 way")
    context.logger.info("in a process of its own")
    return {
        "pid": os.getpid(),
        "effect_key": context.effect_key,
        "attempt": context.attempt,
        "deadline": str(context.deadline_at),
    }


ACTS = iter(range(1, 100))


@agent.capability("once.async", isolation="process")
async def once(query: dict[str, int], context: Context) -> dict[str, Any]:
    """Charges once, and mails once; each is told its number among all that were done in this process."""
    numbers = await asyncio.gather(
        context.once("charge", lambda _: next(ACTS)), context.once("mail", lambda _: next(ACTS))
    )
    again = await context.once("charge", lambda _: next(ACTS))
    await context.save("x" * query.get("saves", 0) if "saves" in query else (context.saved(int) or 0) + 1)
    if context.attempt <= query["fails"]:
        raise RuntimeError("not yet")
    return {"numbers": [*numbers, again], "saved": context.saved(int) - 1, "attempt": context.attempt}


@agent.capability("once.thread", isolation="process")
def once_in_thread(query: dict[str, int], context: Context) -> dict[str, Any]:
    numbers = [context.once(key, lambda _: next(ACTS)) for key in ("charge", "mail", "charge")]
    context.save((context.saved(int) or 0) + 1)
    if context.attempt <= query["fails"]:
        raise RuntimeError("not yet")
    return {"numbers": numbers, "saved": context.saved(int) - 1, "attempt": context.attempt}


@agent.capability("count", isolation="process")
def count(upto: int, context: Context) -> str:
    """Emits numbers, and says which story it belongs to, as whatever it calls would know it."""
    for number in range(upto):
        context.emit(number)
    facts = served()
    assert facts is not None
    return facts.correlation


@agent.capability("end", isolation="process")
async def end(how: str, context: Context) -> None:
    match how:
        case "segfault":
            ctypes.string_at(0)
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "abort":
            os.abort()
        case "reject":
            raise Reject("no")
        case "retry":
            raise Retry(2.5)
        case "sys.exit":
            sys.exit(4)
        case "keeper":
            os.kill(os.getppid(), signal.SIGKILL)
            while True:
                context.alive()
                await asyncio.sleep(0.01)
        case _:
            raise ConnectionRefusedError(how)


@agent.capability("typed", isolation="process")
def typed(number: int) -> int:
    return "seven" if number else 0  # type: ignore[return-value]


@agent.capability("hoard", isolation="process", memory_mb=64)
def hoard(megabytes: int) -> int:
    return len(bytearray(megabytes * 2**20))


@agent.capability("family", isolation="process", concurrency=4)
def family(folder: str, context: Context) -> str:
    """Starts a process, says which ones there are, and stays unless it is to `leave`."""
    child = subprocess.Popen(["sleep", "600"])
    told = Path(folder, "pids")
    told.with_suffix(".new").write_text(f"{os.getpid()} {os.getppid()} {child.pid}")
    told.with_suffix(".new").rename(told)
    # Nothing that asks nicely would end it.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    while not Path(folder, "leave").exists():
        context.alive()
        time.sleep(0.02)
    return "left"


@agent.capability("pid_kept", isolation="process", cache=True)
def pid_kept(query: int) -> list[int]:
    return [query, os.getpid()]


if __name__ == "__main__":
    agent.run()
