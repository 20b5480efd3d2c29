"""Priorities and fairness: what is urgent goes first, what is not is done as well, and nobody is kept by a flood."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from agents.backlog import Backlog
from agents.docket import Docket
from agents.herald import Herald
from bus import Agent, Client, Context, Phase, Plan, PlanError, Retry, SettingsError, connect, ref
from bus.broker.server import Server
from bus.log.streams import info, purge
from bus.rules.priority import ROWS, SHARE
from bus.runs.planfile import read_plan
from tests.harness import BOUND_S, serving, supervised, until

# As much as stands in it, and the turns that are left to what stands behind it meanwhile.
FIRST_ROW = ROWS[0] * SHARE // (SHARE - 1)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


def packer(order: list[str], name: str = "packer", *, concurrency: int = 1, **options: object) -> Agent:
    """Writes down what it does, and takes a moment for it."""
    agent = Agent(name, **options)  # type: ignore[arg-type]

    @agent.capability("pack", concurrency=concurrency)
    async def pack(what: str, context: Context) -> str:
        if what.startswith("again") and context.attempt == 1:
            order.append(f"first {what}")
            raise Retry(0.05)
        order.append(what)
        await asyncio.sleep(0.002)
        return f"{context.priority} {context.sender}"

    return agent


async def send(client: Client, what: str, count: int, **options: object) -> list[str]:
    """`count` pieces of work, sent side by side; their runs."""
    sent = (client.send("pack", f"{what}-{number}", **options) for number in range(count))  # type: ignore[arg-type]
    return [receipt.run for receipt in await asyncio.gather(*sent)]


async def waiting(client: Client) -> dict[str, int]:
    """How much waits, by queue."""
    there = (await info(client.connection, client.subjects.work_stream, BOUND_S, subjects=">")).subjects
    works = map(client.subjects.parse_work, there)
    return dict(Counter(f"{of.level} {of.row}" for of in works))


async def all_wait(client: Client, count: int) -> None:
    await until(lambda: _as_many(client, count))


async def _as_many(client: Client, count: int) -> bool:
    return sum((await waiting(client)).values()) == count


def places(order: Sequence[str], what: str) -> list[int]:
    return [place for place, each in enumerate(order) if each.startswith(what)]


@pytest.mark.parametrize("instances", [1, 3])
async def test_of_a_backlog_what_is_high_is_taken_first_and_what_is_low_last(
    server: Server, client: Client, instances: int
) -> None:
    order: list[str] = []
    await send(client, "low", 15, priority="low")
    await send(client, "normal", 15)
    await send(client, "high", 15, priority="high")
    await all_wait(client, 45)
    async with serving(server, *(packer(order) for _ in range(instances))):
        await until(lambda: len(order) == 45)
    # Of eight turns each instance leaves one to what stands behind.
    assert places(order, "high")[-1] < 15 + 3 * instances
    assert places(order, "normal")[-1] < 30 + 4 * instances
    assert places(order, "low")[0] > 7


async def test_what_becomes_urgent_goes_before_what_waits_already(server: Server, client: Client) -> None:
    order: list[str] = []
    async with serving(server, packer(order), packer(order)):
        await send(client, "normal", 80)
        await until(lambda: len(order) >= 10)
        runs = await send(client, "high", 5, priority="high")
        for run in runs:
            await client.result(run, timeout_s=BOUND_S)
        assert len(order) < 75
        await until(lambda: len(order) == 85)


async def test_what_is_low_is_done_while_there_is_more_and_more_that_is_high(server: Server, client: Client) -> None:
    order: list[str] = []
    await send(client, "low", 5, priority="low")
    await send(client, "high", 120, priority="high")
    await all_wait(client, 125)
    async with serving(server, packer(order)):
        await until(lambda: len(places(order, "low")) == 5)
        assert len(order) < 80
        await until(lambda: len(order) == 125)


@pytest.mark.parametrize("instances", [1, 3])
async def test_the_one_message_of_a_quiet_sender_does_not_wait_behind_a_flood(
    server: Server, client: Client, instances: int
) -> None:
    order: list[str] = []
    await send(client, "flood", 400)
    async with connect(server.url) as other:
        await send(other, "quiet", 1)
        await all_wait(client, 401)
        async with serving(server, *(packer(order) for _ in range(instances))):
            await until(lambda: places(order, "quiet"))
            assert places(order, "quiet")[0] < FIRST_ROW + 4 * instances
            await until(lambda: len(order) == 401)


async def test_a_quiet_sender_is_served_in_the_middle_of_a_flood(server: Server, client: Client) -> None:
    order: list[str] = []
    async with serving(server, packer(order), packer(order)), connect(server.url) as other:
        await send(client, "flood", 300)
        before = len(order)
        for run in await send(other, "quiet", 3):
            await other.result(run, timeout_s=BOUND_S)
        assert len(order) - before < 150
        await until(lambda: len(order) == 303)


async def test_who_sends_a_lot_does_not_wait_for_who_sends_much_more(server: Server, client: Client) -> None:
    order: list[str] = []
    await send(client, "flood", 250)
    async with connect(server.url) as other:
        await send(other, "some", 40)
        await all_wait(client, 290)
        async with serving(server, packer(order)):
            await until(lambda: len(places(order, "some")) == 40)
            assert places(order, "some")[-1] < 200
            await until(lambda: len(order) == 290)


async def test_a_sender_can_be_named_and_is_not_the_client_then(server: Server, client: Client) -> None:
    order: list[str] = []
    await send(client, "flood", 400, sender="customer-1")
    runs = await send(client, "quiet", 1, sender="customer-2")
    await all_wait(client, 401)
    async with serving(server, packer(order)):
        await until(lambda: len(order) == 401)
        assert client.output(await client.result(runs[0], timeout_s=BOUND_S), "work") == "normal customer-2"
    assert places(order, "quiet")[0] < FIRST_ROW + 4


async def test_a_retry_waits_where_the_first_attempt_did(server: Server, client: Client) -> None:
    order: list[str] = []
    async with supervised(server), serving(server, packer(order)):
        [run] = await send(client, "again", 1, priority="high", sender="customer-7")
        await until(lambda: len(order) == 1)
        await send(client, "normal", 200)
        done = await client.result(run, timeout_s=BOUND_S)
        assert client.output(done, "work") == "high customer-7"
        assert len(order) < 150
        await until(lambda: len(order) == 202)


async def test_lost_work_is_sent_again_to_where_it_waited(server: Server, client: Client) -> None:
    [run] = await send(client, "urgent", 1, priority="high", sender="customer-7")
    await all_wait(client, 1)
    await purge(client.connection, client.subjects.work_stream, client.subjects.all_work, BOUND_S)
    async with supervised(server):
        await until(lambda: _as_many(client, 1))
    assert await waiting(client) == {"high 0": 1}
    order: list[str] = []
    async with serving(server, packer(order)):
        done = await client.result(run, timeout_s=BOUND_S)
        assert client.output(done, "work") == "high customer-7"


async def test_who_sends_a_little_again_and_again_stays_in_front(server: Server, client: Client) -> None:
    for _ in range(4):
        await send(client, "burst", 60)
        await all_wait(client, 60)
        assert await waiting(client) == {"normal 0": 60}
        await purge(client.connection, client.subjects.work_stream, client.subjects.all_work, BOUND_S)
        await asyncio.sleep(0.02)


async def test_what_waits_in_a_row_behind_is_not_sent_again(server: Server, client: Client) -> None:
    await send(client, "flood", 130)
    await all_wait(client, 130)
    assert set(await waiting(client)) == {"normal 0", "normal 1"}
    docket = Docket()
    for run in await client.ledger.names():
        state = await client.runs.load(run)
        docket.note(state, state.position)
    backlog = Backlog(client, docket, Herald(client, "test"))
    await asyncio.sleep(1.1)  # what is younger may be on its way
    await backlog.look()
    assert sum((await waiting(client)).values()) == 130


async def test_a_bell_that_nobody_heard_is_rung_again(server: Server, client: Client) -> None:
    order: list[str] = []
    async with supervised(server), serving(server, packer(order)):
        # The publisher's line of bells is cut: it believes that it has rung.
        client.ledger._waiting._rung[("pack", "high", 0)] = asyncio.get_running_loop().time() + 3600.0
        [run] = await send(client, "urgent", 1, priority="high")
        await client.result(run, timeout_s=BOUND_S)


async def test_a_phase_has_its_own_priority_and_otherwise_that_of_its_run_or_plan(
    server: Server, client: Client
) -> None:
    plan = Plan(
        "levels",
        phases=[
            Phase("first", "pack", input="first"),
            Phase("last", "pack", input="last", priority="high", after=["first"]),
            Phase("child", plan=Plan("inner", phases=[Phase("in", "pack", input="in")]), after=["last"]),
        ],
        priority="low",
    )
    async with serving(server, packer([])):
        told = await client.start(plan, sender="me")
        asked = await client.start(plan, priority="normal", sender="me")
        by_plan = await client.result(told.run, timeout_s=BOUND_S)
        by_run = await client.result(asked.run, timeout_s=BOUND_S)
    assert [client.output(by_plan, key) for key in ("first", "last")] == ["low me", "high me"]
    assert [client.output(by_run, key) for key in ("first", "last")] == ["normal me", "high me"]
    assert client.output(by_plan, "child") == {"in": "low me"}


async def test_what_a_handler_asks_for_waits_where_it_has_waited_itself(server: Server, client: Client) -> None:
    agent = Agent("caller")

    @agent.capability("call")
    async def call(_: object, context: Context) -> list[str]:
        door = context.client
        own = await door.send("pack", "own", priority="normal", sender="other")
        sent = await door.send("pack", "sent")
        asked = str(await door.ask("pack", "asked"))
        outputs = [door.output(await door.result(each.run, timeout_s=BOUND_S), "work", str) for each in (own, sent)]
        return [*outputs, asked]

    async with serving(server, agent, packer([])):
        assert await client.ask("call", 1, priority="high", sender="customer-7") == [
            "normal other",
            "high customer-7",
            "high customer-7",
        ]


async def test_a_question_does_not_push_itself_before_work_that_waits(server: Server, client: Client) -> None:
    order: list[str] = []
    await send(client, "normal", 40)
    await all_wait(client, 40)
    async with serving(server, packer(order)), connect(server.url) as other:
        await until(lambda: len(order) >= 2)
        await other.ask("pack", "question", priority="low")
        # It has one of eight turns.
        assert places(order, "question")[0] >= 7
        await until(lambda: len(order) == 41)


async def test_sent_work_is_taken_however_many_questions_there_are(server: Server, client: Client) -> None:
    order: list[str] = []
    stop = asyncio.Event()

    async def ask_on(other: Client) -> None:
        while not stop.is_set():
            await other.ask("pack", "question")

    async with serving(server, packer(order)), connect(server.url) as other, asyncio.TaskGroup() as tasks:
        for _ in range(6):
            tasks.create_task(ask_on(other))
        await until(lambda: len(order) > 5)
        [run] = await send(client, "sent", 1)
        await client.result(run, timeout_s=BOUND_S)
        stop.set()


async def test_urgent_work_goes_to_a_standby_only_when_the_others_have_no_room(server: Server, client: Client) -> None:
    main: list[str] = []
    spare: list[str] = []
    async with serving(server, packer(main), packer(spare, "spare", standby=True)):
        for number in range(5):
            receipt = await client.send("pack", f"one {number}", priority="high")
            await client.result(receipt.run, timeout_s=BOUND_S)
        assert (len(main), len(spare)) == (5, 0)
        await send(client, "many", 60, priority="high")
        await until(lambda: len(main) + len(spare) == 65)
        assert spare


async def test_work_with_a_key_is_done_in_order_and_has_no_priority(server: Server, client: Client) -> None:
    with pytest.raises(SettingsError, match="in order of sending"):
        await client.send("pack", 1, key="a", priority="high")


async def test_a_wrong_priority_is_refused_with_those_there_are(client: Client, tmp_path: Path) -> None:
    said = "priority is one of high, normal, low, not 'urgent'"
    with pytest.raises(SettingsError, match=said):
        await client.send("pack", 1, priority="urgent")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=said):
        await client.tell("packer", 1, priority="urgent")  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=said):
        await client.ask("pack", 1, priority="urgent")  # type: ignore[call-overload]
    with pytest.raises(SettingsError, match="waits nowhere"):
        await client.ask("pack", 1, fast=True, priority="high")
    with pytest.raises(PlanError, match=f"plan 'p': {said}"):
        Plan("p", phases=[Phase("a", "pack")], priority="urgent")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match=f"phase 'a': {said}"):
        Plan("p", phases=[Phase("a", "pack", priority="urgent")])  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="a gate is not taken"):
        Plan("p", phases=[Phase("a", wait_for="go", priority="high")])
    file = tmp_path / "plan.toml"
    file.write_text('name = "p"\npriority = "low"\n[[phases]]\nkey = "a"\ncapability = "pack"\npriority = "urgent"\n')
    with pytest.raises(PlanError, match=r"plan.toml:3: .*priority"):
        read_plan(file)
    file.write_text(file.read_text().replace("urgent", "high"))
    assert (read_plan(file).priority, read_plan(file).phases[0].priority) == ("low", "high")


async def test_items_of_a_wide_phase_leave_room_for_others(server: Server, client: Client) -> None:
    order: list[str] = []
    wide = Plan("wide", phases=[Phase("each", "pack", each=ref("input.items"))])
    async with serving(server, packer(order)), connect(server.url) as other:
        run = await client.start(wide, {"items": [f"item {number}" for number in range(300)]})
        await until(lambda: len(order) > 3)
        [quiet] = await send(other, "quiet", 1)
        await other.result(quiet, timeout_s=BOUND_S)
        assert len(order) < 200
        await client.result(run.run, timeout_s=60.0)
