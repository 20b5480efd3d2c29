"""Agents that are handed work and die on the way: one process for each step given, each a fork of this one.

A step is one suspension or return of a coroutine between the reception and the log, counted from when the first work
is handed over. `doomed.py URL STEP:BEATS...`: each offers `quick.STEP-BEATS` and `slow.STEP-BEATS`, and dies at the
step, or so many turns of its event loop later.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import bus
from bus import Agent, Context
from bus.worker.worker import serve
from tests.faults.victim import Steps

PATH = {
    f"{Path(bus.__file__).parent}/{name}.py"
    for name in (
        "worker/reception",
        "worker/beginning",
        "worker/attempts",
        "handlers/handling",
        "runs/runs",
        "runs/ledger",
        "log/appending",
    )
}


class FromHandover(Steps):
    """Counts from the first handover on: an agent appends before that, too."""

    def __init__(self, last: int, beats: int) -> None:
        super().__init__(last, beats)
        self._began = False

    def trace(self, frame: FrameType, event: str, _argument: Any) -> Any:
        code = frame.f_code
        self._began = self._began or (code.co_name == "serve" and code.co_filename.endswith("reception.py"))
        return self._step if self._began and code.co_filename in PATH and code.co_flags & 0x80 else None


def doomed(point: str) -> Agent:
    agent = Agent(f"doomed-{point}")

    @agent.capability(f"quick.{point}")
    async def quick(value: int) -> int:
        return value * 2

    @agent.capability(f"slow.{point}")
    async def slow(value: int, context: Context) -> int:
        # Longer than what is stored together with its result.
        await asyncio.sleep(0.1 if context.attempt == 1 else 0.0)
        return value * 2

    return agent


def main(url: str, *points: str) -> None:
    for point in points:
        if not os.fork():
            last, beats = map(int, point.split("-"))
            steps = FromHandover(last, beats)
            sys.settrace(steps.trace)
            asyncio.run(serve(doomed(point), asyncio.Event(), url=url))
    while True:
        try:
            os.wait()
        except ChildProcessError:
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
