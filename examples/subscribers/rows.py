"""Runs as they stand, and each that changes: NATS_URL=nats://auditor:...@127.0.0.1:4222 python rows.py"""

import asyncio
import json
from contextlib import aclosing

import bus
from projections import changes
from projections.runs import RUNS, Glance


async def main() -> None:
    runs: dict[str, Glance] = {}
    async with bus.connect(alone=False) as client, aclosing(changes.glances(client, RUNS, Glance)) as stream:
        async for change in stream:
            change.apply(runs)  # to go on from here another time, keep change.mark together with the rows
            if not change.more:
                print(json.dumps([[run, row.status] for run, row in runs.items()]), flush=True)


asyncio.run(main())
