"""Processes that send work with a key and die on the way: one for each step given, each a fork of this one.

`sender.py URL RESULTS STEP:BEATS...`, as `victim.py`: what each has a receipt for, it writes to RESULTS at once.
"""

from __future__ import annotations

import json
import os
import random
import sys

from bus import connect
from tests.faults.victim import LARGE_CHARACTERS, main

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


if __name__ == "__main__":
    main(send, *sys.argv[1:])
