"""The agent that chaos is done to: quick, slow, threaded, and what fails, hangs and blocks by itself now and then.

What a handler does follows from which attempt it is, so that a seed gives the same work each time.
"""

from __future__ import annotations

import asyncio
import hashlib
import time

from bus import Agent, Context, Reject

agent = Agent("chaos")


def chance(context: Context, *salt: object) -> float:
    """A number in [0, 1) that belongs to this piece of work."""
    digest = hashlib.blake2b(repr((context.effect_key, *salt)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32


@agent.capability("chaos.quick", concurrency=4)
async def quick(_: object, context: Context) -> int:
    """Nothing."""
    return context.attempt


@agent.capability("chaos.slow", concurrency=4)
async def slow(_: object, context: Context) -> int:
    """Takes 0.2 to 2 s, and says how far it is."""
    for step in range(4):
        await asyncio.sleep((0.2 + 1.8 * chance(context)) / 4)
        await context.progress((step + 1) / 4)
    return context.attempt


@agent.capability("chaos.thread", concurrency=2)
def thread(_: object, context: Context) -> int:
    """Takes up to half a second, in a thread."""
    time.sleep(0.5 * chance(context))
    return context.attempt


@agent.capability("chaos.flaky", concurrency=4)
async def flaky(_: object, context: Context) -> int:
    """Four tries in ten fail for a passing reason."""
    await asyncio.sleep(0.05)
    if chance(context, context.attempt) < 0.4:
        raise ConnectionResetError("the line to the service broke")
    return context.attempt


@agent.capability("chaos.silent", concurrency=2, silence_s=1.0)
async def silent(_: object, context: Context) -> int:
    """Hangs without a word, the first time."""
    if context.attempt == 1:
        await asyncio.sleep(3600)
    return context.attempt


@agent.capability("chaos.block", concurrency=1)
async def block(query: dict[str, float], context: Context) -> int:
    """Blocks its event loop, the first time."""
    if context.attempt == 1:
        time.sleep(query["s"])  # noqa: ASYNC251 - a blocked loop is the fault
    return context.attempt


@agent.capability("chaos.split", concurrency=4)
async def split(_: object, context: Context) -> list[int]:
    """What `each` phases go over."""
    return list(range(4 + int(5 * chance(context))))


@agent.capability("chaos.reject", concurrency=4)
async def reject(_: object) -> None:
    """Never works."""
    raise Reject("as planned")


if __name__ == "__main__":
    agent.run()
