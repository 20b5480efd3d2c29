"""A redrive of many in a process of its own, for tests that kill it: `redriver.py URL PACE` or `URL - OPERATION`.

Without a pace it redrives all there is, each letter itself, against whoever else does.
"""

import asyncio
import sys

from bus import Refused, connect
from bus.letters.verdicts import Terms
from bus.letters.wanted import Wanted


async def main(url: str, pace: str, operation: str = "") -> None:
    async with connect(url, name="redriver") as client:
        if operation:
            outcomes = client.resume_redrive(operation, by="redriver")
        elif pace != "-":
            outcomes = client.redrive_letters(Wanted(), by="redriver", terms=Terms(pace_per_s=float(pace)))
        else:
            count = 0
            for number in [each.number async for each in client.dead_letters()]:
                try:
                    await client.redrive_letter(number, by="redriver")
                except Refused:
                    continue
                count += 1
            print(count)
            return
        async for outcome in outcomes:
            print(outcome.operation, outcome.redriven, flush=True)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
