"""Each with a server and a worker of its own, one after the other, several times; the best of each.

`python -m benchmarks.peers PYTHON... [--rounds 3] [--only NAME] [--kills]`: interpreters, the first that has it
is taken, for `faststream[nats]`, `taskiq-nats`, `taskiq-redis`, `celery[redis]`, `dramatiq[redis]`, `saq[redis]`,
`autogen-core` with `autogen-ext[grpc]` and `synadia-ai-agent-service`, or some of them; and another for `arq`, which
wants an older redis-py than others. What keeps nothing is beside what keeps nothing, and synced beside synced:
nats-server with `sync_interval: always`, redis-server with `appendfsync always`; unsynced is what syncs once a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
from collections.abc import Iterable

from benchmarks.peers.kills import BOUND_S, completed_s
from benchmarks.peers.peers import PEERS, Peer, output, running, served

_BOUND_S = 40.0
_KILLS_AT_ONCE = 3

# ms and tasks a second, synced and not; missing if it failed.
Pythons = dict[Peer, str]
Found = dict[tuple[str, bool], tuple[float, float]]


async def main(chosen: argparse.Namespace) -> None:
    found = {peer: peer.installed(chosen.pythons) for peer in PEERS if chosen.only in peer.name}
    there = {peer: have[0] for peer, have in found.items() if have and not peer.lacks_server}
    if chosen.kills:
        rows = await _kills(there)
    else:
        rows = _table(there, await _rounds(there, chosen.rounds))
    print(f"load average {' '.join(f'{each:.1f}' for each in os.getloadavg())}")
    for peer, have in found.items():
        name = f"{peer.name} {have[1]}" if have else peer.name
        said = rows.get(peer, "redis-server is not installed" if have else "not installed")
        print(f"{name:28} {peer.keeps:16} {said}")


async def _rounds(peers: Pythons, count: int) -> Found:
    best: Found = {}
    for _ in range(count):
        for peer, python in peers.items():
            for is_synced in (True, False) if peer.keeps != "nothing" else (True,):
                try:
                    median_ms, rate = await _measured(peer, python, is_synced)
                except (subprocess.SubprocessError, IndexError) as error:
                    print(f"{peer.name}: {error}")
                    continue
                before = best.get((peer.name, is_synced), (median_ms, rate))
                best[peer.name, is_synced] = min(before[0], median_ms), max(before[1], rate)
    return best


async def _measured(peer: Peer, python: str, is_synced: bool) -> tuple[float, float]:
    async with served(peer, python, is_synced=is_synced) as environment:
        with running([peer.command(python, "worker")], environment):
            ask = peer.command(python, "ask", *peer.how)
            printed = await asyncio.to_thread(output, ask, environment, _BOUND_S)
    found = json.loads(printed.splitlines()[-1])
    return found["median_ms"], found["per_s"]


def _table(peers: Iterable[Peer], found: Found) -> dict[Peer, str]:
    rows = {}
    for peer in peers:
        columns = [found.get((peer.name, is_synced)) for is_synced in (True, False)]
        rows[peer] = "  ".join(f"{each[0]:8.2f} ms {each[1]:7.0f}/s" if each else " " * 21 for each in columns)
    return rows


async def _kills(peers: Pythons) -> dict[Peer, str]:
    turn = asyncio.Semaphore(_KILLS_AT_ONCE)

    async def said(peer: Peer, settings: str) -> str:
        async with turn:
            try:
                taken_s = await completed_s(peer, peers[peer], settings)
            except (TimeoutError, ProcessLookupError) as error:
                return f"failed: {error!r}"
        return f"{taken_s:.1f} s" if taken_s is not None else f"not within {BOUND_S:.0f} s"

    async def row(peer: Peer) -> tuple[Peer, str]:
        usual, best = await asyncio.gather(said(peer, "usual"), said(peer, "best"))
        return peer, f"{usual:18} {best}"

    return dict(await asyncio.gather(*(row(peer) for peer in peers)))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("pythons", nargs="+", metavar="python", help="an interpreter that has some of the others")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="whose name has this in it")
    parser.add_argument("--kills", action="store_true", help="kill a worker instead of measuring what tasks take")
    return parser.parse_args()


if __name__ == "__main__":
    asyncio.run(main(options()))
