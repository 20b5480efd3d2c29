"""Routes: work of a capability shared out among versions of those who have it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial

import msgspec
import pytest

from bus import Agent, Client, Context, Phase, Plan, Retry, connect, ref
from bus.broker.server import Server
from bus.cache.cache import Cache
from bus.errors import NoLiveAgent, NotFound, Refused, SettingsError
from bus.format.subjects import routed
from bus.rules.events import Arm
from bus.runs.recovery import STARVED
from bus.runs.task import WORK
from tests.harness import BOUND_S, agents_there, serving, supervised, until

SENT = 200


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


def pricer(version: str, done: Counter[str] | None = None, *, concurrency: int = 8, ordered: bool = False) -> Agent:
    agent = Agent("pricing", version=version)

    @agent.capability("price", concurrency=concurrency, ordered=ordered)
    async def price(_: object) -> str:
        if done is not None:
            done[version] += 1
        return version

    @agent.capability("relay", concurrency=concurrency)
    async def relay(fast: bool, context: Context) -> str:
        return await context.client.ask("price", 1, str, fast=fast)

    return agent


async def follows(client: Client, capability: str, *versions: str) -> None:
    """Wait until those who are there take what the route gives them."""
    for each in versions:
        await until(partial(client.signposts.is_offered, routed(each, capability), 1.0))


async def arm_of(client: Client, run: str, phase: str = WORK) -> Arm | None:
    state = await client.result(run, timeout_s=BOUND_S)
    item = state.phases[phase].items[0]
    assert item.attempts[-1].arm == item.arm
    return item.arm


async def test_each_version_gets_its_part_and_the_log_says_who_got_what(server: Server, client: Client) -> None:
    done: Counter[str] = Counter()
    async with serving(server, pricer("1.4.0", done), pricer("2.0.0", done)):
        turn = await client.set_route("price", {"1.*": 75, "2.0.0": 25}, by="ann", reason="canary")
        await follows(client, "price", "1.*", "2.0.0")
        runs = [(await client.send("price", number)).run for number in range(SENT)]
        arms = [await arm_of(client, run) for run in runs]
        # Six standard deviations of 200 at one in four.
        assert abs(done["2.0.0"] - SENT / 4) < 37
        assert done.total() == SENT
        for run, arm in zip(runs, arms, strict=True):
            assert arm is not None and turn.route is not None
            assert (arm.versions, arm.route) == (turn.route.chosen(run), turn.revision)
            answer = client.output(await client.result(run, timeout_s=BOUND_S), WORK, str)
            assert {"1.*": "1.4.0", "2.0.0": "2.0.0"}[arm.versions] == answer


@pytest.mark.parametrize("fast", [True, False])
async def test_questions_are_shared_out_and_what_is_sticky_to_the_same_goes_the_same_way(
    server: Server, client: Client, fast: bool
) -> None:
    async with serving(server, pricer("1.4.0"), pricer("2.0.0")):
        await client.set_route("price", {"1.*": 50, "2.0.0": 50}, by="ann")
        await follows(client, "price", "1.*", "2.0.0")
        got = Counter([await client.ask("price", 1, str, fast=fast) for _ in range(100)])
        assert 20 < got["2.0.0"] < 80
        for customer in ("ada", "ben", "cem", "dan"):
            sticky = {await client.ask("price", 1, str, fast=fast, sticky=customer) for _ in range(5)}
            # What a handler asks for goes on with what its own work sticks to.
            relayed = {await client.ask("relay", fast, str, sticky=customer) for _ in range(3)}
            sent = client.output(
                await client.result((await client.send("price", 1, sticky=customer)).run, timeout_s=BOUND_S), WORK
            )
            assert sticky | relayed | {sent} == sticky and len(sticky) == 1


async def test_phases_of_a_run_go_the_same_way_and_so_do_their_retries(server: Server, client: Client) -> None:
    tried: Counter[str] = Counter()

    def flaky(version: str) -> Agent:
        agent = Agent("writer", version=version)

        @agent.capability("write")
        async def write(_: object, context: Context) -> str:
            tried[context.run] += 1
            if context.attempt == 1:
                raise Retry(0.0)
            return version

        return agent

    plan = Plan(
        "letters",
        phases=[Phase("one", "write"), Phase("each", "write", each=ref("input.of"), after=["one"])],
    )
    async with supervised(server), serving(server, flaky("1.0"), flaky("2.0")):
        await client.set_route("write", {"1.0": 50, "2.0": 50}, by="ann")
        await follows(client, "write", "1.0", "2.0")
        seen = set()
        for number in range(6):
            run = (await client.start(plan, {"of": [1, 2, 3]}, run=f"letters-{number}")).run
            state = await client.result(run, timeout_s=BOUND_S)
            given = {item.output.value for phase in state.phases.values() for item in phase.items if item.output}
            arms = {each.arm for phase in state.phases.values() for item in phase.items for each in item.attempts}
            assert len(given) == len(arms) == 1
            assert tried[run] == 8
            seen |= given
        assert seen == {"1.0", "2.0"}


async def test_a_change_of_weights_holds_in_every_process_without_anybody_being_told(
    server: Server, client: Client
) -> None:
    done: Counter[str] = Counter()
    async with serving(server, pricer("1.4.0", done), pricer("2.0.0", done)), connect(server.url) as other:
        await other.ask("price", 0, str)
        await client.set_route("price", {"1.*": 100, "2.*": 0}, by="ann")
        await until(lambda: other.signposts.standing.get("price"))
        await follows(client, "price", "1.*")
        done.clear()
        assert {await other.ask("price", 1, str) for _ in range(20)} == {"1.4.0"}
        await client.set_route("price", {"1.*": 0, "2.*": 100}, by="ann")
        await until(lambda: other.signposts.standing["price"].revision == 2)
        await follows(client, "price", "2.*")
        assert {await other.ask("price", 1, str) for _ in range(20)} == {"2.0.0"}
        await client.remove_route("price", by="ann", reason="all are new")
        await until(lambda: not other.signposts.standing)
        assert await arm_of(client, (await other.send("price", 1)).run) is None


async def test_what_waits_for_versions_that_get_nothing_any_more_is_done_by_the_others(
    server: Server, client: Client
) -> None:
    gate = asyncio.Event()
    agent = Agent("pricing", version="2.0.0")

    @agent.capability("price")
    async def price(_: object) -> str:
        await gate.wait()
        return "2.0.0"

    async with supervised(server), serving(server, pricer("1.4.0"), agent):
        await client.set_route("price", {"1.*": 0, "2.0.0": 100}, by="ann")
        await follows(client, "price", "2.0.0")
        runs = [(await client.send("price", number)).run for number in range(5)]
        await until(lambda: _held(client, 1))
        await client.set_route("price", {"1.*": 100, "2.0.0": 0}, by="ann", reason="it hangs")
        await until(lambda: _ended(client, runs, 4))
        gate.set()
        arms = Counter([arm.versions if (arm := await arm_of(client, run)) else "" for run in runs])
        assert arms == {"1.*": 4, "2.0.0": 1}
        await client.remove_route("price", by="ann")
        await client.ask("price", 1, str)


async def _held(client: Client, count: int) -> bool:
    return sum(len(each.held) for each in await client.agents()) == count


async def _ended(client: Client, runs: list[str], count: int) -> bool:
    return [(await client.runs.load(run)).is_open for run in runs].count(False) == count


async def test_questions_go_to_the_others_at_once_if_an_arm_is_gone(server: Server, client: Client) -> None:
    async with serving(server, pricer("1.4.0")):
        await client.set_route("price", {"1.*": 50, "2.0.0": 50}, by="ann")
        await follows(client, "price", "1.*")
        assert {await client.ask("price", 1, str, fast=fast) for fast in (True, False) for _ in range(20)} == {"1.4.0"}
        runs = [(await client.send("price", number)).run for number in range(20)]
        arms = [await arm_of(client, run) for run in runs]
        assert {(arm.versions, arm.instead_of) for arm in arms if arm} == {("1.*", ""), ("1.*", "2.0.0")}


async def test_what_an_instance_that_is_gone_has_left_behind_is_done_by_the_others(
    server: Server, client: Client
) -> None:
    plan = Plan("two", phases=[Phase("one", "relay", input=False), Phase("two", "price", after=["one"])])
    async with supervised(server, lease_s=0.5, beat_s=0.2), serving(server, pricer("1.4.0")):
        async with serving(server, pricer("2.0.0")):
            await client.set_route("price", {"1.*": 1, "2.0.0": 1e9}, by="ann")
            await follows(client, "price", "1.*", "2.0.0")
            assert await client.ask("price", 1, str) == "2.0.0"
        run = (await client.start(plan)).run
        assert await arm_of(client, run, "two") == Arm("1.*", 1, instead_of="2.0.0")


async def test_if_nobody_of_any_arm_is_there_the_work_waits_and_that_is_told(server: Server, client: Client) -> None:
    async with supervised(server, lease_s=0.5, beat_s=0.2), serving(server, pricer("1.4.0")):
        await client.set_route("price", {"3.*": 100}, by="ann")
        with pytest.raises(NoLiveAgent):
            await client.ask("price", 1, str)
        with pytest.raises(NoLiveAgent):
            await client.ask("price", 1, str, fast=True)
        receipt = await client.send("price", 1)
        assert list(receipt.unserved) == ["price"]
        starved = [each async for each in _until_starved(client)]
        assert starved[-1]["capability"] == "price" and starved[-1]["versions"] == "3.*"
        async with serving(server, pricer("3.1.0")):
            assert (await arm_of(client, receipt.run)) == Arm("3.*", 1)


async def _until_starved(client: Client) -> AsyncIterator[dict[str, object]]:
    async with asyncio.timeout(BOUND_S):
        async for each in client.events(types=[STARVED], follow=True):
            assert each.message is not None
            yield msgspec.json.decode(each.message.data)
            return


async def test_work_with_a_key_keeps_its_order_while_its_versions_change(server: Server, client: Client) -> None:
    order: dict[str, list[int]] = {}

    def booker(version: str) -> Agent:
        agent = Agent("booking", version=version)

        @agent.capability("book", ordered=True, concurrency=4)
        async def book(given: list[object]) -> str:
            key, number = given
            await asyncio.sleep(0.002)
            order.setdefault(str(key), []).append(int(str(number)))
            return version

        return agent

    async with supervised(server), serving(server, booker("1.0"), booker("2.0")):
        await client.set_route("book", {"1.0": 50, "2.0": 50}, by="ann")
        await follows(client, "book", "1.0", "2.0")
        runs: dict[str, list[str]] = {}
        for number in range(8):
            if number == 4:
                await client.set_route("book", {"1.0": 5, "2.0": 95}, by="ann")
            for key in ("ada", "ben", "cem", "dan"):
                runs.setdefault(key, []).append((await client.send("book", [key, number], key=key)).run)
        for key, sent in runs.items():
            states = [await client.result(run, timeout_s=BOUND_S) for run in sent]
            arms = [state.phases[WORK].items[0].arm for state in states]
            assert all(
                arm is not None and arm.versions == client.output(state, WORK)
                for arm, state in zip(arms, states, strict=True)
            )
            assert len({(arm.route, arm.versions) for arm in arms if arm}) == 2
            assert order[key] == list(range(8))


async def test_what_is_cached_and_what_stands_by_go_on_as_they_were(server: Server, client: Client) -> None:
    done: Counter[str] = Counter()

    def cached(version: str, *, standby: bool = False) -> Agent:
        agent = Agent("pricing", version=version, standby=standby)

        @agent.capability("price", cache=Cache(version="1"))
        async def price(_: int) -> str:
            done[f"{version}{' spare' if standby else ''}"] += 1
            return version

        return agent

    async with serving(server, cached("2.0.0"), cached("2.0.0", standby=True)):
        await client.set_route("price", {"2.0.0": 1}, by="ann")
        await follows(client, "price", "2.0.0")
        for _ in range(3):
            await client.result((await client.send("price", 7)).run, timeout_s=BOUND_S)
        assert done == {"2.0.0": 1}


async def test_a_version_that_is_asked_for_is_given_whatever_the_route_says(server: Server, client: Client) -> None:
    agent = Agent("pricing", version="1.4.0")

    @agent.capability("price", versioned=True)
    async def price(_: object) -> str:
        return "1.4.0"

    async with serving(server, agent):
        await client.set_route("price", {"2.0.0": 1}, by="ann")
        run = (await client.send("price", 1, version="1.*")).run
        assert await arm_of(client, run) is None


async def test_who_hears_topics_is_routed_and_what_is_told_is_not(server: Server, client: Client) -> None:
    heard: Counter[str] = Counter()

    def listener(version: str) -> Agent:
        agent = Agent("listener", version=version)

        @agent.subscribe("news.*", name="news")
        async def news(_: object) -> None:
            heard[version] += 1

        return agent

    with pytest.raises(SettingsError, match="no other way"):
        await client.set_route("agent.listener.mail", {"*": 1}, by="ann")
    async with serving(server, listener("1"), listener("2")):
        await client.set_route("agent.listener.on.news", {"1": 0, "2": 1}, by="ann")
        await follows(client, "agent.listener.on.news", "2")
        for number in range(5):
            await client.publish("news.today", number)
        await until(lambda: heard.total() == 5)
    assert heard == {"2": 5}


async def test_routes_outlive_the_server_and_all_processes(server: Server) -> None:
    async with connect(server.url) as client:
        await client.set_route("price", {"1.*": 95, "2.0.0": 5}, by="ann", reason="canary")
    async with connect(server.url) as client:
        (turn,) = await client.routes()
        assert turn.route is not None and turn.route.part("2.0.0") == 0.05
        assert (turn.by, turn.reason, turn.revision) == ("ann", "canary", 1)


async def test_nobody_undoes_what_somebody_else_has_set_unseen(client: Client) -> None:
    await client.set_route("price", {"1.*": 95, "2.0.0": 5}, by="ann")
    await client.set_route("price", {"1.*": 80, "2.0.0": 20}, by="ben", seen=1)
    with pytest.raises(Refused, match="at revision 2, not 1"):
        await client.set_route("price", {"1.*": 100}, by="ann", seen=1)
    both = (client.set_route("price", {"1.*": 50, "2.0.0": share}, by="cem", seen=2) for share in (1, 2))
    outcomes = await asyncio.gather(*both, return_exceptions=True)
    assert sum(isinstance(each, Refused) for each in outcomes) == 1
    await client.remove_route("price", by="ann")
    with pytest.raises(NotFound):
        await client.remove_route("price", by="ann")
    with pytest.raises(NotFound):
        await client.route("ship")
    turns = [each async for each in client.turns("price")]
    assert [(each.revision, each.by, each.route is not None) for each in turns] == [
        (4, "ann", False),
        (3, "cem", True),
        (2, "ben", True),
        (1, "ann", True),
    ]
    assert turns[0].at - turns[-1].at < timedelta(seconds=BOUND_S)


@pytest.mark.parametrize("weights", [{}, {"1.*": 0}, {"1.*": -1}, {">1,,>": 1}, {">=x": 1}, {"1.*": float("nan")}])
async def test_a_route_that_gives_nobody_anything_is_refused(client: Client, weights: dict[str, float]) -> None:
    with pytest.raises(SettingsError):
        await client.set_route("price", weights, by="ann")


async def test_those_who_come_later_take_their_part_at_once(server: Server, client: Client) -> None:
    async with serving(server, pricer("1.4.0")):
        await client.set_route("price", {"1.*": 0.001, "*": 1e6}, by="ann")
        async with serving(server, pricer("dev")):
            await agents_there(client, 2)
            await follows(client, "price", "*")
            assert await client.ask("price", 1, str) == "dev"
