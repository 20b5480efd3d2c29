"""Processes that use the log and die on the way: one for each step given, each a fork of this one.

A step is one suspension or return of a coroutine of the append path. `victim.py URL RESULTS STEP:BEATS...`: the victim
of a step dies there, or so many turns of its event loop later, when bytes may be on their way. What each was told is
stored, it writes to RESULTS first, so that it counts although it dies.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import random
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec

import bus
from bus import Client, Phase, Plan, Retry, connect, ref
from bus.problem import Problem
from bus.rules.commands import Complete, Fail, Take

PATH = {
    f"{Path(bus.__file__).parent}/{name}.py" for name in ("log/appending", "runs/runs", "runs/ledger", "log/payloads")
}
REJECTED = Problem("rejected", "as it was told", "permanent")
PLAN = Plan(
    "crash",
    phases=[
        Phase("each", "do", each=ref("input.items"), input={"item": ref("item")}, retry=Retry(lost=5, lost_s=0.0)),
        Phase("last", "do", input={"of": ref("each")}, after=["each"], retry=Retry(lost=5, lost_s=0.0)),
    ],
)
ITEMS = 3
# Over what a message holds, and random, so that it stays so when it is compressed: it goes to the object store.
LARGE_CHARACTERS = 1_200_000


class Steps:
    """Counts the steps of the append path, and ends the process at one of them."""

    def __init__(self, last: int, beats: int) -> None:
        self.count = 0
        self._last = last
        self._beats = beats

    def trace(self, frame: FrameType, event: str, _argument: Any) -> Any:
        code = frame.f_code
        is_on_path = code.co_filename in PATH and code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR)
        return self._step if is_on_path else None

    def _step(self, frame: FrameType, event: str, _argument: Any) -> Any:
        frame.f_trace_lines = False
        if event == "return":
            self.count += 1
            if self.count == self._last:
                self._die(self._beats)
        return self._step

    def _die(self, beats: int) -> None:
        if not beats:
            os._exit(137)
        asyncio.get_running_loop().call_soon(self._die, beats - 1)


async def work(url: str, name: str, results: int) -> None:
    """Everything that appends: starts, small and large, results that meet, work given up with its letter, a cancel."""

    def tell(what: str, run: str, position: int) -> None:
        os.write(results, f"{json.dumps({'what': what, 'run': run, 'position': position})}\n".encode())

    async def submit(client: Client, run: str, command: Take | Complete | Fail) -> None:
        decided = await client.runs.submit(run, command)
        tell(type(command).__name__, run, decided.state.position)

    async with connect(url, name="victim") as client:
        large = random.Random(name).randbytes(LARGE_CHARACTERS // 2).hex()
        for run, blob in ((f"{name}-cancelled", large), (f"{name}-failed", "")):
            receipt = await client.start(PLAN, {"items": list(range(ITEMS)), "blob": blob}, run=run)
            tell("Begin", run, receipt.position)
            async with asyncio.TaskGroup() as tasks:
                for item in range(ITEMS):
                    tasks.create_task(submit(client, run, Take("each", item, 1, "do", "victim", name, 60.0)))
            first = Complete("each", 0, 1, name, msgspec.Raw(b"0"))
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(submit(client, run, first))
                tasks.create_task(submit(client, run, Fail("each", 1, 1, name, REJECTED)))
            await submit(client, run, Fail("each", 2, 1, name, REJECTED))
            tell("Redrive", run, (await client.redrive(run, by="victim")).position)
            if run.endswith("-cancelled"):
                tell("Cancel", run, (await client.cancel(run, by="victim")).position)


Doing = Callable[[str, str, int], Coroutine[Any, Any, None]]


def victim(doing: Doing, url: str, results: int, last: int, beats: int) -> None:
    """Does it until it dies; the number of steps is the last thing it says if it doesn't."""
    steps = Steps(last, beats)
    sys.settrace(steps.trace)
    asyncio.run(doing(url, f"step{last}", results))
    sys.settrace(None)
    os.write(results, f"{json.dumps({'what': 'steps', 'count': steps.count})}\n".encode())


def main(doing: Doing, url: str, results: str, *points: str) -> None:
    """A process for each point, which dies there."""
    file = os.open(results, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for point in points:
        last, beats = map(int, point.split(":"))
        process = os.fork()
        if not process:
            try:
                victim(doing, url, file, last, beats)
            finally:
                os._exit(0 if sys.exc_info()[0] is None else 1)
        _, status = os.waitpid(process, 0)
        code = os.waitstatus_to_exitcode(status)
        os.write(file, f"{json.dumps({'what': 'exit', 'last': last, 'code': code})}\n".encode())


if __name__ == "__main__":
    main(work, *sys.argv[1:])
