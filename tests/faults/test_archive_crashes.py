"""An archiver that is killed anywhere: nothing is lost, nothing is archived twice, and the next one finishes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from bus import Approval, Client, Phase, Plan, connect
from bus.archives.archiving import archive
from bus.archives.retention import Policy
from bus.broker.server import Server
from bus.format.envelope import envelope
from bus.log.archive import Archive
from bus.log.log import Log, Part
from bus.log.segment import line_of
from tests.harness import ROOT

GATE = Plan("gated", phases=[Phase("gate", approval=Approval(prompt="go on?"))])
POLICY = Policy.of(["run=0s", "topic=0s"])
STEPS = ["written", "verified", "indexed", "sealed", "closed", "removed", "told"]
# More than are dealt with at once: who dies after the first is in the middle.
SUBJECTS = 70

ARCHIVER = """
import asyncio, os, signal, sys
from pathlib import Path
from bus import connect
from bus.archives.archiving import archive
from bus.archives.retention import Policy

async def main(url, operator_url, folder, last_step):
    def die(step, done, of):
        if step == last_step:
            os.kill(os.getpid(), signal.SIGKILL)
    async with connect(url, operator_url=operator_url) as client:
        await archive(client, Path(folder), Policy.of(["run=0s", "topic=0s"]), by="victim", progress=die)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url, operator_url=server.operator_url) as connected:
        yield connected


async def facts(log: Log | Archive) -> list[tuple[object, ...]]:
    """Everything that could leave the log, as it is read."""
    lines = [line_of(record) async for record in log.read("bus.run.*", "bus.topic.>")]
    return [
        (each.position, each.subject, each.at, each.headers, each.content)
        for each in lines
        if b"run.archived.v1" not in each.content
    ]


async def fill(client: Client, name: str) -> None:
    async with client.log.pipeline() as pipeline:
        for number in range(SUBJECTS):
            text = envelope("test.v1", {}, id=uuid4().hex, source="/test", time=datetime.now(UTC))
            await pipeline.append(Part(f"bus.topic.{name}.{number}", text))
    for number in range(3):
        run = f"{name}-{number}"
        await client.start(GATE, run=run)
        await client.approve(run, "gate", by="ann")


async def kill_at(step: str, server: Server, folder: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ARCHIVER, server.url, server.operator_url, str(folder), step),
        cwd=ROOT,
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await asyncio.wait_for(process.wait(), 30) == -9, f"it was killed at {step}"


async def must_hold_each_once(folder: Path, whole: list[tuple[object, ...]]) -> None:
    """The archive alone has all of it, and nothing in two segments."""
    held = await Archive.open(folder)
    assert await facts(held) == whole
    assert held.index is not None and sum(each.records for each in held.index.segments) == len(whole)
    assert not [each.problem async for each in held.verify() if each.problem]


@pytest.mark.parametrize("step", STEPS)
async def test_an_archiver_killed_at_any_step_loses_nothing_and_the_next_one_finishes(
    server: Server, client: Client, tmp_path: Path, step: str
) -> None:
    folder = tmp_path / "archive"
    await fill(client, "a")
    before = await facts(client.log)
    await kill_at(step, server, folder)
    async with connect(server.url, archive=folder) as reading:
        assert await facts(reading.log) == before
    if step in STEPS[:4]:
        assert await facts(client.log) == before
    await archive(client, folder, POLICY, by="ann")
    assert not await facts(client.log)
    await must_hold_each_once(folder, before)
    async with connect(server.url, archive=folder) as reading:
        assert await facts(reading.log) == before


async def test_one_kill_after_the_other_with_new_records_in_between(
    server: Server, client: Client, tmp_path: Path
) -> None:
    folder = tmp_path / "archive"
    for step in STEPS:
        await fill(client, step)
        async with connect(server.url, archive=folder) as reading:
            before = await facts(reading.log)
        await kill_at(step, server, folder)
        async with connect(server.url, archive=folder) as reading:
            assert await facts(reading.log) == before
    await archive(client, folder, POLICY, by="ann")
    assert not await facts(client.log)
    await must_hold_each_once(folder, before)


async def test_a_server_that_is_killed_meanwhile_is_waited_for_or_the_next_pass_finishes(
    server: Server, client: Client, tmp_path: Path
) -> None:
    folder = tmp_path / "archive"
    await fill(client, "a")
    before = await facts(client.log)
    restarts: list[asyncio.Task[None]] = []

    def kill(step: str, done: int, of: int) -> None:
        if step == "sealed":
            restarts.append(asyncio.get_running_loop().create_task(server.restart()))

    await asyncio.gather(archive(client, folder, POLICY, by="ann", progress=kill), return_exceptions=True)
    await asyncio.gather(*restarts)
    await archive(client, folder, POLICY, by="ann")
    assert not await facts(client.log)
    await must_hold_each_once(folder, before)
