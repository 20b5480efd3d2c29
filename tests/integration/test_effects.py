"""What handlers do outside, with real agents on a real server: each thing once, undone if the plan says so."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bus import Agent, Client, Context, Done, NotDone, Phase, Plan, Reject, Retry, connect, ref
from bus.broker.server import Server
from bus.handlers.context import Pulse
from bus.history.selection import Selection
from bus.problem import Problem
from bus.replay.fork import forked
from bus.replay.replaying import replay
from bus.rules.commands import Fail
from bus.runs.planfile import read_plan
from tests.harness import BOUND_S, happenings, serving, supervised, until
from tests.integration import isolated

PHASEBUS = Path(sys.executable).with_name("phasebus")
TRANSIENT = Problem("lost", "told to", "unknown")


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


def one(capability: str, **options: Any) -> Plan:
    return Plan("one", phases=[Phase("pay", capability, retry=Retry(unknown=5, unknown_s=0.01), **options)])


async def ended(client: Client, plan: Plan, value: object = None) -> Any:
    receipt = await client.start(plan, value)
    return await client.result(receipt.run, timeout_s=BOUND_S)


async def typed(server: Server, *words: str) -> subprocess.CompletedProcess[str]:
    command = [PHASEBUS, *words, "--url", server.url]
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)


async def test_a_later_attempt_gets_what_came_of_an_earlier_one(server: Server, client: Client) -> None:
    agent, acts = Agent("payer"), list[str]()

    def act(key: str) -> int:
        acts.append(key)
        return len(acts)

    @agent.capability("pay.async")
    async def pay(_: object, context: Context) -> list[int]:
        numbers = [await context.once(key, act, gives=int) for key in ("charge", "mail", "charge")]
        if context.attempt < 3:
            raise RuntimeError("not yet")
        return numbers

    @agent.capability("pay.thread")
    def pay_in_thread(_: object, context: Context) -> list[int]:
        numbers = [context.once(key, act, gives=int) for key in ("charge", "mail", "charge")]
        if context.attempt < 3:
            raise RuntimeError("not yet")
        return numbers

    async with supervised(server), serving(server, agent):
        for how in ("async", "thread"):
            acts.clear()
            state = await ended(client, one(f"pay.{how}"))
            assert client.output(state, "pay") == [1, 2, 1]
            assert acts == [f"{state.run}/pay/charge", f"{state.run}/pay/mail"]
            state = await client.rerun(state.run, by="ann")
            state = await client.result(state.run, timeout_s=BOUND_S)
            # Done again is something else, for services outside as well.
            assert acts[2:] == [f"{state.run}/pay@2/charge", f"{state.run}/pay@2/mail"]


async def test_a_handler_in_a_process_of_its_own_has_its_worker_write_it_down(server: Server, client: Client) -> None:
    async with supervised(server), serving(server, isolated.agent):
        for how in ("async", "thread"):
            state = await ended(client, one(f"once.{how}", input={"fails": 2}))
            assert client.output(state, "pay") == {"numbers": [1, 2, 1], "saved": 2, "attempt": 3}
            item = state.phases["pay"].items[0]
            assert (list(item.effects), item.unknown) == (["charge", "mail"], [])
        # What is too large for an event is refused there as well.
        state = await ended(client, one("once.async", input={"saves": 70_000}))
        assert state.problem is not None and "65536" in state.problem.detail


async def test_an_attempt_that_was_taken_away_does_not_act(server: Server, client: Client) -> None:
    agent, acts, go_on = Agent("payer"), list[int](), threading.Event()
    began: list[Pulse] = []

    @agent.capability("pay", concurrency=2)
    def pay(_: object, context: Context) -> int:
        if context.attempt == 1:
            began.append(context.pulse)
            go_on.wait(BOUND_S)
        number: int = context.once("charge", lambda _: acts.append(context.attempt) or context.attempt)
        return number

    async with supervised(server), serving(server, agent):
        receipt = await client.start(one("pay"))
        await until(lambda: began)
        state = await client.runs.load(receipt.run)
        (_, _, holder) = next(state.held())
        await client.runs.submit(receipt.run, Fail("pay", None, 1, holder.instance, TRANSIENT, "crashed"))
        state = await client.result(receipt.run, timeout_s=BOUND_S)
        go_on.set()
        await asyncio.to_thread(lambda: None)
        assert client.output(state, "pay") == 2
        await until(lambda: began[0].ended)
    assert acts == [2]


async def test_a_person_settles_what_nobody_knows_on_the_command_line(server: Server, client: Client) -> None:
    agent, acts = Agent("payer"), list[str]()

    @agent.capability("pay")
    async def pay(_: object, context: Context) -> Any:
        def act(key: str) -> None:
            acts.append(key)
            raise TimeoutError("no answer")

        return await context.once("charge it", act)

    async with supervised(server), serving(server, agent):
        state = await ended(client, one("pay"))
        assert (state.status, len(acts)) == ("failed", 1)
        assert state.phases["pay"].problem.code == "outcome_unknown"
        shown = (await typed(server, "run", "show", state.run)).stdout
        command = f"phasebus run effect settle --outcome JSON {state.run} pay 'charge it'"
        assert f"nobody knows whether 'charge it' of pay happened: {command}" in shown
        assert command in (await typed(server, "attention")).stdout
        verified = await typed(server, "run", "verify")
        assert (verified.returncode, "nobody knows whether charge it of pay happened" in verified.stdout) == (0, True)
        settle = ("run", "effect", "settle", state.run, "pay", "charge it")
        assert (await typed(server, *settle)).returncode == 2
        assert (await typed(server, *settle, "--outcome", "1", "--repeat")).returncode == 2
        assert (await typed(server, "run", "effect", "settle", state.run, "pay:x", "y", "--repeat")).returncode == 2
        told = await typed(server, *settle, "--outcome", '{"id": 7}', "--by", "ann", "--reason", "it is in the books")
        assert (told.returncode, f"phasebus run redrive {state.run}" in told.stderr) == (0, True)
        assert (await typed(server, *settle, "--repeat")).returncode == 6
        assert (await typed(server, "run", "redrive", state.run)).returncode == 0
        state = await client.result(state.run, timeout_s=BOUND_S)
        assert (client.output(state, "pay"), len(acts)) == ({"id": 7}, 1)
        replayed = (await typed(server, "replay", state.run)).stdout
        assert 'charge it gave {"id":7}, says ann: it is in the books' in replayed


async def test_what_is_not_known_to_have_happened_is_found_out_by_the_author(server: Server, client: Client) -> None:
    agent, books = Agent("payer"), list[str]()

    def look(key: str) -> Done | NotDone:
        return Done(books.index(key)) if key in books else NotDone()

    @agent.capability("pay")
    async def pay(happens: bool, context: Context) -> int:
        async def act(key: str) -> int:
            if happens or context.attempt > 1:
                books.append(key)
            if context.attempt == 1:
                raise TimeoutError
            return books.index(key)

        return await context.once("charge", act, look, gives=int)

    async with supervised(server), serving(server, agent):
        for number, happens in enumerate((True, False)):
            state = await ended(client, one("pay", input=ref("input")), happens)
            assert (client.output(state, "pay"), len(books)) == (number, number + 1)


async def test_a_handler_goes_on_from_what_it_saved(server: Server, client: Client) -> None:
    agent, done = Agent("walker"), list[int]()

    @agent.capability("walk")
    async def walk(_: object, context: Context) -> int:
        for step in range(context.saved(int) or 0, 6):
            done.append(step)
            await context.save(step + 1)
            if step == 3 and context.attempt == 1:
                raise RuntimeError("stumbled")
        return context.attempt

    async with supervised(server), serving(server, agent):
        state = await ended(client, one("walk"))
        assert (client.output(state, "pay"), done) == (2, [0, 1, 2, 3, 4, 5])
        state = await client.rerun(state.run, by="ann")
        await client.result(state.run, timeout_s=BOUND_S)
        assert done[6:] == [0, 1, 2, 3, 4, 5]


async def test_a_replay_does_nothing_outside(server: Server, client: Client) -> None:
    acts: list[str] = []

    def payer(*keys: str) -> Agent:
        agent = Agent("payer")

        @agent.capability("pay")
        async def pay(_: object, context: Context) -> list[int]:
            return [await context.once(key, lambda key: acts.append(key) or len(acts)) for key in keys]

        return agent

    async with supervised(server), serving(server, payer("charge")):
        state = await ended(client, one("pay"))
    assert len(acts) == 1
    async with forked() as fork:
        again = [each async for each in replay(client, fork, payer("charge"), Selection(runs=(state.run,)))]
        other = [each async for each in replay(client, fork, payer("charge", "mail"), Selection(runs=(state.run,)))]
    assert ([each.verdict for each in again], [each.verdict for each in other], len(acts)) == (["same"], ["failed"], 1)
    assert other[0].now.problem is not None and "a replay does nothing outside" in other[0].now.problem.detail


async def test_a_run_that_fails_undoes_what_it_did_and_is_shown_as_failed(
    server: Server, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "trip.toml").write_text(
        """
        name = "trip"
        on_failure = "rollback"
        [[phases]]
        key = "flight"
        capability = "book"
        compensate = "unbook"
        [[phases]]
        key = "hotel"
        capability = "book"
        compensate = "unbook"
        after = ["flight"]
        [[phases]]
        key = "pay"
        capability = "pay"
        after = ["hotel"]
        """
    )
    agent, undone, stuck = Agent("travel"), list[str](), [True]

    @agent.capability("book")
    async def book(_: object, context: Context) -> str:
        return f"{context.phase} booked"

    @agent.capability("pay")
    async def pay(_: object) -> None:
        raise Reject("no money")

    @agent.capability("unbook")
    async def unbook(about: dict[str, Any], context: Context) -> None:
        assert context.undoes
        if context.phase == "flight" and stuck[0]:
            raise Reject("the airline is closed")
        undone.append(await context.once("unbook", lambda key: f"{about['output']}, {key.rpartition('/')[0]}"))

    async with supervised(server), serving(server, agent):
        state = await ended(client, read_plan(tmp_path / "trip.toml"))
        assert state.problem is not None and state.problem.code == "rollback_failed"
        letters = {each.letter.phase: each.number async for each in client.dead_letters()}
        assert list(letters) == ["pay", "flight"]
        stuck[0] = False
        await client.redrive_letter(letters["flight"], by="ann")
        state = await client.result(state.run, timeout_s=BOUND_S)
    assert undone == [f"{key} booked, {state.run}/{key}~undo" for key in ("hotel", "flight")]
    assert {key: phase.status for key, phase in state.phases.items()} == {
        "flight": "rolled_back",
        "hotel": "rolled_back",
        "pay": "failed",
    }
    assert state.problem is not None and state.problem.detail == "pay: no money"
    shown = await typed(server, "run", "show", state.run, "--json")
    assert json.loads(shown.stdout)["status"] == "failed"
    kinds = [type(each.event).__name__ for each in await happenings(client, state.run)]
    assert kinds.count("RunRollingBack") == 2
