"""A runner of projections that is killed at any of its lines: whoever goes on ends with the same rows."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from random import Random

from bus import Phase, Plan, connect
from bus.broker.server import Server
from projections.catchup import build
from projections.kept import Kept
from projections.runner import Runner
from projections.runs import RUNS
from projections.shelf import open_shelf
from tests.harness import ROOT, serving
from tests.integration.test_runner import COUNTS, echo

SEED = 11
KILLS = 30
PLAN = Plan("three", phases=[Phase("a", "echo"), Phase("b", "echo", after=["a"]), Phase("c", "echo", after=["b"])])

# Each victim is a fork of this process, so that the imports are paid for once. It dies at one of the lines of the
# runner or of the shelf, in whatever thread that is; a step of 0 does not die, and says how many lines there were, in
# another database. Some begin anew, the others go on from where the one before died.
RUNNER = """
import asyncio, itertools, os, signal, sys, threading
from bus import connect
from projections import kept, runner, shelf, sqlite
from projections.runs import RUNS
from tests.integration.test_runner import COUNTS

url, database = sys.argv[1:3]
runner.MARK_EVERY, runner._BATCH, runner._TIDY_BYTES = 20, 9, 5_000
FILES = {runner.__file__, shelf.__file__, sqlite.__file__}
lines = itertools.count(1)

def run(step):
    reached = 0
    def trace(frame, event, argument):
        return line if frame.f_code.co_filename in FILES else None
    def line(frame, event, argument):
        nonlocal reached
        if event == "line":
            reached = next(lines)
            if reached == step:
                os.kill(os.getpid(), signal.SIGKILL)
        return line
    async def main():
        opened = shelf.open_shelf(f"sqlite:///{database}" + ("" if step else ".whole"))
        async with connect(url) as client:
            await runner.Runner(client, opened, [RUNS, COUNTS]).catch_up(afresh=step % 3 == 0)
        opened.close()
    threading.settrace(trace)
    sys.settrace(trace)
    asyncio.run(main())
    return reached

for step in map(int, sys.argv[3:]):
    child = os.fork()
    if not child:
        print(run(step), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


async def test_a_runner_killed_at_any_line_and_begun_again_ends_with_the_rows_of_a_rebuild(
    server: Server, tmp_path: Path
) -> None:
    database = tmp_path / "rows.db"

    async def victims(*steps: int) -> list[int]:
        script = [sys.executable, "-c", RUNNER, server.url, str(database), *map(str, steps)]
        process = await asyncio.create_subprocess_exec(
            *script, cwd=ROOT, stdout=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        said, _ = await process.communicate()
        assert process.returncode == 0
        return [json.loads(line) for line in said.splitlines() if line.strip().isdigit()]

    async with serving(server, echo()), connect(server.url) as client:
        await asyncio.gather(*(client.start(PLAN, run=f"r{number}") for number in range(12)))
        await asyncio.gather(*(client.result(f"r{number}", timeout_s=20) for number in range(12)))
        [lines] = await victims(0)
        random = Random(SEED)
        survivors = 0
        for part in range(3):
            # After each part there is more to fold.
            survivors += len(await victims(*(random.randrange(1, lines) for _ in range(KILLS // 3))))
            await client.start(PLAN, run=f"later-{part}")
            await client.result(f"later-{part}", timeout_s=20)
            shelf = open_shelf(f"sqlite:///{database}")
            await Runner(client, shelf, [RUNS, COUNTS]).catch_up(afresh=part == 1)
            for projection in (RUNS, COUNTS):
                kept = await Kept.find(client, shelf, projection)
                rebuilt = await build(client, projection)
                assert await kept.rows() == dict(rebuilt.rows), f"seed {SEED}, part {part}, {projection.name}"
                middle = rebuilt.position // 2
                assert await kept.rows(at=middle) == dict((await build(client, projection, upto=middle)).rows)
            shelf.close()
        assert survivors < KILLS - 5, "hardly anybody was killed"
