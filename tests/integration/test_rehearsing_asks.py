"""What handlers ask of others when they are rehearsed: played back from the log, compared with it, and never done."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import pytest

from bus import Agent, Client, Context, Phase, Plan, Reject, Retry, connect, ref, serving
from bus.archives.convoy import last_position
from bus.broker.server import Server
from bus.errors import NoLiveAgent, WorkFailed
from bus.history.selection import Selection
from bus.replay.fork import forked
from bus.replay.rehearsed import Rehearsal, Rehearsed
from bus.replay.rehearsing import rehearse
from bus.replay.replaying import Replayed, replay
from tests.harness import BOUND_S, supervised

Act = Callable[[Any, Context], Awaitable[Any]]
PLAN = Plan("buy", phases=[Phase("buy", "buy", input=ref("input"))])


def buyer(act: Act) -> Agent:
    agent = Agent("buyer")
    agent.capability("buy", concurrency=4)(act)
    return agent


def market() -> Agent:
    """It never gives the same answer twice."""
    agent = Agent("market")

    @agent.capability("price", concurrency=8, versioned=True, broadcast=True)
    async def price(name: str) -> dict[str, Any]:
        if name == "gone":
            raise Reject("sold out")
        return {"name": name, "cents": random.random()}

    @agent.mail()
    async def hear(message: Any) -> None:
        return

    return agent


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


async def bought(server: Server, client: Client, act: Act, plan: Plan = PLAN, input: Any = "tea") -> None:
    """The history: a run called `one`."""
    async with supervised(server), serving(client, market()), serving(client, buyer(act)):
        await client.start(plan, input, run="one")
        await client.result("one", timeout_s=BOUND_S)


async def rehearsed(client: Client, act: Act) -> Rehearsal:
    async with (
        asyncio.timeout(BOUND_S),
        forked() as fork,
        aclosing(rehearse(client, fork, buyer(act), ["one"])) as all_,
    ):
        [found] = [each async for each in all_]
        return found


def asks(work: Rehearsed | Replayed) -> list[tuple[str, str, str]]:
    return [(each.change, each.kind, each.what) for each in work.asks]


async def everything(name: Any, context: Context) -> Any:
    """Uses each verb once."""
    client = context.client
    first = await client.ask("price", name)
    both = await asyncio.gather(client.ask("price", name), client.ask("price", "milk"))
    receipt = await client.send("price", "later")
    again = [await client.send("price", "once", id=f"{context.run}-once") for _ in range(2)]
    told = await client.tell("market", {"about": name})
    news = await client.publish("bought.tea", {"name": name})
    twice = [(await client.publish("bought.tea", {"again": name}, id=context.run)).position for _ in range(2)]
    done = await client.result(receipt.run, timeout_s=5)
    inside = await client.start(Plan("inside", phases=[Phase("x", "price", input="in")]), {"for": name})
    to_all = await client.broadcast("price", "all")
    versioned = await client.send("price", "versioned", version=">=0")
    streamed = client.stream("price", "streamed")
    parts = [part.value async for part in streamed]
    try:
        await client.ask("price", "gone")
    except WorkFailed as error:
        failure = str(error)
    return {
        "first": first,
        "both": both,
        "receipts": [receipt, *again, told, news, *twice, inside, to_all, versioned],
        "later": client.output(done, "work"),
        "streamed": [parts, await streamed.answer()],
        "failure": failure,
    }


async def test_the_same_code_gets_the_answers_it_got_and_is_not_different(server: Server, client: Client) -> None:
    await bought(server, client, everything)
    before = await last_position(client)
    heard: list[str] = []
    async with connect(server.operator_url, create=False) as listener:
        tap = listener.connection.subscribe(">", lambda message: heard.append(message.subject))
        await listener.connection.flush(5)
        found = await rehearsed(client, everything)
        await listener.connection.flush(5)
        tap.unsubscribe()
    [work] = found.work
    assert (work.verdict, asks(work), found.is_same) == ("same", [], True), work
    # Nothing was stored, and nothing was said to anybody: whatever was sent only asks the server for what it has.
    assert await last_position(client) == before
    reading = (
        "$JS.API.DIRECT.GET.",
        "$JS.API.STREAM.INFO.",
        "$JS.API.STREAM.MSG.GET.",
        "$JS.API.INFO",
        "_INBOX.",
        "$SYS.",
    )
    others = ("$JS.API.CONSUMER.", "$JS.FC.", "$JS.EVENT.ADVISORY.")
    assert [each for each in heard if not each.startswith((*reading, *others))] == []


async def test_a_question_that_changed_is_listed_and_has_no_answer(server: Server, client: Client) -> None:
    async def then(name: Any, context: Context) -> Any:
        answer = await context.client.ask("price", {"name": name, "quantity": 1})
        await context.client.publish("bought", {"name": name})
        return answer["name"]

    async def now(name: Any, context: Context) -> Any:
        await context.client.publish("bought", {"name": name, "quantity": 2})
        answer = await context.client.ask("price", {"name": name, "quantity": 2})
        return answer["name"]

    async def quiet(name: Any, context: Context) -> Any:
        try:
            return await now(name, context)
        except NoLiveAgent:
            return name

    await bought_with(server, client, then)
    [work] = (await rehearsed(client, now)).work
    assert work.verdict == "failed"
    assert work.now.problem is not None and "the log has no answer to this" in str(work.now.problem)
    assert asks(work) == [("changed", "fact", "bought"), ("changed", "work", "price")]
    [fact, question] = [each.given for each in work.asks]
    assert fact is not None and fact.path == "quantity" and fact.other == 2
    assert question is not None and (question.path, question.one, question.other) == ("quantity", 1, 2)
    # The result may be the same: what is asked otherwise is a difference all the same.
    found = await rehearsed(client, quiet)
    assert [each.verdict for each in found.work] == ["differs"]
    assert not found.is_same and found.differences == found.work


async def bought_with(server: Server, client: Client, act: Act) -> None:
    """The same, where whoever is asked just says what he was asked."""
    echo = Agent("market")

    @echo.capability("price", concurrency=8)
    async def price(query: Any) -> Any:
        return query

    async with supervised(server), serving(client, echo), serving(client, buyer(act)):
        await client.start(PLAN, "tea", run="one")
        await client.result("one", timeout_s=BOUND_S)


async def test_what_is_asked_beyond_and_what_is_not_asked_any_more_is_listed(server: Server, client: Client) -> None:
    async def then(name: Any, context: Context) -> Any:
        await context.client.send("price", "sugar")
        await context.client.publish("bought", name)
        return (await context.client.ask("price", name))["name"]

    async def now(name: Any, context: Context) -> Any:
        await context.client.tell("market", "hello")
        await context.client.start(Plan("inside", phases=[Phase("x", "price", input="in")]))
        return (await context.client.ask("price", name))["name"]

    await bought(server, client, then)
    before = await last_position(client)
    [work] = (await rehearsed(client, now)).work
    assert work.verdict == "differs"
    assert asks(work) == [
        ("more", "work", "agent.market.mail"),
        ("more", "run", "inside"),
        ("fewer", "work", "price"),
        ("fewer", "fact", "bought"),
    ]
    assert await last_position(client) == before


async def test_what_was_asked_with_fast_left_nothing_to_play_back(server: Server, client: Client) -> None:
    async def act(name: Any, context: Context) -> Any:
        return (await context.client.ask("price", name, fast=True))["name"]

    await bought(server, client, act)
    [work] = (await rehearsed(client, act)).work
    assert (work.verdict, asks(work)) == ("failed", [("unrecorded", "work", "price")])


async def test_an_ask_that_nobody_was_there_for_is_no_difference(server: Server, client: Client) -> None:
    async def act(name: Any, context: Context) -> Any:
        return await context.client.ask("nobody.has.this", name)

    once = Plan("buy", phases=[Phase("buy", "buy", input=ref("input"), retry=Retry(dependency=0))])
    await bought(server, client, act, once)
    found = await rehearsed(client, act)
    assert found.is_same, found.work


async def test_an_ask_that_was_given_up_waiting_for_is_given_up_again(server: Server, client: Client) -> None:
    slow = Agent("slow")

    @slow.capability("think", concurrency=4)
    async def think(name: str) -> str:
        await asyncio.sleep(60)
        return name

    async def act(name: Any, context: Context) -> Any:
        first = asyncio.create_task(context.client.ask("think", name))
        second = asyncio.create_task(context.client.ask("price", name))
        done, _ = await asyncio.wait({first, second}, return_when=asyncio.FIRST_COMPLETED)
        first.cancel()
        try:
            await context.client.ask("think", "long", timeout_s=0.5)
        except TimeoutError as error:
            late = str(error)
        return [(await done.pop())["name"], late]

    async with serving(client, slow):
        await bought(server, client, act)
    found = await rehearsed(client, act)
    assert found.is_same, found.work


async def test_items_that_were_taken_together_get_their_own_answers(server: Server, client: Client) -> None:
    plan = Plan("many", phases=[Phase("buy", "buy", each=ref("input.names"), width=8)])

    async def act(name: Any, context: Context) -> Any:
        return await context.client.ask("price", name)

    await bought(server, client, act, plan, {"names": [f"thing-{index}" for index in range(12)]})
    found = await rehearsed(client, act)
    assert len(found.work) == 12 and found.is_same, found.differences


async def test_a_decision_about_another_run_is_not_made_again(server: Server, client: Client) -> None:
    waiting = Plan("gate", phases=[Phase("a", wait_for="go")])

    async def act(name: Any, context: Context) -> Any:
        other = await context.client.start(waiting, run="other")
        state = await context.client.signal(other.run, "go", {"by": name}, by="buyer")
        try:
            await context.client.approve(other.run, "a", by="buyer")
        except Exception as error:  # noqa: BLE001 - what is refused then is refused now
            return [state.status, str(error)]

    async def otherwise(name: Any, context: Context) -> Any:
        other = await context.client.start(waiting, run="other")
        state = await context.client.signal(other.run, "go", {"by": name}, by="buyer")
        return [state.status, (await context.client.rerun(other.run, by="buyer")).status]

    await bought(server, client, act)
    before = await last_position(client)
    found = await rehearsed(client, act)
    assert found.is_same, found.work
    [work] = (await rehearsed(client, otherwise)).work
    assert ("more", "decision", "other") in asks(work)
    assert await last_position(client) == before


async def test_work_that_was_asked_for_is_replayed_with_its_answers_too(server: Server, client: Client) -> None:
    """By `ask`, so that question, work and answers inside may stand in another order than they came in."""

    async def act(name: Any, context: Context) -> Any:
        return await context.client.ask("price", name)

    async def other(name: Any, context: Context) -> Any:
        return await context.client.ask("price", f"{name}!")

    async with serving(client, market()), serving(client, buyer(act)):
        await client.ask("buy", "tea")

    async def replayed(by: Act) -> list[Replayed]:
        async with forked() as fork, aclosing(replay(client, fork, buyer(by), Selection())) as found:
            return [each async for each in found]

    async with asyncio.timeout(BOUND_S):
        [same] = await replayed(act)
        [changed] = await replayed(other)
    assert (same.verdict, asks(same)) == ("same", [])
    assert (changed.verdict, asks(changed)) == ("failed", [("changed", "work", "price")])
