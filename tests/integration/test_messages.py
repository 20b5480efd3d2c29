"""Messages: sent once under an id, later, again and again, to one agent by its name; and given up when nobody waits."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from msgspec import Struct

from bus import Agent, Client, Context, Reject, WorkFailed, connect
from bus.broker.server import Server
from bus.clock import utc_now
from bus.errors import Refused, ScheduleError, SettingsError, TimedOut, TooLarge
from bus.format.subjects import mailbox
from bus.worker.worker import serving as serving_with
from tests.harness import BOUND_S, serving, supervised, until


class Moved(Struct, frozen=True, tag="moved"):
    to: str


class Renamed(Struct, frozen=True, tag="renamed"):
    name: str


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


def clerk(heard: list[object]) -> Agent:
    agent = Agent("clerk")

    @agent.mail()
    async def hear(news: Moved | Renamed, context: Context) -> None:
        heard.append(news)

    @agent.capability("count", concurrency=4)
    async def count(number: int, context: Context) -> int:
        heard.append(number)
        if number < 0:
            raise Reject("not below zero")
        return number + context.attempt

    return agent


async def test_what_is_sent_twice_under_an_id_is_done_once(server: Server, client: Client) -> None:
    heard: list[object] = []
    async with serving(server, clerk(heard)):
        first = await client.send("count", 1, id="order 7")
        await client.result(first.run, timeout_s=BOUND_S)
        again = await client.send("count", 1, id="order 7")
        assert (again.run, again.position, first.duplicate, again.duplicate) == (first.run, first.position, False, True)
        assert heard == [1]


async def test_an_id_stands_for_one_piece_of_work(client: Client) -> None:
    await client.send("count", 1, id="order 7")
    for capability, value in (("count", 2), ("other", 1)):
        with pytest.raises(Refused, match="order 7"):
            await client.send(capability, value, id="order 7")


async def test_two_who_send_under_one_id_at_once_have_one_receipt(server: Server, client: Client) -> None:
    async with connect(server.url) as other:
        receipts = await asyncio.gather(*(each.send("count", 1, id="x") for each in (client, other) for _ in range(4)))
    assert len({(receipt.run, receipt.position) for receipt in receipts}) == 1
    assert sum(not receipt.duplicate for receipt in receipts) == 1


async def test_delayed_work_begins_when_its_time_has_come(server: Server, client: Client) -> None:
    heard: list[object] = []
    async with supervised(server), serving(server, clerk(heard)):
        receipt = await client.send("count", 1, delay_s=0.4)
        state = await client.runs.load(receipt.run)
        assert state.phases["work"].status == "ready" and not heard
        done = await client.result(receipt.run, timeout_s=BOUND_S)
        (attempt,) = done.phases["work"].items[0].attempts
        assert attempt.started_at - done.started_at >= timedelta(seconds=0.4)


async def test_the_time_of_delayed_work_counts_from_when_it_is_due(client: Client) -> None:
    due_at = datetime.now(UTC) + timedelta(hours=1)
    state = await client.runs.load((await client.send("count", 1, at=due_at, timeout_s=60)).run)
    assert state.deadline_at == due_at + timedelta(seconds=60)


async def test_a_time_that_makes_no_sense_is_refused(client: Client) -> None:
    for when in ({"at": datetime(2030, 1, 1)}, {"delay_s": -1.0}, {"delay_s": 1.0, "at": datetime.now(UTC)}):
        with pytest.raises(ScheduleError):
            await client.send("count", 1, **when)  # type: ignore[arg-type]


async def test_a_capability_can_be_scheduled_without_a_plan(server: Server, client: Client) -> None:
    heard: list[object] = []
    async with supervised(server), serving(server, clerk(heard)):
        await client.schedule("tick", "count", 5, every_s=1)
        await until(lambda: heard)
    assert heard[0] == 5


async def test_what_is_told_to_an_agent_reaches_it_in_its_type(server: Server, client: Client) -> None:
    heard: list[object] = []
    async with serving(server, clerk(heard)):
        for news in (Moved("Oslo"), Renamed("Ann")):
            receipt = await client.tell("clerk", news)
            assert not receipt.unserved
            await client.result(receipt.run, timeout_s=BOUND_S)
    assert heard == [Moved("Oslo"), Renamed("Ann")]


async def test_mail_waits_for_its_agent(server: Server, client: Client) -> None:
    heard: list[object] = []
    receipt = await client.tell("clerk", Moved("Oslo"))
    assert list(receipt.unserved) == [mailbox("clerk")]
    async with serving(server, clerk(heard)):
        await client.result(receipt.run, timeout_s=BOUND_S)
    assert heard == [Moved("Oslo")]


def test_nobody_takes_the_mail_of_another() -> None:
    with pytest.raises(SettingsError, match="mail"):
        Agent("thief").capability(mailbox("clerk"))


async def test_a_fast_answer_leaves_nothing_behind(server: Server, client: Client) -> None:
    async with serving(server, clerk([])):
        assert await client.ask("count", 1, int, fast=True) == 2
        with pytest.raises(WorkFailed, match="not below zero") as failed:
            await client.ask("count", -1, int, fast=True)
        assert failed.value.problem.code == "rejected"
    assert await client.log.last(client.subjects.runs) is None


async def test_a_busy_instance_leaves_what_it_is_asked_to_another(server: Server, client: Client) -> None:
    agents = [Agent(f"slow-{number}") for number in range(2)]
    release = asyncio.Event()
    for agent in agents:

        @agent.capability("hold")
        async def hold(wait: bool, context: Context) -> str:
            if wait:
                await release.wait()
            return context.agent

    async with serving(server, *agents):
        for fast in (True, False):
            holding = asyncio.create_task(client.ask("hold", True, str, fast=True))
            await asyncio.sleep(0.1)
            quick = await client.ask("hold", False, str, fast=fast)
            release.set()
            assert {quick, await holding} == {"slow-0", "slow-1"}
            release.clear()


async def test_a_fast_question_has_an_end(server: Server, client: Client) -> None:
    agent = Agent("slow")

    @agent.capability("sleep")
    async def sleep(_: int) -> None:
        await asyncio.sleep(BOUND_S)

    async with serving(server, agent):
        with pytest.raises((TimedOut, WorkFailed)):
            await client.ask("sleep", 1, fast=True, timeout_s=0.2)


def sleeper() -> tuple[Agent, asyncio.Event, asyncio.Event]:
    """An agent that sleeps; when it began to, and when it was told to stop."""
    agent = Agent("slow")
    began, halted = asyncio.Event(), asyncio.Event()

    @agent.capability("sleep")
    async def sleep(_: int) -> None:
        began.set()
        try:
            await asyncio.sleep(BOUND_S)
        except asyncio.CancelledError:
            halted.set()
            raise

    return agent, began, halted


async def test_who_stops_waiting_for_an_answer_stops_the_work(server: Server, client: Client) -> None:
    agent, began, halted = sleeper()
    async with serving(server, agent):
        asking = asyncio.create_task(client.ask("sleep", 1))
        await began.wait()
        asking.cancel()
        async with asyncio.timeout(BOUND_S):
            await halted.wait()
        (run,) = await client.ledger.names()
        assert (await client.result(run, timeout_s=BOUND_S)).status == "cancelled"


@pytest.mark.parametrize("ending", ["cancelled", "timed out"])
async def test_who_stops_waiting_for_a_fast_answer_stops_the_work(server: Server, client: Client, ending: str) -> None:
    agent, began, halted = sleeper()
    async with serving(server, agent):
        asking = asyncio.create_task(client.ask("sleep", 1, fast=True, timeout_s=0.5 if ending == "timed out" else 60))
        await began.wait()
        if ending == "cancelled":
            asking.cancel()
        async with asyncio.timeout(BOUND_S):
            await halted.wait()
        assert isinstance((await asyncio.gather(asking, return_exceptions=True))[0], BaseException)
        # Its place is free again.
        began.clear()
        again = asyncio.create_task(client.ask("sleep", 1, fast=True))
        await began.wait()
        again.cancel()


async def test_a_thread_that_answers_fast_is_told_that_nobody_waits(server: Server, client: Client) -> None:
    agent = Agent("slow")
    began, told = threading.Event(), threading.Event()

    @agent.capability("sleep")
    def sleep(_: int, context: Context) -> None:
        began.set()
        while not context.cancelled:
            time.sleep(0.01)
        told.set()

    async with serving(server, agent):
        asking = asyncio.create_task(client.ask("sleep", 1, fast=True))
        await until(began.is_set)
        asking.cancel()
        await until(told.is_set)


async def test_what_a_withdrawn_question_asked_itself_is_withdrawn_as_well(server: Server, client: Client) -> None:
    agent = Agent("chain")
    began, halted = asyncio.Event(), asyncio.Event()
    left_s: list[float] = []

    @agent.capability("outer")
    async def outer(_: int, context: Context) -> None:
        await context.client.ask("inner", 1, fast=True)

    @agent.capability("inner")
    async def inner(_: int, context: Context) -> None:
        left_s.append(context.left_s(utc_now(), 3600))
        began.set()
        try:
            await asyncio.sleep(BOUND_S)
        except asyncio.CancelledError:
            halted.set()
            raise

    async with serving(server, agent):
        asking = asyncio.create_task(client.ask("outer", 1, fast=True, timeout_s=5))
        await began.wait()
        asking.cancel()
        async with asyncio.timeout(BOUND_S):
            await halted.wait()
    # It had no more time than who asked first.
    assert left_s[0] <= 5


async def test_a_question_that_is_withdrawn_in_line_is_never_begun(server: Server, client: Client) -> None:
    agent = Agent("slow")
    begun: list[int] = []
    release = asyncio.Event()

    @agent.capability("hold")
    async def hold(number: int) -> None:
        begun.append(number)
        await release.wait()

    async with serving(server, agent):
        first = asyncio.create_task(client.ask("hold", 1, fast=True))
        await until(lambda: begun)
        others = [asyncio.create_task(client.ask("hold", 2, fast=True)) for _ in range(5)]
        await asyncio.sleep(0.5)
        for each in others:
            each.cancel()
        await asyncio.sleep(0.1)
        release.set()
        await first
        await client.ask("hold", 3, fast=True)
    assert begun == [1, 3]


async def test_a_fast_question_and_its_answer_may_be_larger_than_a_message(server: Server, client: Client) -> None:
    agent = Agent("mirror")

    @agent.capability("mirror")
    async def mirror(text: str) -> str:
        return text[::-1]

    @agent.capability("size")
    async def size(text: str) -> int:
        return len(text)

    @agent.capability("grow")
    async def grow(size: int) -> str:
        return noise(size)

    assert client.connection.max_payload < 3_000_000
    async with serving(server, agent):
        large = noise(3_000_000)
        assert await client.ask("size", large, int, fast=True) == len(large)
        assert len(await client.ask("grow", len(large), str, fast=True)) == len(large)
        assert await client.ask("mirror", large, str, fast=True) == large[::-1]
        # Around the limit itself, envelope and all.
        for more in range(-600, 100, 50):
            almost = noise(client.connection.max_payload + more)
            assert await client.ask("mirror", almost, str, fast=True) == almost[::-1]
    assert await client.log.last(client.subjects.runs) is None


async def test_a_fast_question_or_answer_over_the_limit_for_payloads_is_refused(server: Server) -> None:
    agent = Agent("grower")

    @agent.capability("grow")
    async def grow(size: int | str) -> str:
        return noise(size) if isinstance(size, int) else ""

    limit_bytes = 2_000_000
    async with connect(server.url, payload_limit_bytes=limit_bytes) as client, serving_with(client, agent):
        with pytest.raises(TooLarge, match="limit"):
            await client.ask("grow", noise(limit_bytes), fast=True)
        with pytest.raises(WorkFailed, match="too large") as failed:
            await client.ask("grow", limit_bytes, fast=True)
        assert failed.value.problem.code == "bad_output"


def noise(size: int) -> str:
    """Text that no compression makes small."""
    return random.Random(7).randbytes(size // 2 + 1).hex()[:size]


async def test_who_waits_for_a_free_hand_asks_seldom_and_is_answered_soon(server: Server, client: Client) -> None:
    agent = Agent("slow")
    begun: list[int] = []
    release = asyncio.Event()

    @agent.capability("hold")
    async def hold(number: int) -> int:
        begun.append(number)
        await release.wait()
        return number

    questions = 0

    def count(_: object) -> None:
        nonlocal questions
        questions += 1

    async with serving(server, agent):
        first = asyncio.create_task(client.ask("hold", 0, int, fast=True))
        await until(lambda: begun)
        listening = client.connection.subscribe(client.subjects.hand("hold"), count)
        others = [asyncio.create_task(client.ask("hold", number, int, fast=True)) for number in range(1, 6)]
        await asyncio.sleep(3)
        # Each asked with growing patience, at most about once a second in the end; it was 30 times a second.
        assert 5 <= questions <= 5 * 14
        release.set()
        assert await asyncio.gather(first, *others) == list(range(6))
        listening.unsubscribe()


async def test_what_takes_long_is_in_the_log_while_it_is_done(server: Server, client: Client) -> None:
    agent = Agent("slow")
    release = asyncio.Event()

    @agent.capability("hold")
    async def hold(_: int, context: Context) -> str:
        await context.progress(0.5, "half way")
        await release.wait()
        return context.run

    async with serving(server, agent):
        asking = asyncio.create_task(client.ask("hold", 1, str))
        await until(client.ledger.names)
        (run,) = await client.ledger.names()
        await until(lambda: _said(client, run, "half way"))
        release.set()
        assert await asking == run


async def _said(client: Client, run: str, note: str) -> bool:
    (attempt,) = (await client.runs.load(run)).phases["work"].items[0].attempts
    return attempt.note == note


async def test_work_whose_asker_has_given_up_is_not_begun_again(server: Server, client: Client) -> None:
    """Nobody supervises here: the instance itself has to see it."""
    begun: list[int] = []
    agent = Agent("slow")

    @agent.capability("slow")
    async def slow(_: object, context: Context) -> None:
        begun.append(context.attempt)
        await asyncio.sleep(BOUND_S)

    async with serving(server, agent):
        with pytest.raises(TimedOut) as late:
            await client.ask("slow", 1, timeout_s=0.3)
        run = str(late.value).partition("(run ")[2].rstrip(")")
        assert (await client.result(run, timeout_s=BOUND_S)).status == "failed"
        assert begun == [1]
