"""An agent's code of now on the inputs of past runs: what differs, what that reaches, and that nothing goes out."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from bus import Agent, Client, Context, Phase, Plan, Reject, connect, ref, serving
from bus.archives.convoy import last_position
from bus.broker.server import Server
from bus.replay.fork import forked
from bus.replay.rehearsed import Rehearsal
from bus.replay.rehearsing import rehearse
from console.failure import FAILED, NOT_FOUND, OK, USAGE
from tests.harness import BOUND_S, supervised, until

PHASEBUS = Path(sys.executable).with_name("phasebus")
# shop -> clerk -> shop, with work beside that nothing changes.
PLAN = Plan(
    "order",
    phases=[
        Phase("list", "list", input={"names": ref("input.names")}),
        Phase("price", "price", each=ref("list.items")),
        Phase("check", "check", input={"prices": ref("price")}),
        Phase("invoice", "total", input={"prices": ref("price")}),
        Phase("file", "file", input={"sum": ref("invoice")}),
        Phase("stamp", "check", input={"prices": ref("input.names")}),
        Phase("thanks", "total", input={"prices": ref("check.prices")}),
    ],
)


def shop(factor: int = 10, *, extra: Sequence[str] = (), refuses: bool = False) -> Agent:
    agent = Agent("shop")

    @agent.capability("list")
    async def listing(query: dict[str, Any]) -> dict[str, Any]:
        return {"items": [*query["names"], *extra]}

    @agent.capability("price", concurrency=4)
    def price(name: str, context: Context) -> int:
        if name == "flaky" and context.attempt == 1:
            raise ConnectionError("the line is down")
        if name == "bad" and not refuses:
            raise Reject("no such thing")
        if refuses and name == "a":
            raise Reject("not that any more")
        return len(name) * factor

    @agent.capability("total")
    async def total(query: dict[str, Any]) -> int:
        return sum(query["prices"])

    return agent


def clerk() -> Agent:
    agent = Agent("clerk")

    @agent.capability("check")
    async def check(query: dict[str, Any]) -> dict[str, Any]:
        return {"prices": [1 for _ in query["prices"]]}

    @agent.capability("file")
    async def file(query: dict[str, Any]) -> str:
        return f"filed {query['sum']}"

    return agent


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


async def history(server: Server, client: Client, **runs: list[str]) -> None:
    async with supervised(server), serving(client, shop()), serving(client, clerk()):
        for run, names in runs.items():
            await client.start(PLAN, {"names": names}, run=run)
            await client.result(run, timeout_s=BOUND_S)


async def rehearsed(client: Client, agent: Agent, *runs: str, **options: Any) -> list[Rehearsal]:
    async with (
        asyncio.timeout(BOUND_S),
        forked() as fork,
        aclosing(rehearse(client, fork, agent, runs, **options)) as all_,
    ):
        return [each async for each in all_]


async def test_the_same_code_is_not_different_anywhere(server: Server, client: Client) -> None:
    await history(server, client, good=["a", "flaky"], bad=["a", "bad"], none=[])
    found = await rehearsed(client, shop(), "good", "bad", "none")
    assert [(each.run, each.is_same) for each in found] == [("good", True), ("bad", True), ("none", True)]
    assert {work.verdict for each in found for work in each.work} == {"same"}
    # Both attempts of what succeeded in the second.
    assert [(work.item, work.attempt) for work in found[0].work if work.item == 1] == [(1, 1), (1, 2)]


async def test_a_change_is_carried_on_in_the_agent_and_listed_where_it_reaches_others(
    server: Server, client: Client
) -> None:
    await history(server, client, good=["a", "bb"])
    [found] = await rehearsed(client, shop(11), "good")
    work = {(each.phase, each.item): each for each in found.work}
    assert {place: each.verdict for place, each in work.items()} == {
        ("list", None): "same",
        ("price", 0): "differs",
        ("price", 1): "differs",
        ("invoice", None): "differs",
    }
    # The agent's own work behind it got what it answers now.
    invoice = work["invoice", None]
    assert (invoice.recorded and invoice.recorded.value, invoice.now.value) == (30, 33)
    assert invoice.input is not None
    assert (invoice.input.path, invoice.input.one, invoice.input.other) == ("prices.0", 10, 11)
    # Of what others answered nothing is claimed any more, nor of what that feeds; what stands beside is left alone.
    reached = {each.phase: (each.reach, each.because) for each in found.downstream}
    assert reached == {
        "check": ("other_input", ("price",)),
        "file": ("other_input", ("invoice",)),
        "thanks": ("unknown_input", ("check",)),
    }


async def test_a_list_that_grows_makes_more_work_and_one_that_shrinks_less(server: Server, client: Client) -> None:
    await history(server, client, good=["a", "bb"])
    [found] = await rehearsed(client, shop(extra=["ccc"]), "good")
    work = {(each.phase, each.item): (each.verdict, each.now.value) for each in found.work}
    assert work["price", 2] == ("new", 30)
    assert work["invoice", None] == ("differs", 60)
    less = shop()
    less._capabilities.pop("list")

    @less.capability("list")
    async def listing(query: dict[str, Any]) -> dict[str, Any]:
        return {"items": query["names"][:1]}

    [found] = await rehearsed(client, less, "good")
    assert [each.item for each in found.work if each.phase == "price"] == [0]
    assert [each.now.value for each in found.work if each.phase == "invoice"] == [10]


async def test_what_fails_now_keeps_the_rest_from_being_reached_and_what_succeeds_now_lets_it_be(
    server: Server, client: Client
) -> None:
    await history(server, client, good=["a", "bb"], bad=["bb", "bad"])
    good, bad = await rehearsed(client, shop(refuses=True), "good", "bad")
    assert [(each.item, each.verdict) for each in good.differences] == [(0, "failed")]
    assert {each.phase: each.reach for each in good.downstream} == {
        "check": "not_reached",
        "invoice": "not_reached",
        "file": "not_reached",
        "thanks": "not_reached",
    }
    assert [(each.phase, each.item, each.verdict) for each in bad.differences] == [
        ("price", 1, "differs"),
        ("invoice", None, "new"),
    ]
    assert bad.differences[-1].now.value == 50
    assert {each.phase: each.reach for each in bad.downstream} == {
        "check": "reached",
        "file": "reached",
        "thanks": "unknown_input",
    }


async def test_an_attempt_that_was_only_needed_because_one_failed_is_left_out(server: Server, client: Client) -> None:
    await history(server, client, good=["flaky"])
    sturdy = Agent("shop")

    @sturdy.capability("price")
    async def price(name: str) -> int:
        return len(name) * 10

    [found] = await rehearsed(client, sturdy, "good")
    assert [(each.attempt, each.verdict) for each in found.work] == [(1, "differs")]
    # It comes to the same.
    assert found.downstream == []


async def test_a_second_pass_and_work_that_was_undone_are_no_difference_either(server: Server, client: Client) -> None:
    plan = Plan(
        "passes",
        phases=[
            Phase("first", "work", input="fine", compensate="undo"),
            Phase("each", "work", each=ref("input.names"), input=ref("item")),
            Phase("maybe", "work", input="never", optional=True),
            Phase("last", "work", input={"all": ref("each"), "maybe": ref("maybe")}, compensate="undo"),
        ],
    )

    def stubborn(word: str = "done") -> Agent:
        agent = Agent("stubborn")

        @agent.capability("work")
        async def work(what: Any, context: Context) -> Any:
            if what == "never" or (what == "late" and context.attempt == 1):
                raise Reject("not yet")
            return {word: what}

        @agent.capability("undo")
        async def undo(about: dict[str, Any]) -> str:
            return f"undone {about['output']}"

        return agent

    async with supervised(server), serving(client, stubborn()):
        await client.start(plan, {"names": ["a", "late", "b"]}, run="twice")
        assert (await client.result("twice", timeout_s=BOUND_S)).status == "failed"
        await client.redrive("twice", by="test")
        assert (await client.result("twice", timeout_s=BOUND_S)).status == "completed"
        await client.start(plan, {"names": ["a"]}, run="undone")
        await client.result("undone", timeout_s=BOUND_S)
        await client.rollback("undone", before="first", by="test")
        await until(lambda: _has_passes(client, "undone", 2))
        await client.result("undone", timeout_s=BOUND_S)
    twice, undone = await rehearsed(client, stubborn(), "twice", "undone")
    assert (twice.is_same, undone.is_same) == (True, True)
    assert {each.capability for each in undone.work} == {"work", "undo"}
    twice, undone = await rehearsed(client, stubborn("made"), "twice", "undone")
    assert {each.phase for each in twice.differences} == {"first", "each", "last"}
    undoing = [each for each in undone.differences if each.capability == "undo"]
    assert undoing and all("made" in str(each.now.value) for each in undoing)


async def _has_passes(client: Client, run: str, passes: int) -> bool:
    return (await client.runs.load(run)).passes >= passes


async def test_conditions_are_asked_again(server: Server, client: Client) -> None:
    plan = Plan(
        "gated",
        phases=[
            Phase("list", "list", input={"names": []}),
            Phase("some", "total", input={"prices": [1, 2]}, when="list.items"),
            Phase("none", "check", input={"prices": [1]}, when="not list.items"),
            Phase("after", "check", input={"prices": [ref("some")]}),
        ],
    )
    async with supervised(server), serving(client, shop()), serving(client, clerk()):
        await client.start(plan, {}, run="gated")
        await client.result("gated", timeout_s=BOUND_S)
    [found] = await rehearsed(client, shop(extra=["a"]), "gated")
    assert [(each.phase, each.verdict, each.now.value) for each in found.work if each.phase == "some"] == [
        ("some", "new", 3)
    ]
    assert {each.phase: each.reach for each in found.downstream} == {"none": "skipped", "after": "other_input"}


async def test_nothing_goes_out_on_live_subjects_and_nothing_outside_is_done(server: Server, client: Client) -> None:
    acted: list[str] = []

    async def charge(key: str) -> str:
        acted.append(key)
        return "receipt"

    honest = Agent("payer")

    @honest.capability("pay")
    async def pay(amount: int, context: Context) -> str:
        return str(await context.once("charge", charge))

    async with supervised(server), serving(client, honest):
        await client.start(Plan("buy", phases=[Phase("pay", "pay", input=3)]), {}, run="bought")
        await client.result("bought", timeout_s=BOUND_S)
    assert acted == ["bought/pay/charge"]

    chatty = Agent("payer")

    @chatty.capability("pay")
    async def pays(amount: int, context: Context) -> str:
        await context.progress(0.5, "again")
        await context.emit("part")
        await context.client.publish("topic", {"amount": amount})
        async with connect() as own:
            await own.send("elsewhere", {"amount": amount})
        await context.once("charge", charge)
        return str(await context.once("other", charge))

    heard: list[str] = []
    before = await last_position(client)
    async with connect(server.operator_url, create=False) as listener:
        everything = listener.connection.subscribe(">", lambda message: heard.append(message.subject))
        await listener.connection.flush(5)
        [found] = await rehearsed(client, chatty, "bought")
        [same] = await rehearsed(client, honest, "bought")
        await client.connection.request("$JS.API.INFO", timeout_s=5)
        await listener.connection.flush(5)
        everything.unsubscribe()
    assert same.is_same
    assert acted == ["bought/pay/charge"]
    [work] = found.work
    assert work.verdict == "failed"
    assert work.now.problem is not None and "no outcome of 'other' was recorded" in work.now.problem.detail
    # Reading is all there is: requests to the JetStream API that change nothing, and their answers.
    assert heard
    allowed = ("$JS.API.INFO", "$JS.API.STREAM.INFO.", "$JS.API.DIRECT.GET.", "$JS.API.STREAM.MSG.GET.", "_INBOX.")
    reading = (*allowed, "$JS.API.CONSUMER.", "$JS.FC.", "$JS.EVENT.ADVISORY.", "$SYS.")
    assert [each for each in heard if not each.startswith(reading)] == []
    assert await last_position(client) == before


SHOP = """
from bus import Agent

agent = Agent("shop")


@agent.capability("list")
async def listing(query: dict) -> dict:
    return {"items": query["names"]}


@agent.capability("price")
async def price(name: str) -> int:
    return len(name) * FACTOR


@agent.capability("total")
async def total(query: dict) -> int:
    return sum(query["prices"])
"""


async def test_the_command_says_what_differs_and_its_exit_code_does(
    server: Server, client: Client, tmp_path: Path
) -> None:
    await history(server, client, one=["a"], two=["bb"], three=["ccc"])
    (tmp_path / "same.py").write_text(f"FACTOR = 10\n{SHOP}")
    (tmp_path / "changed.py").write_text(f"FACTOR = 11\n{SHOP}")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "PHASEBUS_"))}
    environment = {**clean, "NATS_URL": server.url}

    async def typed(*words: str, code: int) -> str:
        process = await asyncio.create_subprocess_exec(
            *(str(PHASEBUS), *words),
            cwd=tmp_path,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complained = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == code, complained.decode()
        return (said or complained).decode()

    assert "3 runs rehearsed, 0 would be different" in await typed("rehearse", "same.py:agent", code=OK)
    said = await typed(
        "rehearse", "changed.py:agent", "--runs", "plan=order,status=completed,since=1h,limit=2", code=FAILED
    )
    assert "2 runs rehearsed, 2 would be different" in said
    assert "invoice #1  total" in said and "prices.0: 20 -> 22" in said
    assert "check of check would get another input (from price): prices.0: 20 -> 22" in said
    lines = [
        json.loads(line) for line in (await typed("rehearse", "changed.py:agent", "--json", code=FAILED)).splitlines()
    ]
    assert [each["run"] for each in lines[:-1]] == ["one", "two", "three"]
    assert lines[-1]["summary"]["capabilities"]["price"] == {"differs": 3}
    assert {"phase": "order/check", "reach": "other_input", "runs": 3} in lines[-1]["summary"]["downstream"]
    # `list` alone is the same.
    assert "1 run rehearsed" in await typed("rehearse", "changed.py:agent", "--runs", "one capability=list", code=OK)
    assert "nothing was rehearsed" in await typed("rehearse", "same.py:agent", "--runs", "plan=other", code=NOT_FOUND)
    assert "write NAME=VALUE" in await typed("rehearse", "same.py:agent", "--runs", "colour=red", code=USAGE)
    [scored] = [json.loads(line) for line in (await typed("run", "forecasts", "--json", code=OK)).splitlines()]
    assert (scored["plan"], scored["runs"]) == ("order", 3)
    assert "NOT SAID" in await typed("run", "forecasts", "order", code=OK)
