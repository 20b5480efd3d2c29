"""What is measured of each: one task after the other, and a hundred at once; and a task that holds on for a while.

Standard library only, for any peer's environment. `PEER_URL` is where the server is. `PEER_SETTINGS` is `usual` for
what a library does by itself when a worker dies, `best` for the settings with which another has its work soonest, and
`rate` for those with which a task outlives its worker, and is done soonest.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

URL = os.environ.get("PEER_URL", "")
IS_BEST = os.environ.get("PEER_SETTINGS") != "usual"
IS_KILLED = os.environ.get("PEER_SETTINGS") == "best"
POLL_S = 0.01

_AT_ONCE = 100
_HELD_S = 1.0
_PAUSE_S = 0.003
_WARM = 20

Do = Callable[[], Awaitable[object]]
Roles = dict[str, Callable[..., Coroutine[Any, Any, None]]]
T = TypeVar("T")


async def measure(do: Do, *, repeats: int = 300, total: int = 3_000) -> None:
    """Print what a task takes in ms, as a median, and how many are done in a second."""
    for _ in range(_WARM):
        await do()
    taken: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        await do()
        taken.append(time.perf_counter() - start)
        await asyncio.sleep(_PAUSE_S)
    left = iter(range(total))

    async def lane(left: Iterator[int]) -> None:
        for _ in left:
            await do()

    start = time.perf_counter()
    await asyncio.gather(*(lane(left) for _ in range(_AT_ONCE)))
    _tell(taken, total, time.perf_counter() - start)


def measure_blocking(send: Callable[[], T], answer: Callable[[T], object], *, repeats: int, total: int) -> None:
    """The same for who has one thread: a hundred are under way, and the oldest is waited for."""
    for _ in range(_WARM):
        answer(send())
    taken: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        answer(send())
        taken.append(time.perf_counter() - start)
        time.sleep(_PAUSE_S)
    start = time.perf_counter()
    sent = deque(send() for _ in range(_AT_ONCE))
    for _ in range(total - _AT_ONCE):
        answer(sent.popleft())
        sent.append(send())
    for each in sent:
        answer(each)
    _tell(taken, total, time.perf_counter() - start)


def _tell(taken: list[float], total: int, elapsed_s: float) -> None:
    print(json.dumps({"median_ms": statistics.median(taken) * 1000, "per_s": total / elapsed_s}))


async def hold(folder: str) -> None:
    """A second's work. That it was begun and that it was done is seen from outside, with the process that did it."""
    begun(folder)
    await asyncio.sleep(_HELD_S)
    done(folder)


def hold_blocking(folder: str) -> None:
    begun(folder)
    time.sleep(_HELD_S)
    done(folder)


def begun(folder: str) -> None:
    Path(folder, f"begun-{os.getpid()}").touch()


def done(folder: str) -> None:
    Path(folder, f"done-{os.getpid()}").touch()
