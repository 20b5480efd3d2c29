"""What is measured of each: one task after the other, and a hundred at once. Standard library only, for any peer's
environment."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator

_AT_ONCE = 100
_PAUSE_S = 0.003
_WARM = 20

Do = Callable[[], Awaitable[object]]


async def measure(do: Do, *, repeats: int, total: int) -> None:
    """Print what a task takes in ms, as a median, and how many are done in a second."""
    for _ in range(_WARM):
        await do()
    taken: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        await do()
        taken.append(time.perf_counter() - began)
        await asyncio.sleep(_PAUSE_S)
    left = iter(range(total))

    async def lane(left: Iterator[int]) -> None:
        for _ in left:
            await do()

    began = time.perf_counter()
    await asyncio.gather(*(lane(left) for _ in range(_AT_ONCE)))
    rate = total / (time.perf_counter() - began)
    print(json.dumps({"median_ms": statistics.median(taken) * 1000, "per_s": rate}))
