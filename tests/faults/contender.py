"""A process that wants a lock: `contender.py URL NAME MODE [TTL_S]`. It writes what it does to stdout, line by line.

Each line is a JSON list. `hold` takes the lock once and holds it; `work` takes it again and again, and writes a fenced
record each time; `lead` stands for the lead; `wait` waits in line.
"""

import asyncio
import json
import sys
from uuid import uuid4

from bus import BusError, Client, Lease, LeaseLost, connect
from bus.clock import utc_now
from bus.format.envelope import envelope


def say(*words: object) -> None:
    print(json.dumps(words), flush=True)


async def write(client: Client, lease: Lease, name: str) -> None:
    message = envelope("noted.v1", [name, lease.token], id=uuid4().hex, source=f"/{name}", time=utc_now())
    await client.log.append("bus.topic.shared", message, fence=lease)


async def hold(client: Client, name: str, ttl_s: int) -> None:
    """Says at once when it finds out that it has lost it, and what the log then says to its token."""
    try:
        async with client.lock("shared", timeout_s=60, ttl_s=ttl_s) as lease:
            say("held", lease.token)
            while True:
                await asyncio.sleep(0.05)
                lease.check()
    except LeaseLost as lost:
        say("lost", lost.token)
    try:
        await write(client, lease, name)
    except LeaseLost:
        say("refused", lease.token)
    else:
        say("written", lease.token)


async def work(client: Client, name: str, ttl_s: int) -> None:
    while True:
        try:
            async with client.lock("shared", timeout_s=60, ttl_s=ttl_s) as lease:
                await write(client, lease, name)
                say("wrote", lease.token)
        except BusError as error:
            say("failed", type(error).__name__)
            await asyncio.sleep(0.05)


async def lead(client: Client, _name: str, ttl_s: int) -> None:
    async with client.election("shared", ttl_s=ttl_s) as candidacy:
        async for term in candidacy:
            if term.lease is not None:
                say("held", term.lease.token)


async def main(url: str, name: str, mode: str, ttl_s: str = "1") -> None:
    modes = {"hold": hold, "wait": hold, "work": work, "lead": lead}
    async with connect(url, name=name) as client:
        await modes[mode](client, name, int(ttl_s))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
