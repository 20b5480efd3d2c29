"""Breakers, limits and fallbacks on a real server, with two clients as two processes would be."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from bus import (
    Agent,
    Breaker,
    BudgetSpent,
    CircuitOpen,
    Client,
    Context,
    Fallback,
    LimitReached,
    NoProvider,
    Phase,
    Plan,
    Provider,
    Quota,
    Reject,
    SettingsError,
    TimedOut,
    connect,
)
from bus.archives.outgoing import select
from bus.archives.retention import Policy
from bus.broker.server import Server
from bus.clock import utc_now
from bus.diagnosis import problem_of
from bus.format.envelope import decode_data
from bus.guards.circuit import Circuit
from bus.guards.limit import LimitHeld, LimitSpent
from tests.harness import serving, supervised, until

POLICY = Breaker(calls=4, cooldown_s=0.3, longest_s=1, probe_s=5)


@pytest.fixture
async def two(server: Server) -> AsyncIterator[tuple[Client, Client]]:
    async with connect(server.url, name="one") as one, connect(server.url, name="other") as other:
        yield one, other


async def fails(circuit: Circuit) -> None:
    with pytest.raises(ConnectionError):
        async with circuit:
            raise ConnectionError("no route")


async def types(client: Client, subject: str) -> list[str]:
    return [record.envelope().type async for record in client.log.read(subject)]


async def test_failures_of_all_processes_count_together_and_all_see_the_breaker_open(
    two: tuple[Client, Client],
) -> None:
    circuits = [client.breaker("openai", POLICY) for client in two]
    for circuit in circuits * 2:
        await fails(circuit)
    await until(lambda: [circuit.state.status for circuit in circuits] == ["open", "open"])
    for circuit in circuits:
        with pytest.raises(CircuitOpen, match="no route"):
            await circuit.enter()
    assert await types(two[0], two[0].subjects.breaker("openai")) == ["breaker.opened.v1"]


async def test_of_all_who_ask_at_once_one_probes_and_its_success_lets_all_through(two: tuple[Client, Client]) -> None:
    circuits = [client.breaker("openai", POLICY) for client in two]
    for circuit in circuits * 2:
        await fails(circuit)
    await until(lambda: all(circuit.state.position for circuit in circuits))
    await asyncio.gather(*(circuit.until_admitting() for circuit in circuits))
    inside = most = refused = 0

    async def call(circuit: Circuit) -> None:
        nonlocal inside, most, refused
        try:
            async with circuit:
                inside += 1
                most = max(most, inside)
                await until(lambda: refused == 19)
                inside -= 1
        except CircuitOpen:
            refused += 1

    await asyncio.gather(*(call(circuit) for circuit in circuits * 10))
    assert (most, refused) == (1, 19)
    await until(lambda: [circuit.state.status for circuit in circuits] == ["closed", "closed"])
    kinds = await types(two[0], two[0].subjects.breaker("openai"))
    assert kinds == ["breaker.opened.v1", "breaker.probing.v1", "breaker.closed.v1"]


async def test_a_call_that_takes_too_long_counts_and_one_that_is_cancelled_does_not(two: tuple[Client, Client]) -> None:
    circuit = two[0].breaker("slow", Breaker(calls=2, timeout_s=0.05))

    @circuit
    async def call() -> None:
        await asyncio.sleep(60)

    for _ in range(3):
        task = asyncio.create_task(call())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    for _ in range(2):
        with pytest.raises(TimedOut, match="breaker 'slow'"):
            await call()
    with pytest.raises(CircuitOpen):
        await call()


async def test_a_block_within_a_probe_is_part_of_it(two: tuple[Client, Client]) -> None:
    circuit = two[0].breaker("openai", POLICY)
    for _ in range(4):
        await fails(circuit)
    await until(lambda: circuit.state.position)
    await circuit.until_admitting()
    async with circuit, circuit:
        assert circuit.state.status == "half_open"
    assert circuit.state.status == "closed"


async def test_what_a_person_decides_applies_everywhere_and_is_in_the_log(two: tuple[Client, Client]) -> None:
    circuit = two[0].breaker("openai")
    await circuit.known()
    await two[1].open_breaker("openai", by="ann", reason="moving")
    await until(lambda: circuit.state.status == "open")
    assert (circuit.state.by, circuit.state.reason) == ("ann", "moving")
    await two[1].close_breaker("openai", by="ann")
    await until(lambda: circuit.state.status == "closed")
    assert [state.status for state in await two[0].breakers()] == ["closed"]


async def test_bytes_that_are_no_transition_do_not_stop_a_breaker(two: tuple[Client, Client]) -> None:
    two[0].connection.publish(two[0].subjects.breaker("openai"), b"\xff")
    circuit = two[0].breaker("openai", POLICY)
    for _ in range(4):
        await fails(circuit)
    await until(lambda: circuit.state.position > 1)
    assert circuit.state.status == "open"


async def test_one_name_has_one_policy_in_a_process(two: tuple[Client, Client]) -> None:
    two[0].breaker("openai", POLICY)
    assert two[0].breaker("openai").policy == POLICY
    with pytest.raises(SettingsError, match="another policy"):
        two[0].breaker("openai", Breaker())
    two[0].limit("openai", calls_per_s=5)
    with pytest.raises(SettingsError, match="another quota"):
        two[0].limit("openai", Quota(calls_per_s=6))
    with pytest.raises(SettingsError, match="there is no calls_per_week"):
        two[0].limit("openai", calls_per_week=6)


async def test_a_capability_s_work_waits_in_the_queue_while_its_breaker_is_open(server: Server) -> None:
    agent, calls, is_sick = Agent("writer"), [0], [True]

    @agent.capability("write", concurrency=4, breaker=Breaker(calls=3, cooldown_s=0.5, longest_s=1))
    async def write(_: Any, context: Context) -> int:
        calls[0] += 1
        if is_sick[0]:
            raise ConnectionError("no route")
        return context.attempt

    async with connect(server.url) as client, supervised(server), serving(server, agent):
        retry = {"transient": 8, "transient_s": 0.05}
        plan = Plan(
            "ten",
            phases=[Phase(f"p{number}", "write", retry=msgspec.convert(retry, _policy())) for number in range(10)],
        )
        receipt = await client.start(plan)
        await until(lambda: _status(client, "open"))
        tried = calls[0]
        is_sick[0] = False
        state = await client.result(receipt.run, timeout_s=20)
        attempts = [state.phases[key].output.value for key in state.phases if state.phases[key].output is not None]  # type: ignore[union-attr]
        assert len(attempts) == 10
        # What was not let through has cost no attempt.
        assert sum(attempts) == calls[0]
        assert tried <= 8
        await until(lambda: _status(client, "closed"))


def _policy() -> Any:
    from bus import RetryPolicy

    return RetryPolicy


async def _status(client: Client, status: str) -> bool:
    return [state.status for state in await client.breakers()] == [status]


async def test_how_a_breaker_stands_is_not_archived(two: tuple[Client, Client]) -> None:
    client = two[0]
    await client.open_breaker("openai", by="ann")
    await client.close_breaker("openai", by="ann")
    chosen = await select(client.log, Policy.of(["breaker=0s"]), utc_now() + timedelta(days=1))
    assert chosen.upto == {client.subjects.breaker("openai"): 1}
    assert dict(chosen.tallies["breaker"].stays) == {"says how it stands": 1}


async def test_a_limit_holds_for_two_processes_together(two: tuple[Client, Client]) -> None:
    limits = [client.limit("openai", calls_per_s=50) for client in two]
    began = time.monotonic()
    await asyncio.gather(*(limit.take() for limit in limits for _ in range(50)))
    assert time.monotonic() - began >= 0.9
    assert [state.quota for state in (await two[0].limits()).values()] == [limits[0].quota]


async def test_a_busy_process_writes_far_less_often_than_it_takes(two: tuple[Client, Client]) -> None:
    client = two[0]
    limit = client.limit("openai", calls_per_s=4_000, cost_per_day=1_000_000)
    for _ in range(1_000):
        await limit.take(cost=1)
    from bus.log.streams import info

    there = await info(client.connection, f"KV_{client.subjects.limits_bucket}", 5.0)
    assert there.last < 100


async def test_a_take_that_would_wait_too_long_is_told_at_once_and_each_another_time(
    two: tuple[Client, Client],
) -> None:
    limit = two[0].limit("slow", calls_per_min=2)
    await asyncio.gather(limit.take(), limit.take())
    waits = set()
    for _ in range(5):
        with pytest.raises(LimitReached) as reached:
            await limit.take(timeout_s=1)
        waits.add(reached.value.retry_after_s)
    assert len(waits) == 5


async def test_a_hold_stops_everybody_and_is_said_once(two: tuple[Client, Client]) -> None:
    limits = [client.limit("openai", calls_per_s=20) for client in two]
    for limit in limits:
        await limit.take()
    ends = time.time() + 0.6
    await asyncio.gather(*(limit.hold(0.6, reason="429") for limit in limits))
    times: list[float] = []

    async def take(limit: Any) -> None:
        await limit.take()
        times.append(time.time())

    await asyncio.gather(*(take(limit) for limit in limits for _ in range(5)))
    assert min(times) >= ends
    # Both were told.
    said = [record async for record in two[0].log.read(two[0].subjects.limit("openai"))]
    assert [decode_data(each.envelope(), msgspec.json.Decoder(LimitHeld), "a hold").reason for each in said] == ["429"]


async def test_who_waits_when_all_are_asked_to_hold_waits_on(two: tuple[Client, Client]) -> None:
    limits = [client.limit("openai", calls_per_s=4) for client in two]
    await asyncio.gather(*(limits[0].take() for _ in range(4)))
    waiting = asyncio.create_task(limits[0].take())
    await asyncio.sleep(0.05)
    ends = time.time() + 1.0
    await limits[1].hold(1.0)
    await waiting
    assert time.time() >= ends


async def test_turns_that_passed_while_a_process_was_frozen_do_not_come_on_top(two: tuple[Client, Client]) -> None:
    limit = two[0].limit("openai", calls_per_min=60, burst=0.05)
    await asyncio.gather(*(limit.take() for _ in range(3)))
    waiting = [asyncio.create_task(limit.take()) for _ in range(3)]
    await asyncio.sleep(0.2)
    time.sleep(4.5)  # noqa: ASYNC251 - as if it were frozen
    await asyncio.gather(*waiting)
    with pytest.raises(LimitReached):
        await limit.take(timeout_s=0)


async def test_a_spent_budget_is_told_once_and_what_was_not_used_is_there_again(two: tuple[Client, Client]) -> None:
    limits = [client.limit("dear", cost_per_day=10, tokens_per_day=1_000) for client in two]
    allowance = await limits[0].take(cost=9, tokens=900)
    for limit in limits:
        with pytest.raises(BudgetSpent, match="cost_per_day is spent"):
            await limit.take(cost=5)
    allowance.settle(cost=2, tokens=100)

    async def is_there() -> bool:
        try:
            await limits[1].take(cost=5)
        except BudgetSpent:
            return False
        return True

    await until(is_there)
    client = two[0]
    await until(lambda: _count(client, 1))
    [record] = [record async for record in client.log.read(client.subjects.limit("dear"))]
    said = decode_data(record.envelope(), msgspec.json.Decoder(LimitSpent), "a spent budget")
    assert (said.limit, said.budget, said.amount) == ("dear", "cost_per_day", 10)


async def _count(client: Client, wanted: int) -> bool:
    return len(await types(client, client.subjects.limit("dear"))) == wanted


async def test_the_first_provider_that_can_answers_and_the_answer_says_so(two: tuple[Client, Client]) -> None:
    client, asked = two[0], []

    async def big(question: str) -> str:
        asked.append("big")
        raise ConnectionError("no route")

    async def small(question: str) -> str:
        return f"{question}: 42"

    providers = [Provider("big", big, Breaker(calls=2), cost=0.5), Provider("small", small, cost=0.1)]
    first = await client.fallback(providers, "why")
    assert (first.value, first.provider, first.degraded, first.cost) == ("why: 42", "small", True, 0.1)
    assert [(miss.provider, miss.asked, miss.problem.title) for miss in first.misses] == [
        ("big", True, "ConnectionError")
    ]
    await client.fallback(providers, "why")
    passed_over = await client.fallback(providers, "why")
    assert len(asked) == 2
    assert [(miss.asked, miss.problem.title) for miss in passed_over.misses] == [(False, "CircuitOpen")]
    whole = msgspec.json.decode(msgspec.json.encode(passed_over), type=Fallback[str])
    assert whole == passed_over


async def test_a_provider_whose_budget_is_spent_is_passed_over(two: tuple[Client, Client]) -> None:
    client = two[0]

    async def answer() -> int:
        return 42

    limit = client.limit("big", cost_per_day=1)
    providers = [Provider("big", answer, limit=limit, cost=0.6), Provider("small", answer)]
    found = [(await client.fallback(providers)).provider for _ in range(2)]
    assert found == ["big", "small"]


async def test_if_nobody_answers_all_reasons_are_told_and_a_refusal_is_nobody_else_s_business(
    two: tuple[Client, Client],
) -> None:
    client = two[0]

    async def broken() -> int:
        raise ConnectionError("no route")

    async def strict() -> int:
        raise Reject("not that question")

    with pytest.raises(NoProvider, match=r"a: .*no route; b: .*no route"):
        await client.fallback([Provider("a", broken), Provider("b", broken)])
    await client.open_breaker("e", by="ann")
    await client.open_breaker("f", by="ann")
    with pytest.raises(NoProvider) as missed:
        await client.fallback([Provider("e", broken), Provider("f", broken)])
    problem = problem_of(missed.value, utc_now())
    assert problem.error_class == "dependency"
    assert problem.retry_after_s == missed.value.retry_after_s is not None
    with pytest.raises(Reject):
        await client.fallback([Provider("c", strict), Provider("d", broken)])
