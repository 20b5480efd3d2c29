"""Parking: a death holds the work of its key that comes after it, and nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from bus import Agent, Client, Reject, connect
from bus.archives.outgoing import select
from bus.archives.retention import Policy
from bus.broker.server import Server
from bus.clock import utc_now
from bus.log.streams import info
from bus.runs.lane import LANES, lane_of, row_of, token_of
from tests.harness import BOUND_S, serving, supervised, until

# Two keys that share a lane.
ONE = "customer-0"
OTHER = next(key for number in range(1, 1_000) if lane_of(key := f"customer-{number}") == lane_of(ONE))


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


class Book:
    """An agent that books what it is told, and what it has booked. What is `bad` dies until it is not."""

    def __init__(self, name: str = "booker") -> None:
        self.done: list[tuple[str, int]] = []
        self.bad: set[tuple[str, int]] = set()
        self.agent = Agent(name)

        @self.agent.capability("book", ordered=True, on_dead="park", concurrency=4)
        async def book(order: tuple[str, int]) -> None:
            if order in self.bad:
                raise Reject("no")
            self.done.append(order)

    def of(self, key: str) -> list[int]:
        return [number for each, number in self.done if each == key]


async def send(client: Client, key: str, *numbers: int) -> list[str]:
    return [(await client.send("book", (key, number), key=key)).run for number in numbers]


async def finished(client: Client, runs: list[str]) -> None:
    states = await asyncio.gather(*(client.result(run, timeout_s=BOUND_S) for run in runs))
    assert {state.status for state in states} == {"completed"}


async def letters(client: Client) -> list[int]:
    return [each.number async for each in client.dead_letters(status=["open"])]


async def parked(client: Client, key: str) -> int:
    """How many wait in the line of a key."""
    subject = client.subjects.parked("book", token_of(key))
    records = [record async for record in client.log.read(subject)]
    row = row_of(records[-1].position, records[-1].envelope()) if records else None
    return sum(each.position > row.after for each in records) if row is not None and row.waits else 0


async def test_a_parked_key_lets_other_keys_of_its_lane_go_on(server: Server, client: Client) -> None:
    book = Book()
    book.bad.add((ONE, 1))
    async with serving(server, book.agent):
        held = await send(client, ONE, 1, 2)
        await finished(client, await send(client, OTHER, 1, 2, 3))
        await until(lambda: parked(client, ONE))
        assert book.done == [(OTHER, 1), (OTHER, 2), (OTHER, 3)]
        assert (await client.runs.load(held[1])).status == "in_progress"


@pytest.mark.parametrize("how", ["redriven", "discarded"])
async def test_what_waited_behind_a_death_goes_on_in_order_when_that_is_resolved(
    server: Server, client: Client, how: str
) -> None:
    book = Book()
    book.bad.add((ONE, 1))
    async with serving(server, book.agent):
        await send(client, ONE, 1)
        held = await send(client, ONE, *range(2, 42))
        await until(lambda: letters(client))
        book.bad.clear()
        (number,) = await letters(client)
        later = asyncio.create_task(send(client, ONE, *range(42, 52)))
        if how == "redriven":
            await client.redrive_letter(number, by="ann")
        else:
            await client.discard_letter(number, by="ann")
        await finished(client, held + await later)
    assert book.of(ONE) == list(range(1 if how == "redriven" else 2, 52))
    assert not await parked(client, ONE)


async def test_a_redrive_that_dies_again_frees_nobody(server: Server, client: Client) -> None:
    book = Book()
    book.bad |= {(ONE, 1), (ONE, 3)}
    async with serving(server, book.agent):
        runs = await send(client, ONE, 1, 2, 3, 4)
        await until(lambda: letters(client))
        (number,) = await letters(client)
        await client.redrive_letter(number, by="ann")
        await until(lambda: _died(client, runs[0], 2))
        await finished(client, await send(client, OTHER, 1))
        assert not book.of(ONE)
        book.bad.discard((ONE, 1))
        await client.redrive_letter((await letters(client))[-1], by="ann")
        # The next death of the same key parks it again, behind what could be done.
        await finished(client, runs[:2])
        await until(lambda: _died(client, runs[2], 1))
        assert book.of(ONE) == [1, 2]
        await client.discard_letter((await letters(client))[-1], by="ann")
        await finished(client, runs[3:])
    assert book.of(ONE) == [1, 2, 4]


async def _died(client: Client, run: str, passes: int) -> bool:
    state = await client.runs.load(run)
    return (state.status, state.passes) == ("failed", passes)


async def test_many_dead_of_one_key_are_done_in_their_order_however_they_are_redriven(
    server: Server, client: Client
) -> None:
    """What waits behind a death may die there, of its own deadline."""
    book = Book()
    book.bad.add((ONE, 1))
    async with supervised(server), serving(server, book.agent):
        first = await send(client, ONE, 1)
        late = [(await client.send("book", (ONE, number), key=ONE, timeout_s=4)).run for number in range(2, 6)]
        last = await send(client, ONE, 6)
        await until(lambda: _open(client, 5))
        book.bad.clear()
        for letter in reversed(await letters(client)):
            await client.redrive_letter(letter, by="ann")
        await finished(client, [*first, *late, *last])
    assert book.of(ONE) == [1, 2, 3, 4, 5, 6]


async def test_what_is_redriven_of_an_ordered_capability_stands_in_line_again(server: Server, client: Client) -> None:
    """Also where a death holds nobody: no two of a key are under way at once."""
    agent = Agent("booker")
    bad, under_way, done = {1}, 0, []

    @agent.capability("book", ordered=True, concurrency=4)
    async def book(order: tuple[str, int]) -> None:
        nonlocal under_way
        if order[1] in bad:
            raise Reject("no")
        under_way += 1
        assert under_way == 1
        await asyncio.sleep(0.02)
        under_way -= 1
        done.append(order[1])

    async with serving(server, agent):
        runs = await send(client, ONE, 1, 2)
        await finished(client, runs[1:])
        bad.clear()
        more = await send(client, ONE, *range(3, 10))
        await client.redrive_letter((await letters(client))[0], by="ann")
        more += await send(client, ONE, *range(10, 15))
        await finished(client, runs + more)
    assert [number for number in done if number != 1] == [*range(2, 15)]


async def _open(client: Client, count: int) -> bool:
    return len(await letters(client)) == count


async def test_a_parked_key_is_known_to_who_serves_it_next(server: Server, client: Client) -> None:
    first, second = Book("first"), Book("second")
    first.bad.add((ONE, 1))
    async with serving(server, first.agent):
        runs = await send(client, ONE, 1, 2)
        await until(lambda: parked(client, ONE))
    (number,) = await letters(client)
    await client.discard_letter(number, by="ann")
    async with serving(server, second.agent):
        await finished(client, runs[1:])
    assert second.done == [(ONE, 2)]


async def test_a_key_is_parked_until_its_dead_one_is_done_whoever_stops_waiting_meanwhile(
    server: Server, client: Client
) -> None:
    book = Book()
    book.bad.add((ONE, 1))
    async with supervised(server), serving(server, book.agent):
        await send(client, ONE, 1)
        late = await client.send("book", (ONE, 2), key=ONE, timeout_s=0.3)
        (given_up, last) = await send(client, ONE, 3, 4)
        await client.cancel(given_up, by="ann")
        await until(lambda: _died(client, late.run, 1))
        one, two = await letters(client)
        await client.discard_letter(one, by="ann")
        await finished(client, await send(client, OTHER, 1))
        # What expired in the line is dead, too, and holds what comes after it.
        assert not book.of(ONE)
        await client.discard_letter(two, by="ann")
        await finished(client, [last])
    assert book.of(ONE) == [4]


async def test_many_parked_keys_hold_nobody_else_and_go_on_one_by_one(server: Server, client: Client) -> None:
    book = Book()
    keys = [f"key-{number}" for number in range(200)]
    book.bad |= {(key, 1) for key in keys}
    async with serving(server, book.agent):
        await asyncio.gather(*(send(client, key, 1, 2) for key in keys))
        await until(lambda: _count(client, "dead.book", len(keys)), 60)
        # Every lane has parked keys, and still serves the others.
        fine = [f"fine-{number}" for number in range(4 * LANES)]
        await asyncio.gather(*(_sent_and_done(client, key) for key in fine))
        assert not any(book.of(key) for key in keys)
        some = keys[::20]
        book.bad.clear()
        for letter in [each async for each in client.dead_letters() if bytes(each.letter.payload) in _payloads(some)]:
            await client.redrive_letter(letter.number, by="ann")
        await until(lambda: all(book.of(key) == [1, 2] for key in some))
    assert sum(map(len, map(book.of, keys))) == 2 * len(some)


def _payloads(keys: list[str]) -> set[bytes]:
    return {f'["{key}",1]'.encode() for key in keys}


async def _sent_and_done(client: Client, key: str) -> None:
    await finished(client, await send(client, key, 1))


async def _count(client: Client, subject: str, count: int) -> bool:
    there = await info(client.connection, client.subjects.stream, 5.0, subjects=f"bus.{subject}")
    return sum(there.subjects.values()) >= count


async def test_places_leave_the_log_with_their_runs_and_not_before(server: Server, client: Client) -> None:
    book = Book()
    book.bad.add((ONE, 1))

    async def leaving() -> dict[str, int]:
        return (await select(client.log, Policy.of(["run=0s"]), utc_now() + timedelta(seconds=1))).upto

    async with serving(server, book.agent):
        runs = await send(client, ONE, 1, 2)
        await until(lambda: parked(client, ONE))
        line = client.subjects.line("book", lane_of(ONE))
        assert line not in await leaving()
        (number,) = await letters(client)
        await client.discard_letter(number, by="ann")
        await finished(client, runs[1:])
        await finished(client, await send(client, ONE, 3))
        letter = await client.dead_letter(number)
        book.bad.clear()
        await client.redrive_letter(letter.number, by="ann")
        await finished(client, runs[:1])
        places = [record.position async for record in client.log.read(line)]
        assert (await leaving())[line] == places[-1]
