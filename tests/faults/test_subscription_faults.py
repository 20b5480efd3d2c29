"""A runner that is killed again and again, under subscribers: whatever they were told was true, and in the end all."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import aclosing, suppress
from pathlib import Path
from random import Random

from bus import Client, connect
from bus.broker.server import Server
from bus.errors import NotFound
from projections import changes
from projections.catchup import build
from projections.runs import RUNS, Glance, glance
from tests.harness import BOUND_S, ROOT, serving, until
from tests.integration.test_runner import completed, echo

SEED = 5
KILLS = 5


def runner(server: Server, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "bus", "projection", "run", "runs", "--shelf", f"sqlite:///{folder}/rows.db"]
    environment = {**os.environ, "NATS_URL": server.url, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


async def followed(client: Client, views: list[tuple[int, dict[str, Glance]]], is_slow: bool) -> None:
    """Follow for ever; each whole view that was had, with its position."""
    rows: dict[str, Glance] = {}
    while True:
        with suppress(NotFound):
            async with aclosing(changes.glances(client, RUNS, Glance)) as stream:
                async for change in stream:
                    assert change.afresh == (not views), "the build goes on"
                    change.apply(rows)
                    if not change.more:
                        views.append((change.position, dict(rows)))
                    if is_slow:
                        await asyncio.sleep(0.2)
        # It has not begun yet.
        assert not views
        await asyncio.sleep(0.05)


async def test_whoever_subscribes_has_what_was_true_at_each_position_though_the_runner_is_killed(
    server: Server, tmp_path: Path
) -> None:
    random = Random(SEED)
    fast: list[tuple[int, dict[str, Glance]]] = []
    slow: list[tuple[int, dict[str, Glance]]] = []
    async with serving(server, echo()), connect(server.url) as client, connect(server.auditor_url) as auditor:
        following = [
            asyncio.create_task(followed(auditor, fast, False)),
            asyncio.create_task(followed(auditor, slow, True)),
        ]
        process = runner(server, tmp_path)
        try:
            await until(lambda: fast and slow)
            for number in range(KILLS):
                seen = len(fast)
                going = asyncio.create_task(completed(client, *(f"r{number}-{each}" for each in range(6))))
                # Anywhere between its being told of the first event and its having said all of it.
                await until(lambda seen=seen: len(fast) > seen)
                await asyncio.sleep(random.random() * 0.05)
                process.kill()
                process.wait()
                await going
                process = runner(server, tmp_path)
            wanted = {run: glance(state) for run, state in (await build(client, RUNS)).rows.items()}
            await until(lambda: fast[-1][1] == wanted and slow[-1][1] == wanted, BOUND_S * 2)
        finally:
            process.kill()
            process.wait()
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)
        for views in (fast, slow):
            positions = [position for position, _ in views]
            assert positions == sorted(positions)
            for position, rows in views[:: max(1, len(views) // 15)]:
                then = await build(client, RUNS, upto=position)
                assert rows == {run: glance(state) for run, state in then.rows.items()}, f"seed {SEED}, {position}"
        assert len(slow) < len(fast), "who is slow is told less often, and nothing less"
