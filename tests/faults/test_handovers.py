"""Work that is handed over directly: whoever dies, is late, or gets it twice, there is one accepted result."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import msgspec
import pytest

from bus import Agent, Client, Context, connect
from bus.alarms import Alarms
from bus.broker.server import Server
from bus.clock import utc_now
from bus.errors import NotFound
from bus.format.envelope import encode, envelope
from bus.format.subjects import live_copy
from bus.handlers.context import Pulse
from bus.messages.handover import HANDED, Answered, Busy, Handed, read_reply
from bus.rules.commands import Begin, Take
from bus.rules.events import Commit, PhaseCompleted, PhaseStarted, ResultRefused, RunStarted
from bus.rules.verify import violations
from bus.runs.runs import Decided
from bus.runs.task import WORK, Task
from bus.worker.beginning import Beginning
from tests.faults.doomed import doomed
from tests.harness import BOUND_S, ROOT, agents_there, serving, supervised, until

DOOMED = Path(__file__).with_name("doomed.py")
POINTS = [f"{step}-{step % 3}" for step in range(1, 13)]


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


async def commits(client: Client, run: str) -> list[Commit]:
    return [commit async for commit in client.ledger.commits(run)]


async def assert_one_result(client: Client, run: str) -> None:
    told = await commits(client, run)
    events = [event for commit in told for event in commit.events]
    assert sum(isinstance(event, RunStarted) for event in events) == 1
    assert sum(isinstance(event, PhaseCompleted) for event in events) == 1
    assert not list(violations(told, utc_now()))


def handed(capability: str, value: int, run: str, *, followed: bool = False) -> bytes:
    given = Handed(Task(capability), msgspec.Raw(msgspec.json.encode(value)), followed=followed)
    return encode(envelope(HANDED, given, id=uuid4().hex, source="/test", time=utc_now(), runid=run))


def doubling(called: list[str] | None = None) -> Agent:
    agent = Agent("doubling")

    @agent.capability("double", concurrency=4)
    async def double(value: int, context: Context) -> int:
        if called is not None:
            called.append(context.run)
        return value * 2

    return agent


@pytest.mark.parametrize("kind", ["quick", "slow"])
async def test_work_survives_whoever_was_handed_it_killed_at_any_step(
    server: Server, client: Client, kind: str
) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, str(DOOMED), server.url, *POINTS],
        env=environment,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with supervised(server):
            await until(lambda: _there(client, len(POINTS)), bound_s=60)
            asking = [
                asyncio.create_task(client.ask(f"{kind}.{point}", number, int, timeout_s=BOUND_S))
                for number, point in enumerate(POINTS)
            ]
            # Those that were not killed at their step have answered.
            dead: list[str] = []
            while len(dead) + sum(task.done() for task in asking) < len(POINTS):
                await asyncio.sleep(0.05)
                there = {beat.agent for beat in await client.agents()}
                dead = [
                    point
                    for point, task in zip(POINTS, asking, strict=True)
                    if f"doomed-{point}" not in there and not task.done()
                ]
            assert len(dead) >= len(POINTS) // 4
            async with serving(server, *(doomed(point) for point in dead)):
                assert await asyncio.gather(*asking) == [2 * number for number in range(len(POINTS))]
            for run in await client.ledger.names():
                await assert_one_result(client, run)
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()


async def test_work_that_was_handed_over_is_done_although_the_asker_is_gone(server: Server, client: Client) -> None:
    async with serving(server, doubling()):
        client.connection.publish(client.subjects.hand("double"), handed("double", 4, "task-gone"))
        await until(lambda: _has(client, "task-gone"))
        state = await client.result("task-gone", timeout_s=BOUND_S)
        assert client.output(state, "work", int) == 8
        (only,) = await commits(client, "task-gone")
        assert any(isinstance(event, PhaseStarted) for event in only.events)


async def test_who_follows_what_is_stored_is_told_only_that_it_was_not(server: Server, client: Client) -> None:
    async with serving(server, doubling()):
        subject, message = client.subjects.hand("double"), handed("double", 4, "task-followed", followed=True)
        copies: list[bytes] = []
        client.connection.subscribe(
            live_copy(client.subjects.run("task-followed")), lambda copy: copies.append(copy.data)
        )
        said: list[bytes] = []
        inbox = client.connection.new_inbox()
        client.connection.subscribe(inbox, lambda reply: said.append(reply.data))
        client.connection.publish(subject, message, reply=inbox)
        await until(lambda: copies)
        client.connection.publish(subject, message, reply=inbox)
        await until(lambda: said)
        assert [read_reply(each) for each in said] == [Busy()]
        await assert_one_result(client, "task-followed")


async def test_what_is_handed_over_twice_has_one_result(server: Server, client: Client) -> None:
    called: list[str] = []
    subject = client.subjects.hand("double")
    async with serving(server, doubling(called), doubling(called)):
        message = handed("double", 4, "task-twice")
        replies = await asyncio.gather(
            *(client.connection.request(subject, message, timeout_s=BOUND_S) for _ in range(8))
        )
        said = [read_reply(reply.data) for reply in replies]
        assert sum(isinstance(reply, Answered) for reply in said) == 1
        assert all(isinstance(reply, Answered | Busy) for reply in said)
        assert len(called) == 8
        await assert_one_result(client, "task-twice")


async def test_a_handover_that_is_later_than_the_log_changes_nothing(server: Server, client: Client) -> None:
    async with serving(server, doubling()):
        receipt = await client.send("double", 3)
        await client.result(receipt.run, timeout_s=BOUND_S)
        before = await commits(client, receipt.run)
        reply = await client.connection.request(
            client.subjects.hand("double"), handed("double", 100, receipt.run), timeout_s=BOUND_S
        )
        assert read_reply(reply.data) == Busy()
        assert await commits(client, receipt.run) == before


async def test_an_instance_that_says_nothing_in_time_loses_the_work_to_the_log(server: Server, client: Client) -> None:
    # In this process the asker's loop would be blocked as well.
    async with supervised(server):
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("sleeper.py"))],
            env={**os.environ, "NATS_URL": server.url, "PYTHONPATH": str(ROOT)},
            stderr=subprocess.DEVNULL,
        )
        try:
            await agents_there(client, 1)
            assert await client.ask("sleep", {"block": 1.0}, int, timeout_s=BOUND_S) >= 1
            (run,) = await client.ledger.names()
            await assert_one_result(client, run)
            events = [event for commit in await commits(client, run) for event in commit.events]
            assert not any(isinstance(event, ResultRefused) for event in events)
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"\xff\x00", handed("other", 1, "task-x"), handed("double", 1, "Not a name!")]
)
async def test_bytes_that_are_no_handover_do_no_harm(server: Server, client: Client, data: bytes) -> None:
    async with serving(server, doubling()):
        client.connection.publish(client.subjects.hand("double"), data)
        reply = await client.connection.request(client.subjects.hand("double"), data, timeout_s=BOUND_S)
        assert read_reply(reply.data) == Busy()
        assert await client.ask("double", 2, int, timeout_s=BOUND_S) == 4


async def _has(client: Client, run: str) -> bool:
    return run in await client.ledger.names()


async def _there(client: Client, count: int) -> bool:
    return len(await client.agents()) >= count


async def test_what_could_not_be_begun_here_is_not_begun_later_when_nobody_works_on_it(server: Server) -> None:
    async with connect(server.url, append_timeout_s=0.3, request_timeout_s=0.3) as client:
        task, run, pulse = Task("double"), "task-late", Pulse()
        begin = Begin(task.plan, msgspec.Raw(b"1"))
        take = Take(WORK, None, 1, "double", "doubling", "doubling-1", 30.0)
        stored: list[Decided] = []
        beginning = Beginning(
            client.runs, run, begin, take, causation=None, pulse=pulse, alarms=Alarms(), stored=stored.append
        )
        await server.stop()
        assert not await beginning.store()
        assert pulse.ended
        await server.start()
        await until(lambda: client.connection.is_connected)
        # As its timer does, if that comes only now.
        assert not await beginning.store()
        assert not stored
        with pytest.raises(NotFound):
            await client.runs.load(run)
