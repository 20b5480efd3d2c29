"""Processes that send work with a key and die on the way: one for each step given, each a fork of this one.

`sender.py URL RESULTS STEP:BEATS...`, as `victim.py`: what each has a receipt for, it writes to RESULTS at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys

from bus import connect
from tests.faults.victim import LARGE_CHARACTERS, Steps

KEYS = ("a", "b")
EACH = 2


async def send(url: str, name: str, results: int) -> None:
    async with connect(url, name="sender") as client:
        large = random.Random(name).randbytes(LARGE_CHARACTERS // 2).hex()
        for number in range(EACH):
            for key in KEYS:
                order = (f"{name}-{key}", number, large if number else "")
                receipt = await client.send("keep", order, key=f"{name}-{key}", id=f"{name}-{key}-{number}")
                os.write(results, f"{json.dumps({'what': 'Sent', 'run': receipt.run})}\n".encode())


def sender(url: str, results: int, last: int, beats: int) -> None:
    """Sends until it dies; the number of steps is the last thing it says if it doesn't."""
    steps = Steps(last, beats)
    sys.settrace(steps.trace)
    asyncio.run(send(url, f"step{last}", results))
    sys.settrace(None)
    os.write(results, f"{json.dumps({'what': 'steps', 'count': steps.count})}\n".encode())


def main(url: str, results: str, *points: str) -> None:
    file = os.open(results, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for point in points:
        last, beats = map(int, point.split(":"))
        process = os.fork()
        if not process:
            try:
                sender(url, file, last, beats)
            finally:
                os._exit(0 if sys.exc_info()[0] is None else 1)
        _, status = os.waitpid(process, 0)
        code = os.waitstatus_to_exitcode(status)
        os.write(file, f"{json.dumps({'what': 'exit', 'last': last, 'code': code})}\n".encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
