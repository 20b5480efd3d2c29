"""A supervisor in a process of its own, for tests that kill it: `leader.py URL NAME [dies-before-acknowledging]`."""

import asyncio
import os
import signal
import sys

from agents.supervisor import Supervisor
from bus import connect
from bus.broker.pull import Delivery


async def _die(_delivery: Delivery, _timeout_s: float) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(url: str, name: str, *faults: str) -> None:
    if faults == ("dies-before-acknowledging",):
        Delivery.ack_sync = _die  # type: ignore[method-assign]
    async with connect(url, name=name, beat_s=0.5, lease_s=1.0) as client:
        await Supervisor(client, name).run(asyncio.Event())


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
