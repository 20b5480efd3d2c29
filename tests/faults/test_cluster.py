"""Three servers with three copies: each may be killed in the middle of runs, the one that leads the log too."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks.chaos.invariants import check
from bus import Agent, Client, Misconfigured, Phase, Plan, connect
from tests.harness import serving, supervised, until
from tests.shipped import Cluster, clustered

BOUND_S = 90.0
REPLICAS = 3
RUNS = 12
PLAN = Plan("chain", phases=[Phase(f"p{n}", "nap", after=[f"p{n - 1}"] if n else []) for n in range(6)])


def napper() -> Agent:
    agent = Agent("napper")

    @agent.capability("nap", concurrency=8)
    async def nap(_: object) -> None:
        await asyncio.sleep(0.1)

    return agent


async def kill_each(cluster: Cluster) -> None:
    """One after the other, whoever leads the log first; each is back before the next one goes."""
    async with connect(cluster.url) as client:
        leader = await cluster.leader(client.connection, client.subjects.stream)
        for name in sorted(cluster.servers, key=lambda name: name != leader):
            server = cluster.servers[name]
            server.kill()
            await asyncio.sleep(1.0)
            server.start()
            await until(server.listens, BOUND_S)
            await asyncio.sleep(1.0)


@pytest.fixture
def _three_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHASEBUS_REPLICAS", str(REPLICAS))


@pytest.mark.usefixtures("_three_copies")
async def test_no_run_is_lost_or_done_twice_whichever_server_is_killed(tmp_path: Path) -> None:
    async with (
        clustered(tmp_path, BOUND_S) as cluster,
        supervised(cluster),
        serving(cluster, napper(), napper()),
        connect(cluster.url) as client,
    ):
        killing = asyncio.create_task(kill_each(cluster))
        started: dict[str, int] = {}
        for number in range(RUNS):
            receipt = await client.start(PLAN, run=f"chain-{number}")
            started[receipt.run] = receipt.position
            await client.publish("started", number)
            await asyncio.sleep(0.2)
        states = [await client.result(f"chain-{number}", timeout_s=BOUND_S) for number in range(RUNS)]
        await killing
        assert [state.status for state in states] == ["completed"] * RUNS
        assert await check(client, started, cancelled=[]) == []
        told = [each.message async for each in client.events(subjects=["bus.topic.>"])]
        assert [bytes(each.data) for each in told if each is not None] == [
            str(number).encode() for number in range(RUNS)
        ]


@pytest.mark.usefixtures("_three_copies")
async def test_what_was_written_is_read_whichever_server_answers(tmp_path: Path) -> None:
    async with clustered(tmp_path, BOUND_S) as cluster:
        for server in cluster.servers.values():
            async with connect(server.url) as client:
                await asyncio.gather(*(_write_and_read(client) for _ in range(10)))


@pytest.mark.usefixtures("_three_copies")
async def test_an_auditor_who_reads_several_subjects_sees_no_gap_whichever_server_answers(tmp_path: Path) -> None:
    """He may not ask the one that leads how far it is."""
    over = asyncio.Event()
    newest = 0

    async def write(client: Client, topic: str) -> None:
        nonlocal newest
        while not over.is_set():
            newest = (await client.publish(topic, 1)).position

    async def read(auditor: Client) -> list[tuple[int, list[int]]]:
        subjects, found = [auditor.subjects.topic(topic) for topic in "abc"], []
        while not over.is_set():
            after = max(0, newest - 60)
            found.append((after, [each.position async for each in auditor.log.read(*subjects, after=after)]))
        return found

    async with clustered(tmp_path, BOUND_S) as cluster, connect(cluster.url) as client:
        writing = [asyncio.create_task(write(client, topic)) for topic in "abc"]
        async with connect(cluster.servers["n2"].auditor_url) as auditor:
            reading = asyncio.create_task(read(auditor))
            await asyncio.sleep(3)
            over.set()
            await asyncio.gather(*writing)
            found = await reading
            everything = [each.position async for each in client.log.read("bus.topic.>")]
    assert len(found) > 1
    for after, positions in found:
        later = [each for each in everything if each > after]
        assert positions == later[: len(positions)]


async def _write_and_read(client: Client) -> None:
    subject = client.subjects.topic("news")
    for number in range(50):
        await client.send("nobody", number)
        published = await client.publish("news", number)
        newest = await client.log.last(subject)
        assert newest is not None and newest.position >= published.position
        read = [each.position async for each in client.log.read(subject, after=published.position - 1)]
        assert read[0] == published.position


async def test_whoever_says_another_number_of_copies_is_told_which_setting_is_meant(tmp_path: Path) -> None:
    async with clustered(tmp_path, BOUND_S) as cluster:
        with pytest.raises(Misconfigured, match=r"has 3 copies, this process wants 1.*PHASEBUS_REPLICAS=3"):
            async with connect(cluster.url):
                pass
