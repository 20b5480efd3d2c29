"""What a supervisor says in the log of its own work: what it recovered and why, and what nobody offers to do."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from bus import Client, Phase, Plan, connect
from bus.broker.connection import Connection
from bus.broker.server import Server
from bus.format.envelope import decode_data
from bus.rules.events import PhaseAttemptFailed, PhaseStarted
from bus.runs.recovery import AREA, RECOVERED, STARVED, Recovery, Starved
from tests.harness import BOUND_S, agent_processes, agents_there, happenings, pid_of, supervised, until

SLEEPER = Path(__file__).with_name("sleeper.py")
TYPES: dict[str, type[Recovery | Starved]] = {RECOVERED: Recovery, STARVED: Starved}


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


async def said(client: Client) -> list[Recovery | Starved]:
    """All that supervisors have announced."""
    records = [record.envelope() async for record in client.log.read(client.subjects.ops(AREA))]
    return [decode_data(each, msgspec.json.Decoder(TYPES[each.type]), "an announcement") for each in records]


async def announced(client: Client, count: int = 1) -> list[Recovery | Starved]:
    async def enough() -> bool:
        return len(await said(client)) >= count

    await until(enough)
    return await said(client)


async def kill_the_holder(client: Client, run: str) -> str:
    async for happening in client.watch(run):
        if isinstance(happening.event, PhaseStarted):
            os.kill(await pid_of(client, happening.event.instance), signal.SIGKILL)
            return happening.event.instance
    raise AssertionError("the run ended before anybody took it")


async def test_what_was_recovered_is_said_with_its_cause(server: Server, client: Client) -> None:
    async with supervised(server):
        with agent_processes(server, SLEEPER, 2):
            await agents_there(client, 2)
            receipt = await client.send("sleep", {"s": 60})
            # It is heard before it dies.
            await until(lambda: _held(client))
            instance = await kill_the_holder(client, receipt.run)
            await client.result(receipt.run, timeout_s=BOUND_S)
            [recovery] = await announced(client)
    assert isinstance(recovery, Recovery)
    [one] = recovery.recovered
    assert (recovery.by, one.run, one.phase, one.attempt) == ("test", receipt.run, "work", 1)
    assert (one.cause, one.instance, one.evidence) == ("crashed", instance, "its connection closed")


async def test_a_new_leader_says_what_it_found_when_it_began(server: Server, client: Client) -> None:
    with agent_processes(server, SLEEPER, 2):
        await agents_there(client, 2)
        receipt = await client.send("sleep", {"s": 60})
        await kill_the_holder(client, receipt.run)
        async with supervised(server):
            await client.result(receipt.run, timeout_s=BOUND_S)
            [recovery] = await announced(client)
    assert isinstance(recovery, Recovery)
    assert recovery.on_start
    [one] = recovery.recovered
    assert (one.run, one.cause, one.evidence) == (receipt.run, "crashed", "not there when test began to lead")


async def test_work_whose_message_was_lost_is_said_to_be_sent_again(server: Server, client: Client) -> None:
    async with supervised(server):
        receipt = await client.send("nap", {"s": 0.0})
        async with Connection.open(server.operator_url, name="operator") as operator:
            await operator.request("$JS.API.STREAM.DELETE.BUS_WORK", timeout_s=5)
        recovery = (await announced(client))[0]
    assert isinstance(recovery, Recovery)
    [one] = recovery.recovered
    assert (one.run, one.phase, one.attempt, one.cause) == (receipt.run, "work", 1, "work_lost")


async def test_work_that_nobody_offers_to_do_is_said_to_starve_once(server: Server, client: Client) -> None:
    async with supervised(server, lease_s=1.5):
        first = await client.send("nap", {"s": 0.0})
        second = await client.send("nap", {"s": 0.0})
        await announced(client)
        with agent_processes(server, SLEEPER):
            for receipt in (first, second):
                assert (await client.result(receipt.run, timeout_s=BOUND_S)).status == "completed"
        [starved] = [each for each in await said(client) if isinstance(each, Starved)]
    assert (starved.capability, starved.run, starved.phase, starved.waiting) == ("nap", first.run, "work", 2)


async def test_work_that_starved_to_its_end_says_so_in_its_run(server: Server, client: Client) -> None:
    plan = Plan("alone", phases=[Phase("a", "nobody", queue_timeout_s=0.5)])
    async with supervised(server):
        receipt = await client.start(plan)
        state = await client.result(receipt.run, timeout_s=BOUND_S)
        events = [each.event for each in await happenings(client, receipt.run)]
    [failed] = [event for event in events if isinstance(event, PhaseAttemptFailed)]
    assert (failed.cause, failed.evidence) == ("starved", "no live agent offers 'nobody'")
    assert str(state.phases["a"].problem) == "nobody took the work in time: no live agent offers 'nobody'"


async def test_work_that_only_found_nobody_free_did_not_starve(server: Server, client: Client) -> None:
    busy = Plan("busy", phases=[Phase(key, "nap", input={"s": 2.0}, queue_timeout_s=0.5) for key in range(3)])
    async with supervised(server):
        with agent_processes(server, SLEEPER):
            await agents_there(client, 1)
            receipt = await client.start(busy)
            await client.result(receipt.run, timeout_s=BOUND_S)
            events = [each.event for each in await happenings(client, receipt.run)]
    [failed] = [event for event in events if isinstance(event, PhaseAttemptFailed)]
    assert (failed.cause, failed.evidence) == ("unclaimed", "'nap' is offered, and nobody was free")


async def _held(client: Client) -> bool:
    return any(beat.held for beat in await client.agents())
