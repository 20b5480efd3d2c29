"""What a send costs whose order is kept for its key, beside one without a key, in turn on the same server.

python -m benchmarks.sends
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from itertools import count

from benchmarks.asks import Row
from bus import Client, connect
from bus.broker.server import embedded

_REPEATS = 200
_AT_ONCE = 50
_TOTAL = 500
_ROUNDS = 3
_PAUSE_S = 0.002
_VALUE = {"order": "x" * 200}

Send = Callable[[], Awaitable[object]]


async def main() -> None:
    for what, figure, wanted in await rows():
        print(f"{what:52} {figure:>18} {wanted:>10}")


async def rows() -> list[Row]:
    async with embedded() as server, connect(server.url) as client:
        sends = _sends(client)
        for send in sends.values():
            await asyncio.gather(*(send() for _ in range(_AT_ONCE)))
        medians = await _medians_ms(sends)
        rates = [{name: await _per_s(send) for name, send in sends.items()} for _ in range(_ROUNDS)]
    rate = {name: max(each[name] for each in rates) for name in sends}
    plain, keyed = sends
    return [
        *((name, f"{medians[name]:.2f} ms {rate[name]:.0f}/s", "") for name in sends),
        ("a key, of a send alone", f"{medians[keyed] / medians[plain]:.1f}", "<= 3"),
        (f"a key, of {_AT_ONCE} sends at once", f"{rate[plain] / rate[keyed]:.1f}", "<= 3"),
    ]


def _sends(client: Client) -> dict[str, Send]:
    numbers = count()
    return {
        "send": lambda: client.send("book", _VALUE),
        "send, with a key": lambda: client.send("book", _VALUE, key=f"customer-{next(numbers) % 100}"),
    }


async def _medians_ms(sends: dict[str, Send]) -> dict[str, float]:
    """In turn, so that all meet the same moments of the machine."""
    taken: dict[str, list[float]] = {name: [] for name in sends}
    for _ in range(_REPEATS):
        for name, send in sends.items():
            began = time.perf_counter()
            await send()
            taken[name].append(time.perf_counter() - began)
            await asyncio.sleep(_PAUSE_S)
    return {name: statistics.median(each) * 1000 for name, each in taken.items()}


async def _per_s(send: Send) -> float:
    left = iter(range(_TOTAL))

    async def strand() -> None:
        for _ in left:
            await send()

    began = time.perf_counter()
    await asyncio.gather(*(strand() for _ in range(_AT_ONCE)))
    return _TOTAL / (time.perf_counter() - began)


if __name__ == "__main__":
    asyncio.run(main())
