"""A worker is killed with a second's work in hand while another is there: how long until it is done after all."""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
import time
from pathlib import Path

from benchmarks.peers.peers import Environment, Peer, running, served

BOUND_S = 60.0
_START_S = 30.0
_SETTLE_S = 5.0
_LOOK_S = 0.005


async def completed_s(peer: Peer, python: str, settings: str) -> float | None:
    """Seconds from SIGKILL to the end of the work in another process; None: not within the bound."""
    async with served(peer, python, is_synced=True, settings=settings) as environment:
        with tempfile.TemporaryDirectory(prefix="peers-kill-") as folder:
            return await _killed(peer, python, environment, Path(folder))


def _seen(folder: Path, what: str) -> list[str]:
    """Of which processes."""
    return [each.name.removeprefix(what) for each in folder.glob(f"{what}*")]


async def _killed(peer: Peer, python: str, environment: Environment, folder: Path) -> float | None:
    with running([peer.command(python, "worker")] * 2, environment):
        # Both are there: some send at once, and who comes later is no other worker.
        await asyncio.sleep(_SETTLE_S)
        with running([peer.command(python, "hold", str(folder), *peer.how)], environment):
            async with asyncio.timeout(_START_S):
                while not (found := _seen(folder, "begun-")):
                    await asyncio.sleep(_LOOK_S)
            os.killpg(os.getpgid(int(found[0])), signal.SIGKILL)
            killed = time.perf_counter()
            while time.perf_counter() < killed + BOUND_S:
                if _seen(folder, "done-"):
                    return time.perf_counter() - killed
                await asyncio.sleep(_LOOK_S)
    return None
