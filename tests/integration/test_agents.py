"""Agents and callers over a real server: asking, sending, runs of plans, gates, dead letters, watching."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import msgspec
import pytest

import bus
from bus import Agent, Approval, Client, Context, Phase, Plan, Reject, Retry, connect, ref
from bus.broker.server import Server
from bus.errors import NoLiveAgent, NotFound, Refused, TimedOut, TooLarge
from bus.rules.dead import DeadLetter, Unreadable
from bus.rules.events import PhaseProgressed, PhaseStarted, type_of
from tests.harness import BOUND_S, happenings, serving, supervised, until


class Price(msgspec.Struct, frozen=True):
    sku: str
    quantity: int


class Priced(msgspec.Struct, frozen=True):
    total_cents: int


def pricing() -> Agent:
    agent = Agent("pricing", version="1.2.0")

    @agent.capability("price", timeout_s=5, concurrency=8)
    async def price(query: Price, context: Context) -> Priced:
        if query.sku == "unknown":
            raise Reject(f"unknown sku {query.sku!r}")
        await context.progress(0.5, "found the sku")
        return Priced(total_cents=100 * query.quantity)

    return agent


def numbers() -> Agent:
    agent = Agent("numbers")

    @agent.capability("numbers.list")
    async def listed(query: dict[str, int]) -> list[int]:
        return list(range(query["upto"]))

    @agent.capability("numbers.square", concurrency=4)
    def square(number: int) -> int:
        return number * number

    @agent.capability("numbers.sum")
    async def total(query: list[int]) -> int:
        return sum(query)

    return agent


SQUARES = Plan(
    "squares",
    phases=[
        Phase(-1, "numbers.list", input={"upto": ref("input.upto")}),
        Phase("square", "numbers.square", each=ref("-1"), width=3),
        Phase("sum", "numbers.sum", input=ref("square")),
    ],
)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


async def test_an_answer_comes_back_in_its_type(server: Server, client: Client) -> None:
    async with serving(server, pricing()):
        assert await client.ask("price", Price("A-7", 3), Priced, timeout_s=BOUND_S) == Priced(300)


@pytest.mark.parametrize("fast", [False, True])
async def test_asking_for_what_nobody_offers_is_told_at_once_and_leaves_nothing(client: Client, fast: bool) -> None:
    with pytest.raises(NoLiveAgent, match="teleport"):
        await client.ask("teleport", {}, timeout_s=BOUND_S, fast=fast)
    assert await client.log.last(client.subjects.runs) is None


async def test_fail_fast_stores_nothing(client: Client) -> None:
    with pytest.raises(NoLiveAgent):
        await client.start(SQUARES, {"upto": 3}, fail_fast=True)
    assert await client.log.last(client.subjects.runs) is None


async def test_a_run_waits_for_its_agents_and_says_whom_it_misses(server: Server, client: Client) -> None:
    receipt = await client.start(SQUARES, {"upto": 5})
    assert list(receipt.unserved) == ["numbers.list", "numbers.square", "numbers.sum"]
    async with serving(server, numbers()):
        state = await client.result(receipt.run, timeout_s=BOUND_S)
    assert (state.status, client.output(state, "sum", int)) == ("completed", 30)


async def test_several_instances_share_the_work(server: Server, client: Client) -> None:
    async with serving(server, numbers(), numbers()):
        receipt = await client.start(SQUARES, {"upto": 60})
        events = await happenings(client, receipt.run)
    instances = {each.event.instance for each in events if isinstance(each.event, PhaseStarted)}
    assert len(instances) == 2
    assert client.output(await client.runs.load(receipt.run), "sum") == sum(n * n for n in range(60))


async def test_an_each_phase_never_has_more_under_way_than_its_width(server: Server, client: Client) -> None:
    under_way, most = 0, 0
    async with serving(server, numbers()):
        receipt = await client.start(SQUARES, {"upto": 20})
        for each in await happenings(client, receipt.run):
            if getattr(each.event, "item", None) is not None:
                match type_of(each.event):
                    case "phase.ready.v1":
                        under_way += 1
                    case "phase.completed.v1":
                        under_way -= 1
                most = max(most, under_way)
    assert most == 3


async def test_a_sync_handler_runs_in_a_thread_of_its_own(server: Server, client: Client) -> None:
    agent, seen = Agent("threads"), set[bool]()

    @agent.capability("where")
    def where(_: object) -> bool:
        seen.add(threading.current_thread() is threading.main_thread())
        return True

    async with serving(server, agent):
        assert await client.ask("where", {}, bool, timeout_s=BOUND_S)
    assert seen == {False}


async def test_rejected_work_becomes_a_dead_letter_with_everything_in_it(server: Server, client: Client) -> None:
    async with serving(server, pricing()):
        with pytest.raises(bus.WorkFailed, match="unknown sku"):
            await client.ask("price", Price("unknown", 1), Priced, timeout_s=BOUND_S)
    [found] = [each async for each in client.dead_letters()]
    number, letter = found.number, found.letter
    assert isinstance(letter, DeadLetter)
    assert msgspec.json.decode(letter.payload) == {"sku": "unknown", "quantity": 1}
    assert [(each.number, each.agent, each.problem and each.problem.code) for each in letter.attempts] == [
        (1, "pricing", "rejected")
    ]
    assert await client.dead_letter(number) == found


async def test_input_that_does_not_fit_names_the_field(server: Server, client: Client) -> None:
    async with serving(server, pricing()):
        with pytest.raises(bus.WorkFailed, match="quantity"):
            await client.ask("price", {"sku": "A-7"}, Priced, timeout_s=BOUND_S)


async def test_a_result_over_the_limit_fails_the_phase_and_says_so(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHASEBUS_PAYLOAD_LIMIT_BYTES", "1000000")
    agent = Agent("verbose")

    @agent.capability("talk")
    async def talk(_: object) -> str:
        return "x" * 2**21

    async with serving(server, agent):
        with pytest.raises(bus.WorkFailed, match="too large"):
            await client.ask("talk", {}, timeout_s=BOUND_S)


async def test_an_input_over_the_limit_is_refused_before_anything_is_stored(server: Server) -> None:
    async with bus.connect(server.url, payload_limit_bytes=1_000_000) as client:
        with pytest.raises(TooLarge):
            await client.send("price", "x" * 2**21)
        assert await client.log.last(client.subjects.runs) is None


async def test_undecodable_work_is_kept_as_it_came(server: Server, client: Client) -> None:
    subject = "bus.work.price.normal.0.0.forged.work.1"
    async with serving(server, pricing()):
        await client.connection.request(subject, b"\xff not json", timeout_s=5)
        await until(lambda: _dead_count(client, 1))
        # The poison has not stopped the worker.
        assert await client.ask("price", Price("A-7", 1), Priced, timeout_s=BOUND_S) == Priced(100)
    [letter] = [each.letter async for each in client.dead_letters()]
    assert isinstance(letter, Unreadable)
    assert (letter.subject, letter.body) == (subject, b"\xff not json")


async def test_a_redriven_dead_letter_is_done_and_can_not_be_redriven_again(server: Server, client: Client) -> None:
    agent, broken = Agent("fixable"), [True]

    @agent.capability("fix.me")
    async def fix_me(_: object, context: Context) -> int:
        if broken:
            raise Reject("still broken")
        return context.attempt

    async with serving(server, agent):
        receipt = await client.send("fix.me", {})
        assert (await client.result(receipt.run, timeout_s=BOUND_S)).status == "failed"
        [number] = [each.number async for each in client.dead_letters()]
        broken.clear()
        await client.redrive_letter(number, by="test")
        state = await client.result(receipt.run, timeout_s=BOUND_S)
        assert (state.status, client.output(state, "work"), state.passes) == ("completed", 2, 2)
        with pytest.raises(Refused, match="is resolved"):
            await client.redrive_letter(number, by="test")
        # Watching it from its beginning goes on past the first ending.
        kinds = [type_of(each.event) for each in await happenings(client, receipt.run)]
        assert kinds[-1] == "run.completed.v1" and "run.failed.v1" in kinds


async def test_a_gate_waits_for_a_person(server: Server, client: Client) -> None:
    plan = Plan(
        "gated",
        phases=[Phase("review", approval=Approval()), Phase("sum", "numbers.sum", input=[1, 2], after=["review"])],
    )
    async with serving(server, numbers()):
        receipt = await client.start(plan)
        assert (await client.runs.load(receipt.run)).phases["review"].status == "waiting"
        await client.approve(receipt.run, "review", by="alice", comment="fine")
        state = await client.result(receipt.run, timeout_s=BOUND_S)
        assert (state.status, state.phases["review"].answered_by) == ("completed", "alice")
        with pytest.raises(Refused, match="approved"):
            await client.reject(receipt.run, "review", by="bob")


async def test_a_failing_phase_is_tried_again_after_its_delay(server: Server, client: Client) -> None:
    agent = Agent("flaky")

    @agent.capability("flaky.work")
    async def work(_: object, context: Context) -> int:
        if context.attempt < 3:
            raise ConnectionError("not yet")
        return context.attempt

    plan = Plan("retried", phases=[Phase("work", "flaky.work", retry=Retry(transient=3, transient_s=0.05))])
    async with supervised(server), serving(server, agent):
        receipt = await client.start(plan)
        state = await client.result(receipt.run, timeout_s=BOUND_S)
    attempts = state.phases["work"].items[0].attempts
    assert [each.problem and each.problem.error_class for each in attempts] == ["transient", "transient", None]


async def test_a_handler_that_asks_for_time_gets_it(server: Server, client: Client) -> None:
    agent = Agent("later")

    @agent.capability("later.work")
    async def work(_: object, context: Context) -> int:
        if context.attempt == 1:
            raise Retry(0.1, "come back")
        return context.attempt

    async with supervised(server), serving(server, agent):
        assert await client.ask("later.work", {}, int, timeout_s=BOUND_S) == 2


async def test_an_attempt_past_its_deadline_is_ended_and_tried_again(server: Server, client: Client) -> None:
    agent = Agent("sleepy")

    @agent.capability("sleepy.work")
    async def work(_: object, context: Context) -> int:
        if context.attempt == 1:
            await asyncio.sleep(60)
        return context.attempt

    plan = Plan("timed", phases=[Phase("work", "sleepy.work", timeout_s=0.2)])
    async with serving(server, agent):
        state = await client.result((await client.start(plan)).run, timeout_s=BOUND_S)
    first, second = state.phases["work"].items[0].attempts
    assert (first.cause, second.problem) == ("timed_out", None)


async def test_progress_is_in_the_log(server: Server, client: Client) -> None:
    async with serving(server, pricing()):
        receipt = await client.send("price", Price("A-7", 1))
        events = await happenings(client, receipt.run)
    assert [each.event.fraction for each in events if isinstance(each.event, PhaseProgressed)] == [0.5]


async def test_watching_can_be_resumed_from_any_position(server: Server, client: Client) -> None:
    async with serving(server, numbers()):
        receipt = await client.start(SQUARES, {"upto": 4})
        whole = await happenings(client, receipt.run)
    for cut in {each.position for each in whole}:
        rest = [each async for each in client.watch(receipt.run, after=cut)]
        assert [each.position for each in rest] == [each.position for each in whole if each.position > cut]


async def test_a_run_as_of_any_position_is_what_it_was_then(server: Server, client: Client) -> None:
    async with serving(server, numbers()):
        receipt = await client.start(SQUARES, {"upto": 4})
        events = await happenings(client, receipt.run)
    first = await client.ledger.as_of(receipt.run, receipt.position)
    assert (first.phases["-1"].status, first.phases["sum"].status) == ("ready", "pending")
    assert (await client.ledger.as_of(receipt.run, events[-1].position)).status == "completed"
    with pytest.raises(NotFound):
        await client.ledger.as_of(receipt.run, receipt.position - 1)


async def test_a_bound_on_waiting_does_not_stop_the_run(server: Server, client: Client) -> None:
    receipt = await client.start(SQUARES, {"upto": 2})
    with pytest.raises(TimedOut):
        await client.result(receipt.run, timeout_s=0.1)
    async with serving(server, numbers()):
        assert (await client.result(receipt.run, timeout_s=BOUND_S)).status == "completed"


async def test_a_cancelled_run_stays_cancelled_and_its_late_result_is_refused(server: Server, client: Client) -> None:
    agent, release = Agent("slow"), asyncio.Event()

    @agent.capability("slow.work")
    async def work(_: object) -> int:
        await release.wait()
        return 1

    async with serving(server, agent):
        receipt = await client.send("slow.work", {})
        await until(lambda: _is_under_way(client, receipt.run))
        await client.cancel(receipt.run, by="alice", reason="wrong one")
        release.set()
        await until(lambda: _has_event(client, receipt.run, "phase.result_refused.v1"))
    assert (await client.runs.load(receipt.run)).status == "cancelled"


async def test_a_stopping_worker_finishes_what_it_has_begun(server: Server, client: Client) -> None:
    agent, begun = Agent("slow"), asyncio.Event()

    @agent.capability("slow.work")
    async def work(_: object) -> int:
        begun.set()
        await asyncio.sleep(0.3)
        return 7

    async with serving(server, agent):
        receipt = await client.send("slow.work", {})
        await begun.wait()
    # The worker has stopped: the result landed while it drained.
    state = await client.runs.load(receipt.run)
    assert (state.status, client.output(state, "work")) == ("completed", 7)
    assert await client.agents() == []


async def test_foreign_bytes_on_a_runs_subject_do_not_stop_the_run(server: Server, client: Client) -> None:
    receipt = await client.start(SQUARES, {"upto": 4})
    subject = client.subjects.run(receipt.run)
    other = await client.start(SQUARES, {"upto": 1})
    foreign = await client.log.last(client.subjects.run(other.run))
    assert foreign is not None
    for body in (b"\xff", b"{}", foreign.body):
        await client.connection.request(subject, body, timeout_s=5)
    async with connect(server.url) as fresh, serving(server, numbers()):
        state = await fresh.result(receipt.run, timeout_s=BOUND_S)
    assert (state.status, fresh.output(state, "sum")) == ("completed", 14)


async def test_a_subject_that_holds_no_run_is_refused_and_not_retried_for_ever(client: Client) -> None:
    await client.connection.request(client.subjects.run("squatted"), b"{}", timeout_s=5)
    with pytest.raises(bus.MalformedMessage, match="squatted"):
        await client.start(SQUARES, {"upto": 1}, run="squatted")


async def test_a_run_id_can_be_used_once(client: Client) -> None:
    await client.start(SQUARES, {"upto": 1}, run="mine")
    with pytest.raises(Refused, match="already"):
        await client.start(SQUARES, {"upto": 1}, run="mine")


async def test_many_commands_for_one_run_share_few_commits(server: Server, client: Client) -> None:
    agent = Agent("noop")

    @agent.capability("noop", concurrency=50)
    async def noop(_: object) -> None:
        return None

    plan = Plan("wide", phases=[Phase(number, "noop") for number in range(50)])
    async with serving(server, agent):
        receipt = await client.start(plan)
        state = await client.result(receipt.run, timeout_s=BOUND_S)
        commits = [commit async for commit in client.ledger.commits(receipt.run)]
    assert state.status == "completed"
    assert len(commits) < 50 < state.events


async def _dead_count(client: Client, count: int) -> bool:
    return len([each async for each in client.dead_letters()]) == count


async def _is_under_way(client: Client, run: str) -> bool:
    return any(True for _ in (await client.runs.load(run)).held())


async def _has_event(client: Client, run: str, kind: str) -> bool:
    return kind in [type_of(event) async for commit in client.ledger.commits(run) for event in commit.events]


async def test_a_sync_handler_that_never_ends_holds_neither_the_phase_nor_the_process(
    server: Server, client: Client
) -> None:
    agent, release = Agent("stubborn"), threading.Event()

    @agent.capability("stubborn.work")
    def work(_: object, context: Context) -> int:
        if context.attempt == 1:
            release.wait()
        return context.attempt

    plan = Plan("timed", phases=[Phase("work", "stubborn.work", timeout_s=0.2)])
    async with serving(server, agent):
        state = await client.result((await client.start(plan)).run, timeout_s=BOUND_S)
        assert client.output(state, "work") == 2
    release.set()
