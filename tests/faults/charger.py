"""An agent that charges money outside, and dies at a chosen step of doing so, the first time; for tests that count."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from msgspec import Struct

from bus import Agent, Context, Done, NotDone

agent = Agent("charger")


class Order(Struct, frozen=True):
    """`file` gets a line for each charge; `die` says where the first attempt ends, `turns` how far it gets there."""

    file: str
    die: str = ""
    turns: int = 0
    reconciles: bool = False


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def charged(order: Order, key: str) -> Done | NotDone:
    """Look into the books."""
    lines = Path(order.file).read_text().splitlines() if Path(order.file).exists() else []
    return Done(len(lines)) if key in lines else NotDone("not in the books")


def charge(order: Order, attempt: int, key: str) -> int:
    if order.die == "before act" and attempt == 1:
        die()
    with Path(order.file).open("a") as books:
        books.write(f"{key}\n")
    if order.die == "after act" and attempt == 1:
        die()
    return len(Path(order.file).read_text().splitlines())


def die_in(turns: int) -> None:
    """After so many turns of the event loop."""
    if not turns:
        die()
    asyncio.get_running_loop().call_soon(die_in, turns - 1)


@agent.capability("charge.async", concurrency=4)
async def charge_async(order: Order, context: Context) -> int:
    if context.attempt == 1 and order.die == "before intent":
        die()
    if context.attempt == 1 and order.die == "some turns later":
        die_in(order.turns)
    look = (lambda key: charged(order, key)) if order.reconciles else None
    number: int = await context.once("charge", lambda key: charge(order, context.attempt, key), look)
    if context.attempt == 1 and order.die == "after outcome":
        die()
    return number


@agent.capability("charge.thread")
def charge_thread(order: Order, context: Context) -> int:
    if context.attempt == 1 and order.die == "before intent":
        die()
    look = (lambda key: charged(order, key)) if order.reconciles else None
    number: int = context.once("charge", lambda key: charge(order, context.attempt, key), look)
    if context.attempt == 1 and order.die == "after outcome":
        die()
    return number


agent.capability("charge.process", isolation="process")(charge_thread)


if __name__ == "__main__":
    agent.run()
