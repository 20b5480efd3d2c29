"""Topics: read from any position, heard by agents once each, and what nobody can read is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from msgspec import Struct

from bus import Agent, Client, Context, connect
from bus.broker.server import Server
from bus.clock import utc_now
from bus.errors import InvalidName
from bus.format.envelope import envelope
from bus.format.payload import Limits, pack
from bus.format.subjects import subscription
from bus.log.payloads import Payloads
from tests.harness import BOUND_S, serving, until


class Order(Struct, frozen=True):
    number: int


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


async def take(news: Any, count: int) -> list[Any]:
    async with asyncio.timeout(BOUND_S), aclosing(news):
        return [each async for each, _ in _zipped(news, count)]


async def _zipped(news: Any, count: int) -> AsyncIterator[tuple[Any, int]]:
    for number in range(count):
        yield await anext(news), number


async def test_what_is_published_comes_in_its_type_and_in_order(client: Client) -> None:
    published = [await client.publish("orders.created", Order(number)) for number in range(3)]
    await client.publish("orders.created.again", Order(9))
    await client.publish("other", Order(8))
    heard = await take(client.subscribe("orders.*", Order, after=0), 3)
    assert [(news.value, news.topic) for news in heard] == [(Order(n), "orders.created") for n in range(3)]
    assert [news.position for news in heard] == [each.position for each in published]


async def test_a_subscription_goes_on_from_a_position(client: Client) -> None:
    for number in range(3):
        await client.publish("orders.created", Order(number))
    first, *_ = await take(client.subscribe("orders.>", Order, after=0), 1)
    news = client.subscribe("orders.>", Order, after=first.position)
    assert [each.value.number for each in await take(news, 2)] == [1, 2]


async def test_without_a_position_only_what_comes_is_heard(client: Client) -> None:
    await client.publish("orders.created", Order(0))
    news = client.subscribe("orders.created", Order)
    waiting = asyncio.ensure_future(anext(news))
    number = 1
    while not waiting.done():
        await client.publish("orders.created", Order(number))
        number += 1
        await asyncio.sleep(0.02)
    assert (await waiting).value.number >= 1
    await news.aclose()


async def test_what_is_no_order_is_passed_over(client: Client) -> None:
    await client.publish("orders.created", {"nothing": 1})
    client.connection.publish(client.subjects.topic("orders.created"), b"\xff\xfe")
    await client.publish("orders.created", Order(2))
    (news,) = await take(client.subscribe("orders.created", Order, after=0), 1)
    assert news.value == Order(2)


async def test_a_fact_published_again_under_its_id_is_there_once(client: Client) -> None:
    first, again = [await client.publish("orders.created", Order(1), id="order 1") for _ in range(2)]
    assert first == again


@pytest.mark.parametrize("topic", ["", "Orders", "orders.*", "orders.>", "a..b", "a b"])
async def test_a_topic_is_a_dotted_name(client: Client, topic: str) -> None:
    with pytest.raises(InvalidName):
        await client.publish(topic, 1)


@pytest.mark.parametrize("topics", ["", "Orders", "orders.>.x", "a..b", "orders>", ".>"])
async def test_a_pattern_is_made_of_names_and_wildcards(client: Client, topics: str) -> None:
    with pytest.raises(InvalidName):
        await anext(client.subscribe(topics))


def billing(heard: list[tuple[int, str]], *, after: Any = "start") -> Agent:
    agent = Agent("billing")

    @agent.subscribe("orders.>", name="orders", after=after, concurrency=8)
    async def bill(order: Order, context: Context) -> None:
        heard.append((order.number, context.correlation))
        if order.number == 1 and context.attempt == 1:
            raise ConnectionResetError("try again")

    return agent


async def test_an_agent_hears_each_fact_once_with_attempts_as_for_any_work(server: Server, client: Client) -> None:
    from tests.harness import supervised

    heard: list[tuple[int, str]] = []
    published = [await client.publish("orders.created", Order(number)) for number in range(3)]
    async with supervised(server), serving(server, billing(heard), billing(heard)):
        await until(lambda: sorted(number for number, _ in heard) == [0, 1, 1, 2])
        runs = await client.ledger.names()
        assert len(runs) == 3
        states = [await client.result(run, timeout_s=BOUND_S) for run in runs]
        assert {state.status for state in states} == {"completed"}
        assert sorted(state.input.value["position"] for state in states) == [each.position for each in published]
        record = await client.log.at(published[0].position)
        assert record is not None
        assert record.envelope().correlationid in {correlation for _, correlation in heard}


async def test_a_subscription_goes_on_where_it_was_when_its_agent_comes_back(server: Server, client: Client) -> None:
    heard: list[tuple[int, str]] = []
    async with serving(server, billing(heard, after="now")):
        await client.publish("orders.created", Order(10))
        await until(lambda: len(heard) == 1)
    await client.publish("orders.created", Order(11))
    async with serving(server, billing(heard, after="now")):
        await client.publish("orders.created", Order(12))
        await until(lambda: len(heard) == 3)
    assert sorted(number for number, _ in heard) == [10, 11, 12]


async def test_what_nobody_can_read_becomes_a_dead_letter_of_the_subscription(server: Server, client: Client) -> None:
    heard: list[tuple[int, str]] = []
    client.connection.publish(client.subjects.topic("orders.created"), b"\xff\xfe")
    await client.publish("orders.created", Order(2))
    async with serving(server, billing(heard)):
        await until(lambda: len(heard) == 1)
        await until(lambda: _letters(client))
        [letter] = [each.letter async for each in client.dead_letters()]
        assert letter.capability == subscription("billing", "orders")


async def _letters(client: Client) -> bool:
    return await client.log.last(client.subjects.dead_letters) is not None


async def test_each_agent_that_can_not_read_a_fact_has_a_letter_of_its_own(server: Server, client: Client) -> None:
    agents = [Agent("one"), Agent("two")]
    for agent in agents:

        @agent.subscribe("orders.*", name="all", after="start")
        async def hear(order: Order) -> None:
            """Never called."""

    async def letters() -> set[str]:
        return {each.letter.capability async for each in client.dead_letters(status=["open"])}

    async with serving(server, *agents):
        client.connection.publish(client.subjects.topic("orders.created"), b"\xff")

        async def all_there() -> bool:
            return await letters() == {"agent.one.on.all", "agent.two.on.all"}

        await until(all_there)


async def test_an_id_is_that_of_a_fact_on_one_topic(client: Client) -> None:
    created = await client.publish("orders.created", Order(1), id="1")
    packed = await client.publish("orders.packed", Order(1), id="1")
    again = await client.publish("orders.packed", Order(1), id="1")
    assert created.position < packed.position == again.position


async def test_a_fact_that_one_subscription_could_not_read_is_told_again_to_that_one_alone(
    server: Server, client: Client
) -> None:
    """Its payload was lost, and has been found."""
    heard: list[tuple[str, str]] = []
    agents = [Agent("one"), Agent("two")]
    for agent in agents:

        @agent.subscribe("orders.*", name="all", after="start")
        async def hear(note: str, context: Context) -> None:
            heard.append((context.agent, note))

    note = "x" * 1_500_000 + "".join(map(chr, range(33, 120)))
    subject = client.subjects.topic("orders.created")
    fact = envelope("topic.published.v1", note, id="1", source="/test", time=utc_now())
    limits = Limits(client.settings.payload_limit_bytes, client.settings.compress_above_bytes, 1_000)
    packed = pack(fact, limits)
    assert packed.name

    async def standings(agent: str) -> list[str]:
        return [each.standing async for each in client.dead_letters(capability=f"agent.{agent}.on.all")]

    async with serving(server, *agents):
        client.connection.publish(subject, packed.body)
        await until(lambda: _count(client, 2))
        one, two = sorted([each async for each in client.dead_letters()], key=lambda each: each.letter.capability)
        # It is not there yet: it dies again, of the one it is told to.
        await client.redrive_letter(one.number, by="ann")
        await until(lambda: _count(client, 3))
        assert (await standings("one"), await standings("two")) == (["died_again", "open"], ["open"])
        objects = Payloads(client.connection, client.subjects, client.settings).objects
        await objects.put(packed.name, packed.content, {"subject": subject})
        *_, newest = [each async for each in client.dead_letters(status=["open"])]
        await client.redrive_letter(newest.number, by="ann")
        await until(lambda: heard)
        await until(lambda: _stands(client, newest.number, "resolved"))
        assert heard == [("one", note)] and await standings("two") == ["open"]
        await client.redrive_letter(two.number, by="ann")
        await until(lambda: len(heard) == 2)
    assert heard == [("one", note), ("two", note)]


async def _count(client: Client, count: int) -> bool:
    return len([each async for each in client.dead_letters()]) == count


async def _stands(client: Client, number: int, standing: str) -> bool:
    return (await client.dead_letter(number)).standing == standing
