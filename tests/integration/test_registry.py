"""Agents register, are found, fall silent, are told what to do, and end: seen by whoever looks, on a real server."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from bus import Agent, Client, Context, NoLiveAgent, NotFound, WarmUpFailed, connect
from bus import serving as serving_here
from bus.broker.connection import Connection, Message
from bus.broker.reach import ask_all
from bus.broker.server import Server
from bus.clock import utc_now
from bus.format.envelope import envelope
from bus.registry.arrivals import event_in
from bus.registry.card import AGENT_REGISTERED, AgentDeregistered, AgentLost, Card
from bus.registry.orders import AGENT_QUARANTINED, AgentQuarantined, Whom
from bus.registry.roster import Change
from tests.harness import BOUND_S, agent_processes, agents_there, freeze, serving, supervised, until

SLEEPER = Path(__file__).parents[1] / "faults" / "sleeper.py"


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


def pricing(version: str = "1.2.0", **options: object) -> Agent:
    agent = Agent("pricing", version=version, tags=["eu"], **options)

    @agent.capability("price", concurrency=2, tags=["slow"])
    async def price(query: dict[str, int]) -> int:
        return sum(query.values())

    return agent


@asynccontextmanager
async def watched(client: Client) -> AsyncIterator[list[Change]]:
    """What a watcher has seen so far."""
    seen: list[Change] = []

    async def watch() -> None:
        async with aclosing(client.watch_agents()) as changes:
            async for change in changes:
                seen.append(change)

    task = asyncio.create_task(watch())
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.wait({task})


def passed(seen: list[Change], *wanted: str) -> bool:
    """Whether these statuses were seen in this order; a busy machine may put a suspicion in between."""
    statuses = iter([each.instance.status for each in seen])
    return all(status in statuses for status in wanted)


async def has_status(client: Client, status: str) -> bool:
    return [each.status for each in await client.agents()] == [status]


async def history(client: Client) -> list[object]:
    return [event_in(record) async for record in client.log.read(client.subjects.agents)]


async def test_agents_are_found_by_capability_version_and_tag(server: Server, client: Client) -> None:
    async with serving(server, pricing(), pricing("2.0.0"), Agent("empty")):
        assert [each.version for each in await client.agents("price")] == ["1.2.0", "2.0.0"] or len(
            await client.agents("price")
        ) == 2
        (old,) = await client.agents("price", version=">=1.2,<2", tag="eu")
        assert (old.agent, old.version, old.status, old.host != "", old.pid) == (
            "pricing",
            "1.2.0",
            "live",
            True,
            os.getpid(),
        )
        assert (old.load["price"].held, old.load["price"].concurrency, old.memory_mb > 1) == (0, 2, True)
        assert len(await client.agents(tag="slow")) == 2
        assert await client.agents("other") == await client.agents(tag="us") == []
        assert [each.agent for each in await client.agents()] == ["empty", "pricing", "pricing"]
        whole = await client.agent(old.instance)
    assert msgspec.json.decode(bytes(whole.capabilities["price"].gives)) == {"type": "integer"}  # type: ignore[arg-type]
    gone = await client.agent(old.instance)
    assert (gone.status, gone.note) == ("gone", "the process was told to stop")
    with pytest.raises(NotFound):
        await client.agent("pricing-0")


async def test_everybody_is_asked_without_waiting_for_a_silence(server: Server, client: Client) -> None:
    """With an hour's patience it ends at once, because the server says how many there are."""
    async with serving(server, pricing(), pricing(), pricing()), asyncio.timeout(BOUND_S):
        reached = await ask_all(client.connection, client.subjects.everyone, quiet_s=3600)
        assert (len(reached.answers), len(reached.names)) == (3, 3)
    assert (await ask_all(client.connection, client.subjects.everyone, quiet_s=3600)).answers == []


async def test_who_listens_in_is_not_waited_for(server: Server, client: Client) -> None:
    client.connection.subscribe(">", lambda _: None)
    async with serving(server, pricing()), asyncio.timeout(BOUND_S):
        assert len((await ask_all(client.connection, client.subjects.everyone, quiet_s=3600)).answers) == 1


async def test_a_watcher_sees_an_instance_come_be_killed_and_be_gone(server: Server, client: Client) -> None:
    async with supervised(server), watched(client) as seen:
        with agent_processes(server, SLEEPER) as processes:
            await until(lambda: passed(seen, "live"))
            processes[0].kill()
            await until(lambda: passed(seen, "live", "gone"))
    assert (seen[0].before, seen[-1].instance.note) == (None, "crashed: its connection closed")
    lost = [each for each in await history(client) if isinstance(each, AgentLost)]
    assert [(each.cause, each.held) for each in lost] == [("crashed", 0)]


async def test_a_frozen_instance_is_suspected_then_lost_and_registers_again(server: Server, client: Client) -> None:
    async with supervised(server, lease_s=3.5), watched(client) as seen:
        with agent_processes(server, SLEEPER) as processes:
            await until(lambda: passed(seen, "live"))
            os.kill(processes[0].pid, signal.SIGSTOP)
            await until(lambda: passed(seen, "live", "suspected", "gone"))
            os.kill(processes[0].pid, signal.SIGCONT)
            await until(lambda: passed(seen, "live", "suspected", "gone", "live"))
            assert [each.status for each in await client.agents()] == ["live"]
    kinds = [type(each) for each in await history(client)]
    assert kinds[:3] == [Card, AgentLost, Card]


async def test_an_instance_that_freezes_as_it_registers_has_a_whole_lease_to_be_heard_of_in(
    server: Server, client: Client
) -> None:
    """However long the supervisor has led by then."""
    card = Card(agent="stiff", version="1", instance="stiff-1", host="elsewhere", pid=1, capabilities={})
    async with supervised(server, lease_s=1.5, beat_s=0.5):
        await asyncio.sleep(1.6)
        client.connection.subscribe(client.subjects.ping(card.instance), lambda _: None)
        registered = envelope(AGENT_REGISTERED, card, id="stiff-1", source=client.source, time=utc_now())
        await client.log.append(client.subjects.agent(card.agent, card.instance), registered)
        await until(lambda: _has_lost(client))
    (came, went) = [record.stored_at async for record in client.log.read(client.subjects.agents)]
    assert (went - came).total_seconds() >= 1.5


async def test_a_frozen_instance_is_among_those_that_are_asked_for(server: Server, client: Client) -> None:
    with agent_processes(server, SLEEPER) as processes:
        await agents_there(client, 1)
        os.kill(processes[0].pid, signal.SIGSTOP)
        await until(lambda: has_status(client, "suspected"))


async def test_what_ended_without_a_supervisor_is_recorded_by_the_next_one(server: Server, client: Client) -> None:
    with agent_processes(server, SLEEPER) as processes:
        await agents_there(client, 1)
        processes[0].kill()
        await until(lambda: _nobody(client))
    async with supervised(server, lease_s=1.5, beat_s=0.5):
        await until(lambda: _has_lost(client))
    async with supervised(server, lease_s=1.5, beat_s=0.5):
        await asyncio.sleep(0)
    assert len([each for each in await history(client) if isinstance(each, AgentLost)]) == 1


async def test_a_quarantined_agent_takes_nothing_until_it_is_released(server: Server, client: Client) -> None:
    async with serving(server, pricing()):
        await client.quarantine_agents("pricing", by="ann", reason="wrong prices")
        await until(lambda: has_status(client, "quarantined"))
        (one,) = await client.agents()
        assert one.note == "by ann: wrong prices"
        receipt = await client.send("price", {"a": 1})
        assert receipt.unserved == ["price"]
        with pytest.raises(NoLiveAgent):
            await client.ask("price", {"a": 1})
        with pytest.raises(NotFound, match="of this agent there are: pricing"):
            await client.release_agents("pricing", version="1", by="ann")
        assert (await client.runs.load(receipt.run)).phases["work"].status == "ready"
        await client.release_agents("pricing", by="ann")
        state = await client.result(receipt.run, timeout_s=BOUND_S)
        assert client.output(state, "work") == 1
        assert await client.quarantines() == []
        assert await client.ask("price", {"a": 2}) == 2


async def test_a_quarantine_also_holds_for_what_starts_later_and_only_for_whom_it_names(
    server: Server, client: Client
) -> None:
    await client.quarantine_agents("pricing", version="<2", by="ann")
    async with serving(server, pricing("1.9"), pricing("2.0")):
        await until(lambda: _stands(client, {"1.9": "quarantined", "2.0": "live"}))
        assert not (await client.send("price", {})).unserved
    (standing,) = await client.quarantines()
    assert (standing.by, str(standing.whom)) == ("ann", "pricing <2")


async def test_a_forged_order_is_not_heeded(server: Server, client: Client) -> None:
    """A copy that nobody has stored is a reason to look, and there is nothing."""
    async with serving(server, pricing()), connect(server.operator_url) as other:
        forged = msgspec.json.encode(AgentQuarantined("eve", Whom("pricing")))
        for subject in (client.subjects.ops("agents"), "live." + client.subjects.ops("agents")):
            other.connection.publish(subject, b'{"type":"%b","data":%b}' % (AGENT_QUARANTINED.encode(), forged))
        await other.connection.flush(5)
        assert await client.ask("price", {"a": 1}) == 1
        assert await has_status(client, "live")


async def test_a_quarantined_instance_finishes_what_it_has_begun(server: Server, client: Client) -> None:
    agent, begun, release = Agent("slow"), asyncio.Event(), asyncio.Event()

    @agent.capability("slow.work")
    async def work(_: object) -> int:
        begun.set()
        await release.wait()
        return 7

    async with serving(server, agent):
        first = await client.send("slow.work", {})
        await begun.wait()
        await client.quarantine_agents("slow", by="ann")
        await until(lambda: has_status(client, "quarantined"))
        second = await client.send("slow.work", {})
        release.set()
        assert client.output(await client.result(first.run, timeout_s=BOUND_S), "work") == 7
        assert (await client.runs.load(second.run)).phases["work"].status == "ready"
        await client.release_agents("slow", by="ann")
        assert client.output(await client.result(second.run, timeout_s=BOUND_S), "work") == 7


async def test_a_drained_instance_finishes_and_ends_with_the_reason_in_the_log(server: Server, client: Client) -> None:
    with agent_processes(server, SLEEPER, 2) as processes:
        await agents_there(client, 2)
        receipts = [await client.send("nap", {"s": 1}) for _ in range(2)]
        await until(lambda: _all_held(client, 2))
        (first, *_) = [each for each in await client.agents() if each.held]
        await client.drain_agents("sleeper", instance=first.instance, by="ann", reason="new host")
        await until(lambda: any(process.poll() == 0 for process in processes))
        for receipt in receipts:
            state = await client.result(receipt.run, timeout_s=BOUND_S)
            assert [len(item.attempts) for item in state.phases["work"].items] == [1]
        assert len(await client.agents()) == 1
        await client.drain_agents("sleeper", by="ann")
        await until(lambda: all(process.poll() == 0 for process in processes))
        processes.clear()
    ends = [each for each in await history(client) if isinstance(each, AgentDeregistered)]
    assert [each.reason for each in ends] == ["drained by ann: new host", "drained by ann"]
    async with serving(server, Agent("sleeper")):
        assert await has_status(client, "live")


async def test_a_lifespan_is_open_before_work_is_taken_and_closed_after_it(server: Server, client: Client) -> None:
    agent, story = Agent("warm"), []

    @agent.lifespan()
    async def model() -> AsyncIterator[dict[str, int]]:
        story.append(f"warm-up, {len(await client.agents())} there")
        yield {"seven": 7}
        story.append(f"shut-down, {len(await client.agents())} there")

    @agent.capability("warm.look_up")
    async def look_up(word: str, context: Context) -> int:
        story.append("work")
        found: int = context.state[word]
        return found

    async with serving_here(client, agent):
        assert await client.ask("warm.look_up", "seven") == 7
    assert story == ["warm-up, 0 there", "work", "shut-down, 0 there"]


@pytest.mark.parametrize(("pause_s", "why"), [(0.0, "ValueError: no model"), (600.0, "longer than 0.2 s")])
async def test_an_agent_that_can_not_warm_up_says_why_and_takes_nothing(
    server: Server, client: Client, pause_s: float, why: str
) -> None:
    agent = pricing()

    @agent.lifespan(timeout_s=0.2)
    async def model() -> AsyncIterator[None]:
        await asyncio.sleep(pause_s)
        raise ValueError("no model")
        yield

    with pytest.raises(WarmUpFailed, match=why):
        async with serving_here(client, agent):
            pass
    assert await history(client) == []


async def test_what_is_stopped_while_it_warms_up_ends_quietly(server: Server, client: Client) -> None:
    from bus.worker.worker import serve

    agent, warming = pricing(), asyncio.Event()

    @agent.lifespan()
    async def model() -> AsyncIterator[None]:
        warming.set()
        await asyncio.sleep(600)
        yield

    stop = asyncio.Event()
    async with asyncio.timeout(BOUND_S), asyncio.TaskGroup() as tasks:
        tasks.create_task(serve(agent, stop, url=server.url))
        await warming.wait()
        stop.set()
    assert await history(client) == []


async def _nobody(client: Client) -> bool:
    return not await client.agents()


async def _has_lost(client: Client) -> bool:
    return any(isinstance(each, AgentLost) for each in await history(client))


async def _stands(client: Client, wanted: dict[str, str]) -> bool:
    return {each.version: each.status for each in await client.agents()} == wanted


async def _all_held(client: Client, count: int) -> bool:
    return sum(len(each.held) for each in await client.agents()) == count


async def test_who_is_asked_while_the_server_is_frozen_has_time_to_answer_when_it_goes_on(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The silence before said nothing of him, and the server may tell too late whom it has handed the question to."""
    async with (
        Connection.open(server.url, name="asks") as asking,
        Connection.open(server.url, name="answers") as answering,
    ):

        def answer(message: Message) -> None:
            asyncio.get_running_loop().call_later(0.1, answering.publish, message.reply, b"here")

        answering.subscribe("everybody", answer)
        await answering.flush(BOUND_S)
        publish = asking.publish
        monkeypatch.setattr(asking, "publish", lambda subject, data, *, headers, reply: publish(subject, reply=reply))
        await freeze(server.pid)
        reaching = asyncio.create_task(ask_all(asking, "everybody"))
        await asyncio.sleep(0.4)
        server.signal(signal.SIGCONT)
        assert [each.data for each in (await reaching).answers] == [b"here"]
