"""Faults, injected for real: processes and servers killed and frozen in the middle of runs. Nothing may stay stuck."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import pytest

from agents.census import Census
from agents.leadership import Leadership
from agents.supervisor import Supervisor
from bus import Client, Happening, Phase, Plan, RunState, connect, ref
from bus.broker.connection import Connection
from bus.broker.server import Server
from bus.errors import Unavailable
from bus.rules.events import PhaseAttemptFailed, PhaseCompleted, PhaseStarted, ResultRefused
from tests.harness import (
    BOUND_S,
    ROOT,
    agent_process,
    agent_processes,
    agents_there,
    freeze,
    happenings,
    pid_of,
    supervised,
    until,
)

SLEEPER = Path(__file__).with_name("sleeper.py")
LEADER = Path(__file__).with_name("leader.py")


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


async def first_holder(client: Client, run: str) -> int:
    """The process that took the first attempt of a task, when it has begun with it."""
    async with asyncio.timeout(BOUND_S):
        while True:
            for each in await client.agents():
                if any(held.run == run for held in each.held):
                    return each.pid


def causes(events: Sequence[Happening]) -> list[str]:
    return [each.event.cause for each in events if isinstance(each.event, PhaseAttemptFailed)]


def assert_each_result_was_accepted_once(state: RunState, events: Sequence[Happening]) -> None:
    accepted = [
        (each.event.phase, each.event.item)
        for each in events
        if isinstance(each.event, PhaseCompleted) and each.event.attempt is not None
    ]
    assert len(accepted) == len(set(accepted)) == sum(len(phase.items) for phase in state.phases.values())


async def test_a_killed_agents_work_is_taken_over_in_well_under_a_second(server: Server, client: Client) -> None:
    async with supervised(server):
        with agent_processes(server, SLEEPER, 2):
            await agents_there(client, 2)
            receipt = await client.send("sleep", {"s": 60})
            os.kill(await first_holder(client, receipt.run), signal.SIGKILL)
            state = await client.result(receipt.run, timeout_s=BOUND_S)
            events = await happenings(client, receipt.run)
    assert (state.status, client.output(state, "work"), causes(events)) == ("completed", 2, ["crashed"])
    first, second = state.phases["work"].items[0].attempts
    assert (second.started_at - first.started_at).total_seconds() < 5


async def test_a_killed_agents_work_waits_for_the_next_one_if_there_is_no_other(server: Server, client: Client) -> None:
    async with supervised(server):
        with agent_processes(server, SLEEPER) as processes:
            await agents_there(client, 1)
            receipt = await client.send("sleep", {"s": 60})
            os.kill(await first_holder(client, receipt.run), signal.SIGKILL)
            await until(lambda: _is_ready(client, receipt.run))
            processes.append(agent_process(server, SLEEPER))
            assert (await client.result(receipt.run, timeout_s=BOUND_S)).status == "completed"


async def test_a_frozen_agent_loses_its_work_and_its_late_result_is_refused(server: Server, client: Client) -> None:
    async with supervised(server, lease_s=1.5):
        with agent_processes(server, SLEEPER, 2):
            await agents_there(client, 2)
            receipt = await client.send("sleep", {"s": 1})
            frozen = await first_holder(client, receipt.run)
            await freeze(frozen)
            state = await client.result(receipt.run, timeout_s=BOUND_S)
            # When it wakes its handler has an answer, before it hears that nobody wants it.
            await asyncio.sleep(1)
            os.kill(frozen, signal.SIGCONT)
            await until(lambda: _refused(client, receipt.run))
            events = await happenings(client, receipt.run)
    assert (state.status, client.output(state, "work"), causes(events)) == ("completed", 2, ["frozen"])
    assert (await _events(client, receipt.run))[-1] is ResultRefused


async def test_a_blocked_event_loop_loses_its_work_and_its_late_result_is_refused(
    server: Server, client: Client
) -> None:
    async with supervised(server, lease_s=1.5):
        with agent_processes(server, SLEEPER, 2):
            await agents_there(client, 2)
            receipt = await client.send("sleep", {"block": 5})
            state = await client.result(receipt.run, timeout_s=BOUND_S)
            events = await happenings(client, receipt.run)
            await until(lambda: _refused(client, receipt.run))
    assert (state.status, client.output(state, "work"), causes(events)) == ("completed", 2, ["blocked"])
    assert (await _events(client, receipt.run)).count(ResultRefused) == 1


async def test_what_is_sent_while_the_server_is_away_counts_and_who_is_missing_is_told(server: Server) -> None:
    """What has to be read for it is waited for as long as an append is."""
    async with connect(server.url, request_timeout_s=0.2) as client:
        await server.kill()
        starting = asyncio.create_task(client.start(Plan("far", phases=[Phase("a", "sleep")])))
        sending = asyncio.create_task(client.send("sleep", {"s": 1}))
        await asyncio.sleep(1)
        await server.restart()
        receipts = [await starting, await sending]
        assert [receipt.unserved for receipt in receipts] == [["sleep"], ["sleep"]]
        assert [(await client.runs.load(receipt.run)).status for receipt in receipts] == ["in_progress"] * 2


async def test_an_agent_that_only_lost_its_line_keeps_its_work(server: Server, client: Client) -> None:
    async with supervised(server):
        with agent_processes(server, SLEEPER, 2):
            await agents_there(client, 2)
            receipt = await client.send("sleep", {"s": 1})
            await first_holder(client, receipt.run)
            await server.kill()
            await server.restart()
            state = await client.result(receipt.run, timeout_s=BOUND_S)
            events = await happenings(client, receipt.run)
    assert (state.status, client.output(state, "work"), causes(events)) == ("completed", 1, [])


async def test_an_instance_that_can_not_be_asked_is_not_called_frozen(server: Server, client: Client) -> None:
    """Who hears nothing from anybody knows nothing of anybody."""
    census = Census(client, lambda _: None)
    with agent_processes(server, SLEEPER):
        await agents_there(client, 1)
        [beat] = await client.agents()
        await freeze(server.pid)
        with pytest.raises(Unavailable):
            await census.confirm(beat.instance)
        server.signal(signal.SIGCONT)
        assert await census.confirm(beat.instance) == "alive"


async def test_a_pause_of_supervisor_and_server_takes_nothing_from_the_living(server: Server, client: Client) -> None:
    """As when a whole machine is suspended, with its workers elsewhere."""
    async with supervised(server, lease_s=1.5):
        with agent_processes(server, SLEEPER, 2):
            await agents_there(client, 2)
            receipt = await client.send("sleep", {"s": 5})
            await first_holder(client, receipt.run)
            await freeze(server.pid)
            time.sleep(2)  # noqa: ASYNC251 - the supervisor is in this process
            await asyncio.sleep(0.8)
            server.signal(signal.SIGCONT)
            state = await client.result(receipt.run, timeout_s=BOUND_S)
            events = await happenings(client, receipt.run)
    assert (state.status, client.output(state, "work"), causes(events)) == ("completed", 1, [])


async def test_a_forged_beat_takes_nothing_from_a_living_instance(server: Server, client: Client) -> None:
    """Beats are hints: before an attempt is called forgotten, the instance itself is asked."""
    async with supervised(server, lease_s=1.5):
        with agent_processes(server, SLEEPER):
            await agents_there(client, 1)
            receipt = await client.send("sleep", {"s": 4})
            await first_holder(client, receipt.run)
            [beat] = await client.agents()
            forged = msgspec.json.encode(msgspec.structs.replace(beat, held=()))
            while (await client.runs.load(receipt.run)).is_open:
                client.connection.publish(client.subjects.beat(beat.instance), forged)
                await asyncio.sleep(0.01)
            events = await happenings(client, receipt.run)
    assert causes(events) == []


async def test_a_supervisor_that_was_frozen_takes_nothing_from_the_living(server: Server, client: Client) -> None:
    """What it had heard last is old when it goes on, and what was sent since was lost with the server."""
    leader = subprocess.Popen(
        [sys.executable, str(LEADER), server.url, "leader"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    try:
        with agent_processes(server, SLEEPER, 2):
            await agents_there(client, 2)
            await until(lambda: _leads(client, "leader"))
            receipt = await client.send("sleep", {"s": 6})
            await first_holder(client, receipt.run)
            await asyncio.sleep(0.2)
            await freeze(leader.pid)
            await asyncio.sleep(2)
            await server.restart()
            await agents_there(client, 2)
            leader.send_signal(signal.SIGCONT)
            state = await client.result(receipt.run, timeout_s=BOUND_S)
            events = await happenings(client, receipt.run)
    finally:
        leader.kill()
        leader.wait()
    assert (state.status, client.output(state, "work"), causes(events)) == ("completed", 1, [])


async def test_a_supervisor_that_is_cancelled_leads_no_more(server: Server) -> None:
    """What it had begun ends with it: otherwise it would go on deciding, beside the next leader."""
    async with connect(server.url, system_url=server.system_url, name="supervisor") as client:
        await client.agents()
        before = asyncio.all_tasks()
        supervisor = Supervisor(client, "cancelled")
        running = asyncio.create_task(supervisor.run(asyncio.Event()))
        async with asyncio.timeout(BOUND_S):
            await supervisor.leads.wait()
        running.cancel()
        await asyncio.wait({running}, timeout=BOUND_S)
        left = [getattr(task.get_coro(), "__qualname__", "") for task in asyncio.all_tasks() - before]
        assert (running.cancelled(), supervisor.leads.is_set()) == (True, False)
        assert [name for name in left if name.startswith(("Supervisor.", "Registrar.", "Directory."))] == []


async def test_a_run_goes_on_when_the_server_is_killed_in_the_middle_of_it(server: Server, client: Client) -> None:
    plan = Plan(
        "naps",
        phases=[
            Phase("first", "nap", input={"s": 0.1}),
            Phase("each", "nap", each=ref("input"), input={"s": ref("item")}, width=4, after=["first"]),
            Phase("last", "nap", input={"s": 0.1}, after=["each"]),
        ],
    )
    async with supervised(server):
        with agent_processes(server, SLEEPER, 2):
            await agents_there(client, 2)
            receipt = await client.start(plan, [0.2] * 24)
            for _ in range(3):
                await asyncio.sleep(0.4)
                await server.kill()
                await server.restart()
            state = await client.result(receipt.run, timeout_s=BOUND_S)
            events = await happenings(client, receipt.run)
    assert state.status == "completed"
    assert_each_result_was_accepted_once(state, events)


async def test_work_that_is_lost_on_its_way_is_published_again(server: Server, client: Client) -> None:
    async with supervised(server):
        receipt = await client.send("nap", {"s": 0.0})
        async with Connection.open(server.operator_url, name="operator") as operator:
            await operator.request("$JS.API.STREAM.DELETE.BUS_WORK", timeout_s=5)
        with agent_processes(server, SLEEPER):
            state = await client.result(receipt.run, timeout_s=BOUND_S)
    assert state.status == "completed"


async def test_a_second_supervisor_takes_over_when_the_first_is_gone(server: Server, client: Client) -> None:
    with agent_processes(server, SLEEPER, 2):
        await agents_there(client, 2)
        async with supervised(server):
            pass
        async with supervised(server):
            receipt = await client.send("sleep", {"s": 60})
            os.kill(await first_holder(client, receipt.run), signal.SIGKILL)
            assert (await client.result(receipt.run, timeout_s=BOUND_S)).status == "completed"


async def test_what_happened_while_no_supervisor_lived_is_recovered_by_the_next_one(
    server: Server, client: Client
) -> None:
    with agent_processes(server, SLEEPER) as processes:
        await agents_there(client, 1)
        receipt = await client.send("sleep", {"s": 60})
        os.kill(await first_holder(client, receipt.run), signal.SIGKILL)
        processes.append(agent_process(server, SLEEPER))
        await agents_there(client, 1)
        async with supervised(server, lease_s=1.5):
            state = await client.result(receipt.run, timeout_s=BOUND_S)
            events = await happenings(client, receipt.run)
    assert (state.status, causes(events)) == ("completed", ["crashed"])


async def test_a_process_that_work_kills_each_time_ends_as_a_dead_letter(server: Server, client: Client) -> None:
    async with supervised(server):
        with agent_processes(server, SLEEPER, 6):
            await agents_there(client, 6)
            plan = Plan("poison", phases=[Phase("work", "nap", input={"s": 60})])
            receipt = await client.start(plan)
            async for happening in client.watch(receipt.run):
                if isinstance(happening.event, PhaseStarted):
                    os.kill(await pid_of(client, happening.event.instance), signal.SIGKILL)
            state = await client.runs.load(receipt.run)
            letters = [each.letter async for each in client.dead_letters()]
    assert (state.status, len(state.phases["work"].items[0].attempts), len(letters)) == ("failed", 4, 1)


async def _is_ready(client: Client, run: str) -> bool:
    return (await client.runs.load(run)).phases["work"].status == "ready"


async def _events(client: Client, run: str) -> list[type]:
    return [type(event) async for commit in client.ledger.commits(run) for event in commit.events]


async def _refused(client: Client, run: str) -> bool:
    return ResultRefused in await _events(client, run)


async def _leads(client: Client, name: str) -> bool:
    return await Leadership(client, "").leader() == name
