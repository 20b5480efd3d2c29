"""What the server forgets in a crash: that a key was to end, and that work was taken. Nobody waits for it for ever."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

from bus import Agent, Client, Phase, Plan, connect
from bus.broker.pull import Intake
from bus.broker.server import Server
from bus.clock import utc_now
from bus.coordination.lease import Place
from bus.log.consumers import BELL, EVERYBODY, consumer_of, ensure_bell
from bus.log.streams import info
from tests.harness import BOUND_S, serving, supervised, until

LEASE_S = 1.5


class Past:
    """The messages of a stream on the disk, as they were once. Only for a server that is stopped can they come back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blocks = {each: each.read_bytes() for each in folder.glob("*.blk")}

    @classmethod
    async def of(cls, server: Server, stream: str, *subjects: str) -> Past:
        """As soon as what is on these subjects has reached the disk."""
        (folder,) = server.store.rglob(f"{stream}/msgs")
        while True:
            past = cls(folder)
            if all(any(subject.encode() in data for data in past._blocks.values()) for subject in subjects):
                return past
            await asyncio.sleep(0.02)

    def bring_back(self) -> None:
        """As after a crash in which what was removed since was not written down as removed."""
        for each in self._folder.glob("*.blk"):
            each.unlink()
        for block, data in self._blocks.items():
            block.write_bytes(data)
        (self._folder / "index.db").unlink()


async def is_gone(client: Client, place: Place) -> bool:
    return await client.leases.bucket.get(place.path) is None


async def waiting(client: Client) -> int:
    return (await info(client.connection, client.subjects.work_stream, BOUND_S)).messages


async def test_a_lease_that_the_server_forgets_to_end_is_taken_over(server: Server) -> None:
    async with connect(server.url, lease_s=LEASE_S) as client:
        leases, place = client.leases, Place("leader", "supervisor")
        await leases.take(place, "who died", 1)
        # The server numbers on behind it.
        await leases.bucket.put("floor", b"0")
        past = await Past.of(server, "KV_BUS_LEASES", "leader.supervisor", "floor")
        await until(lambda: is_gone(client, place))
        await server.stop()
        past.bring_back()
        await server.start()
        assert await leases.bucket.get(place.path) is not None
        async with supervised(server, lease_s=LEASE_S) as supervisor:
            await until(supervisor.leads.is_set, BOUND_S)


async def test_work_that_was_taken_and_is_back_in_its_stream_is_removed(server: Server) -> None:
    agent = Agent("worker")

    @agent.capability("forgotten.echo")
    async def echo(value: int) -> int:
        return value

    async with connect(server.url) as client:
        receipt = await client.send("forgotten.echo", 1)
        other = await client.send("forgotten.other", 2)
        past = await Past.of(server, client.subjects.work_stream, receipt.run, other.run)
        async with serving(server, agent):
            await client.result(receipt.run, timeout_s=BOUND_S)
        await server.stop()
        past.bring_back()
        await server.start()
        assert await waiting(client) == 2
        async with supervised(server):
            # What still is to be done stays.
            await until(lambda: _is(client, 1))


async def test_ready_work_that_the_server_takes_for_delivered_is_delivered(server: Server) -> None:
    agent = Agent("worker")

    @agent.capability("forgotten.echo")
    async def echo(value: int) -> int:
        return value

    async with connect(server.url) as client:
        async with serving(server, agent):
            first = await client.send("forgotten.echo", 1)
            await client.result(first.run, timeout_s=BOUND_S)
        # The server is told that it is done with, and then does not remember that it was removed.
        receipt = await client.send("forgotten.echo", 2)
        past = await Past.of(server, client.subjects.work_stream, receipt.run)
        async with deafened(client, client.subjects.work_stream, consumer_of("forgotten.echo")):
            await until(lambda: _is(client, 0))
        await server.stop()
        past.bring_back()
        await server.start()
        assert await waiting(client) == 1
        async with serving(server, agent), supervised(server):
            await client.result(receipt.run, timeout_s=BOUND_S)


async def test_a_schedule_whose_ring_the_server_passes_over_is_started_by_the_clock(server: Server) -> None:
    async with connect(server.url) as client:
        stream = client.subjects.timers_stream
        plan = Plan("rung", phases=[Phase("wait", wait_for="nothing")])
        entry = await client.schedule("once", plan, at=utc_now().replace(microsecond=0) + timedelta(seconds=2))
        rung = client.subjects.rung("once", entry.position)
        await until(lambda: has_only(client, stream, rung))
        past = await Past.of(server, stream, rung)
        await ensure_bell(client.connection, client.subjects, client.settings)
        async with deafened(client, stream, BELL):
            await until(lambda: is_empty(client, stream))
        await server.stop()
        past.bring_back()
        await server.start()
        assert not await is_empty(client, stream)
        async with supervised(server):
            await until(client.ledger.names)


async def has_only(client: Client, stream: str, subject: str) -> bool:
    return set((await info(client.connection, stream, BOUND_S, subjects=">")).subjects) == {subject}


async def is_empty(client: Client, stream: str) -> bool:
    return not (await info(client.connection, stream, BOUND_S)).messages


@asynccontextmanager
async def deafened(client: Client, stream: str, consumer: str) -> AsyncIterator[None]:
    """Somebody takes what waits, says that it was taken, and does nothing."""
    intake = Intake(
        client.connection,
        stream,
        consumer,
        deliver=lambda delivery: delivery.ack(),
        missing=_nothing,
        group=EVERYBODY if stream == client.subjects.work_stream else "",
    )
    intake.grant(1)
    pulling = asyncio.create_task(intake.run())
    try:
        yield
    finally:
        intake.stop()
        await pulling


async def _nothing() -> None: ...


async def _is(client: Client, count: int) -> bool:
    return await waiting(client) == count
