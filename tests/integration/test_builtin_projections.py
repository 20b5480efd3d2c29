"""The projections that ship, of a real log: work, agents, failures, letters, causes, spend and locks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bus import Agent, Client, Context, LLMCall, Phase, Plan, Reject, RetryPolicy, connect
from bus.broker.server import Server
from projections.catalogue import BUILT_IN
from projections.catchup import build
from projections.causes import Told, tree
from projections.kept import Kept
from projections.letters import standing
from projections.projection import MEMORY, Projection
from projections.runner import Runner
from projections.shelf import open_shelf
from projections.traffic import by_agent, by_capability
from tests.harness import BOUND_S, serving, until

PLAN = Plan("news", phases=[Phase("fetch", "fetch"), Phase("sum", "sum", after=["fetch"])])
FRAIL = Plan("frail", phases=[Phase("try", "frail", retry=RetryPolicy(unknown=1, unknown_s=0.01))])


def reporter() -> Agent:
    agent = Agent("reporter", version="1.2.0")

    @agent.capability("fetch", concurrency=4)
    async def fetch(value: object, context: Context) -> str:
        call = LLMCall(
            provider="anthropic", model="large-1", input_tokens=100, output_tokens=20, cost_usd=0.01, latency_s=2.0
        )
        await context.spent(call)
        return "text"

    @agent.capability("sum", concurrency=4)
    def summarise(value: object, context: Context) -> int:
        context.spent(LLMCall(provider="openai", model="small", input_tokens=10, cached=True))
        return 1

    @agent.capability("frail")
    async def frail(value: object) -> None:
        raise Reject("unknown sku 'A-7'")

    return agent


async def rows(client: Client, projection: Projection[Any]) -> dict[str, Any]:
    found = await build(client, projection)
    assert not found.asides
    return {key: row for key, row in found.rows.items() if not key.startswith(MEMORY)}


@pytest.fixture
async def client(server: Server) -> Any:
    """A log in which two runs went well and two did not, and somebody held a lock."""
    async with serving(server, reporter()), connect(server.url) as client:
        for run in ("one", "two"):
            await client.start(PLAN, run=run)
            await client.result(run, timeout_s=BOUND_S)
        for run in ("three", "four"):
            await client.start(FRAIL, run=run)
            await until(lambda run=run: _has_ended(client, run))
        async with client.lock("deploy"):
            pass
        yield client


async def _has_ended(client: Client, run: str) -> bool:
    return not (await client.runs.load(run)).is_open


async def test_traffic_counts_work_and_measures_how_long_it_waited_and_took(client: Client) -> None:
    found = await rows(client, BUILT_IN["traffic"])
    assert set(found) == {"fetch/reporter", "sum/reporter", "frail/reporter"}
    fetch = found["fetch/reporter"]
    assert (fetch.taken, fetch.completed, fetch.failed, fetch.held) == (2, 2, 0, 0)
    assert fetch.queued.count == fetch.worked.count == 2
    assert 0 <= fetch.worked.percentile(0.5) <= fetch.worked.longest_s
    assert sum(minute.completed for minute in fetch.minutes.values()) == 2
    assert by_capability(found.values())["frail"].failed == 2
    [everything] = by_agent(found.values()).values()
    assert (everything.taken, everything.worked.count) == (6, 6)


async def test_agents_are_there_with_their_version_what_they_did_and_how_they_ended(client: Client) -> None:
    [row] = (await rows(client, BUILT_IN["agents"])).values()
    assert (row.agent, row.version, row.health) == ("reporter", "1.2.0", "registered")
    assert row.capabilities == {"fetch": 4, "sum": 4, "frail": 1}
    assert (row.taken, row.held, row.completed, row.failed) == (6, 0, 4, 2)


async def test_failures_that_are_alike_are_one_row_and_letters_say_how_their_work_stands(client: Client) -> None:
    [row] = (await rows(client, BUILT_IN["failures"])).values()
    assert (row.capability, row.code, row.error_class) == ("frail", "rejected", "permanent")
    assert (row.attempts, row.given_up, row.agents) == (2, 2, {"reporter": 2})
    assert [sample.run for sample in row.samples] == ["three", "three", "four", "four"]
    letters = (await rows(client, BUILT_IN["dead"])).values()
    runs = await rows(client, BUILT_IN["runs"])
    assert {letter.run: standing(letter, runs) for letter in letters} == {"three": "open", "four": "open"}
    [cause] = {letter.cause for letter in letters}
    assert cause in await rows(client, BUILT_IN["failures"])


async def test_the_causes_of_a_run_are_one_tree_from_its_start_to_its_end(client: Client) -> None:
    stories = await rows(client, BUILT_IN["causes"])
    [root] = tree([stories["one"]])
    assert root.word.said[0] == "run.started.v1"
    said = list(_all_said(root))
    assert said.index("phase.completed.v1 fetch") < said.index("phase.started.v1 sum")
    assert {"run.completed.v1", "llm.called.v1"} <= set(said)
    assert "dead.letter.v1" in list(_all_said(tree([stories["three"]])[0]))


def _all_said(told: Told) -> Any:
    yield from told.word.said
    for each in told.then:
        yield from _all_said(each)


async def test_what_models_cost_is_added_up_by_provider_model_agent_phase_and_run(client: Client) -> None:
    found = await rows(client, BUILT_IN["spend"])
    assert (found["all"].calls, found["all"].cached, found["all"].cost_usd) == (4, 2, 0.02)
    assert found["model/anthropic/large-1"].input_tokens == 200
    assert found["run/one"].cost_usd == found["provider/anthropic"].cost_usd / 2 == 0.01
    assert found["phase/news/sum"].calls == 2 and found["agent/reporter"].calls == 4
    assert found["provider/openai"].latency.count == 0


async def test_locks_say_who_has_them_and_how_they_were_given_back(client: Client) -> None:
    found = await rows(client, BUILT_IN["locks"])
    row = found["lock.deploy"]
    assert (row.holder, row.acquired, row.lost) == ("", 1, 0)
    assert row.ending.startswith("released by")


async def test_all_of_them_are_kept_as_a_rebuild_makes_them_and_as_of_before(client: Client, tmp_path: Path) -> None:
    shelf = open_shelf(f"sqlite:///{tmp_path / 'rows.db'}")
    try:
        upto = await Runner(client, shelf, BUILT_IN.values()).catch_up()
        for projection in BUILT_IN.values():
            kept = await Kept.find(client, shelf, projection)
            for position in (None, upto // 2):
                rebuilt = (await build(client, projection, upto=position)).rows
                expected = {key: row for key, row in rebuilt.items() if not key.startswith(MEMORY)}
                assert await kept.rows(at=position) == expected, projection.name
            assert shelf.asides(kept.build.id) == []
    finally:
        shelf.close()
