"""When many are there, the leader says who, and asks those that hold nothing to beat less often."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from agents import census, directory
from bus import Agent, Client, connect
from bus.broker.connection import Message
from bus.broker.server import Server
from bus.errors import NoResponders, Unavailable
from bus.registry.presence import Beat, is_end_of_roster, read_beat, read_page
from bus.registry.roster import Instance
from tests.harness import BOUND_S, agent_processes, agents_there, serving, supervised, until

SLEEPER = Path(__file__).parents[1] / "faults" / "sleeper.py"


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


@pytest.fixture
def two_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "_FEW", 1)


def idle() -> Agent:
    agent = Agent("idle", version="1.2.0", tags=["eu"])

    @agent.capability("idle.work", concurrency=2)
    async def work(query: dict[str, float]) -> int:
        await asyncio.sleep(query["s"])
        return 1

    return agent


async def told(client: Client) -> list[str]:
    """Who is there, by the leader's word alone."""
    try:
        pages = await client.connection.request_page(
            client.subjects.roster, b"", is_end=is_end_of_roster, timeout_s=BOUND_S
        )
    except (NoResponders, Unavailable):
        return []
    return sorted(each.card.instance for page in pages[:-1] for each in read_page(page))


@pytest.mark.usefixtures("two_are_many")
async def test_the_leader_says_who_is_there_as_they_would_themselves(server: Server, client: Client) -> None:
    async with serving(server, idle(), idle(), idle()):
        asked = [_steady(each) for each in await client.agents()]
        async with supervised(server):
            await until(lambda: _many_told(client, 3))
            by_leader = [_steady(each) for each in await client.agents()]
            assert by_leader == asked
            assert await client.agents("idle.work", version=">=1,<2", tag="eu") != []
            assert await client.agents("other") == []


@pytest.mark.usefixtures("two_are_many")
async def test_who_came_or_ended_before_the_question_is_known_of(server: Server, client: Client) -> None:
    async with supervised(server), serving(server, idle(), idle()):
        await until(lambda: _many_told(client, 2))
        async with serving(server, idle(), idle()):
            assert len(await client.agents()) == 4
        assert len(await client.agents()) == 2


@pytest.mark.usefixtures("two_are_many")
async def test_a_killed_instance_is_told_of_no_more_and_a_frozen_one_is_suspected(
    server: Server, client: Client
) -> None:
    async with supervised(server, beat_s=0.5, lease_s=30):
        with agent_processes(server, SLEEPER, 4) as processes:
            await until(lambda: _many_told(client, 4))
            processes[0].kill()
            await until(lambda: _many_told(client, 3))
            os.kill(processes[1].pid, signal.SIGSTOP)
            await until(lambda: _stand(client, ["live", "live", "suspected"]))


async def test_of_few_the_leader_says_nothing_and_they_are_asked_themselves(server: Server, client: Client) -> None:
    async with supervised(server), serving(server, idle()):
        await until(lambda: _answers_at_all(client))
        assert await told(client) == []
        assert len(await client.agents()) == 1


async def test_a_leader_that_is_not_told_of_ends_says_nothing(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "_FEW", 0)
    async with supervised(server) as supervisor, serving(server, idle()):
        await until(lambda: _many_told(client, 1))
        monkeypatch.setattr(census.Census, "hears_ends", False)
        assert await told(client) == []
        assert supervisor.leads.is_set()
        assert len(await client.agents()) == 1


async def test_many_beat_less_often_unless_they_hold_something(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two a second are the limit here: four instances are asked to beat every other second."""
    monkeypatch.setattr(census, "_BEATS_PER_S", 2)
    newest: dict[str, Beat] = {}

    def hear(message: Message) -> None:
        if (beat := read_beat(message)) is not None:
            newest[beat.instance] = beat

    client.connection.subscribe(client.subjects.beats, hear)
    async with supervised(server), serving(server, idle(), idle(), idle(), idle()):
        await until(lambda: [each.every_s for each in newest.values()] == [2.0] * 4)
        receipt = await client.send("idle.work", {"s": 1.0})
        await until(lambda: sorted(each.every_s for each in newest.values()) == [0.0, 2.0, 2.0, 2.0])
        assert [len(each.held) for each in newest.values() if not each.every_s] == [1]
        await client.result(receipt.run, timeout_s=BOUND_S)
        await until(lambda: [each.every_s for each in newest.values()] == [2.0] * 4)


async def test_a_frozen_instance_that_beats_less_often_is_lost_after_as_many_beats(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(census, "_BEATS_PER_S", 1)
    async with supervised(server, beat_s=0.5, lease_s=1.5):
        with agent_processes(server, SLEEPER, 2) as processes:
            await agents_there(client, 2)
            os.kill(processes[0].pid, signal.SIGSTOP)
            await until(lambda: _lost(client))


def _steady(instance: Instance) -> Instance:
    """Without what changes by itself, on a busy machine."""
    return msgspec.structs.replace(instance, lag_s=0.0, memory_mb=0, health="healthy", note="")


async def _many_told(client: Client, count: int) -> bool:
    return len(await told(client)) == count


async def _answers_at_all(client: Client) -> bool:
    try:
        await client.connection.request(client.subjects.roster, timeout_s=1.0)
    except (NoResponders, Unavailable):
        return False
    return True


async def _stand(client: Client, wanted: list[str]) -> bool:
    return sorted(each.status for each in await client.agents()) == wanted


async def _lost(client: Client) -> bool:
    return (await client.log.last(client.subjects.agents)) is not None and any(
        [b"agent.lost.v1" in record.body async for record in client.log.read(client.subjects.agents)]
    )
