"""What people decide about runs, with real agents on a real server: each decision is in the log, and takes effect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from bus import Agent, Approval, Client, Context, NotFound, Phase, Plan, Refused, Reject, connect, ref
from bus.broker.server import Server
from bus.clock import utc_now
from bus.rules.commands import Command
from bus.rules.verify import violations
from bus.runs.runs import Runs
from tests.harness import BOUND_S, serving, supervised, until


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


class Shop:
    """An agent that writes down what it was asked to do, and does it when it is let."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.agent = Agent("shop")

        @self.agent.capability("do", concurrency=4)
        async def do(query: dict[str, object], context: Context) -> dict[str, object]:
            await self.gate.wait()
            self.done.append(context.phase)
            if query.get("fails") == context.attempt:
                raise Reject("as it was told")
            return {"phase": context.phase, "attempt": context.attempt}

        @self.agent.capability("undo")
        async def undo(query: dict[str, dict[str, object]], context: Context) -> None:
            self.done.append(f"undo {context.phase} of {query['output']['attempt']}")


async def verified(client: Client, run: str) -> None:
    commits = [commit async for commit in client.ledger.commits(run)]
    assert not list(violations(commits, utc_now()))


async def test_a_paused_run_takes_nothing_until_it_is_resumed(server: Server, client: Client) -> None:
    shop = Shop()
    shop.gate.clear()
    plan = Plan("p", phases=[Phase("a", "do"), Phase("b", "do", after=["a"])])
    async with serving(server, shop.agent):
        run = (await client.start(plan)).run
        await until(lambda: _is(client, run, "a", "in_progress"))
        await client.pause(run, by="ann", reason="deploy")
        shop.gate.set()
        await until(lambda: _is(client, run, "b", "ready"))
        with pytest.raises(Refused, match="paused already"):
            await client.pause(run, by="ben")
        assert shop.done == ["a"]
        await client.resume(run, by="ann")
        assert (await client.result(run, timeout_s=BOUND_S)).status == "completed"
    assert shop.done == ["a", "b"]
    await verified(client, run)


async def test_a_signal_from_outside_opens_a_gate(server: Server, client: Client) -> None:
    shop = Shop()
    plan = Plan("p", phases=[Phase("go", wait_for="window"), Phase("a", "do", {"until": ref("go.until")})])
    async with serving(server, shop.agent):
        run = (await client.start(plan)).run
        await client.signal(run, "window", {"until": 5}, by="ann")
        state = await client.result(run, timeout_s=BOUND_S)
    assert (state.status, state.phases["go"].answered_by) == ("completed", "ann")


async def test_a_failed_phase_can_be_skipped_and_the_run_goes_on(server: Server, client: Client) -> None:
    shop = Shop()
    plan = Plan("p", phases=[Phase("a", "do", {"fails": 1}), Phase("b", "do", {"of": ref("a.n")})])
    async with serving(server, shop.agent):
        run = (await client.start(plan)).run
        assert (await client.result(run, timeout_s=BOUND_S)).status == "failed"
        await client.skip(run, "a", by="ann", output={"n": 7})
        state = await client.result(run, timeout_s=BOUND_S)
    assert (state.status, state.phases["a"].status) == ("completed", "skipped")
    await verified(client, run)


async def test_a_part_of_a_plan_is_run_and_then_all_of_it_again(server: Server, client: Client) -> None:
    shop = Shop()
    plan = Plan("p", phases=[Phase(key, "do", after=[key - 1] if key > -2 else []) for key in range(-2, 3)])
    async with serving(server, shop.agent):
        run = (await client.start(plan, first="-1", last="1")).run
        assert (await client.result(run, timeout_s=BOUND_S)).status == "completed"
        assert shop.done == ["-1", "0", "1"]
        await client.rerun(run, by="ann", phases=["1"])
        assert (await client.result(run, timeout_s=BOUND_S)).status == "completed"
    assert shop.done == ["-1", "0", "1", "1", "2"]
    await verified(client, run)


async def test_a_rollback_undoes_in_reverse_order_and_does_it_again(server: Server, client: Client) -> None:
    shop = Shop()
    plan = Plan(
        "p",
        phases=[
            Phase("book", "do", compensate="undo"),
            Phase("pay", "do", after=["book"], compensate="undo"),
            Phase("ship", "do", after=["pay"]),
        ],
    )
    async with serving(server, shop.agent):
        run = (await client.start(plan)).run
        await client.result(run, timeout_s=BOUND_S)
        await client.rollback(run, by="ann", before="book", reason="wrong seat")
        state = await client.result(run, timeout_s=BOUND_S)
    assert (state.status, state.passes) == ("completed", 2)
    assert shop.done == ["book", "pay", "ship", "undo pay of 1", "undo book of 1", "book", "pay", "ship"]
    await verified(client, run)


async def test_a_fork_takes_over_what_was_done_also_by_another_plan(server: Server, client: Client) -> None:
    shop = Shop()
    plan = Plan("p", phases=[Phase("a", "do"), Phase("b", "do", {"fails": 1}, after=["a"])])
    changed = Plan("p", version="2", phases=[Phase("a", "do"), Phase("c", "do", {"of": ref("a.phase")})])
    async with serving(server, shop.agent):
        receipt = await client.start(plan)
        run = receipt.run
        await client.result(run, timeout_s=BOUND_S)
        fork = (await client.fork(run, plan=changed)).run
        state = await client.result(fork, timeout_s=BOUND_S)
        with pytest.raises(Refused, match="nothing by then"):
            await client.fork(run, at=receipt.position)
    assert shop.done == ["a", "b", "c"]
    assert state.phases["a"].answered_by.startswith(f"{run}@")
    await verified(client, fork)


FAMILY = Plan(
    "family",
    phases=[
        Phase("sub", plan=Plan("child", phases=[Phase("one", "do"), Phase("two", "do", after=["one"])])),
        Phase("after", "do", {"of": ref("sub.two.phase")}),
    ],
)


@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_child_run_is_waited_for_also_when_what_it_is_told_gets_lost(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    shop = Shop()
    follow = Runs._follow

    async def lose(runs: Runs, run: str, command: Command, causation: str) -> None:
        if not is_lost:
            await follow(runs, run, command, causation)

    monkeypatch.setattr(Runs, "_follow", lose)
    async with supervised(server), serving(server, shop.agent):
        run = (await client.start(FAMILY)).run
        state = await client.result(run, timeout_s=BOUND_S)
        child = await client.runs.load(state.phases["sub"].child)
    assert (state.status, child.status, shop.done) == ("completed", "completed", ["one", "two", "after"])
    await verified(client, run)
    await verified(client, child.run)


@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_child_run_ends_with_its_parent(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch, is_lost: bool
) -> None:
    async with supervised(server):
        run = (await client.start(FAMILY)).run
        child = (await client.runs.load(run)).phases["sub"].child
        await until(lambda: client.log.last(client.subjects.run(child)))
        if is_lost:
            monkeypatch.setattr(Runs, "_follow", lambda *_: asyncio.sleep(0))
        await client.cancel(run, by="ann")
        assert (await client.result(child, timeout_s=BOUND_S)).status == "cancelled"


async def test_a_decision_about_a_run_that_is_not_there_is_told_as_such(client: Client) -> None:
    """It was a refusal like any other, although all the verbs say NotFound."""
    with pytest.raises(NotFound, match="no run 'nobody'"):
        await client.cancel("nobody", by="ann")


async def test_phases_with_numbers_are_named_by_their_numbers(server: Server, client: Client) -> None:
    shop = Shop()
    plan = Plan("p", phases=[Phase(-2, "do"), Phase(-1, "do", after=[-2]), Phase(0, approval=Approval(), after=[-1])])
    async with serving(server, shop.agent):
        run = (await client.start(plan, first=-1)).run
        await until(lambda: _is(client, run, "0", "waiting"))
        await client.approve(run, 0, by="ann")
        await client.rerun(run, by="ann", phases=-1)
        await until(lambda: _is(client, run, "0", "waiting"))
        state = await client.reject(run, 0, by="ann")
    assert client.output(state, -1) == {"phase": "-1", "attempt": 2}
    assert shop.done == ["-1", "-1"]


async def test_a_gate_is_answered_by_those_who_are_asked(client: Client) -> None:
    plan = Plan("p", phases=[Phase("gate", approval=Approval(who=["ann"]))])
    run = (await client.start(plan)).run
    with pytest.raises(Refused, match="for ann to answer"):
        await client.approve(run, "gate", by="ben")
    assert (await client.approve(run, "gate", by="ann", gate=1)).status == "completed"


async def _is(client: Client, run: str, phase: str, status: str) -> bool:
    return (await client.runs.load(run)).phases[phase].status == status
