"""Causality: what a handler starts belongs to its story, names its cause, and has no more time than is left."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

import bus
from bus import Agent, Client, Context, Phase, Plan
from bus.broker.server import Server
from bus.errors import SettingsError
from bus.rules.events import Commit, PhaseStarted
from tests.harness import BOUND_S, serving


async def _commits(client: Client, run: str) -> list[Commit]:
    return [commit async for commit in client.ledger.commits(run)]


def _chain() -> Agent:
    agent = Agent("chain")

    @agent.capability("first")
    async def first(depth: int, context: Context) -> list[str]:
        receipt = await context.client.send("second", depth)
        return [context.run, receipt.run]

    @agent.capability("second")
    def second(depth: int, context: Context) -> str:
        return context.correlation

    @agent.capability("elsewhere")
    async def elsewhere(url: str) -> str:
        async with bus.connect(url) as client:
            return (await client.send("second", 1)).run

    return agent


async def test_what_a_handler_sends_belongs_to_its_story_and_names_its_cause(server: Server) -> None:
    async with serving(server, _chain()), bus.connect(server.url) as client:
        outer, inner = await client.ask("first", 1, list[str])
        assert await client.result(inner, timeout_s=BOUND_S)
        begun = await _commits(client, outer)
        caused = await _commits(client, inner)
        assert {commit.correlation for commit in [*begun, *caused]} == {outer}
        taken = next(commit for commit in begun if any(isinstance(each, PhaseStarted) for each in commit.events))
        assert caused[0].causation == taken.id
        state = await client.result(inner, timeout_s=BOUND_S)
        assert client.output(state, "work", str) == outer


async def test_each_commit_of_a_run_names_the_one_it_came_of(server: Server) -> None:
    plan = Plan("two", phases=[Phase("a", "second", input=1), Phase("b", "second", input=2, after=["a"])])
    async with serving(server, _chain()), bus.connect(server.url) as client:
        run = (await client.start(plan)).run
        await client.result(run, timeout_s=BOUND_S)
        commits = await _commits(client, run)
        known = {commit.id for commit in commits}
        assert commits[0].causation is None
        assert all(commit.causation in known for commit in commits[1:])


async def test_a_child_run_belongs_to_the_story_of_its_parent(server: Server) -> None:
    child = Plan("inside", phases=[Phase("a", "second", input=1)])
    plan = Plan("outside", phases=[Phase("child", plan=child)])
    async with serving(server, _chain()), bus.connect(server.url) as client:
        run = (await client.start(plan)).run
        state = await client.result(run, timeout_s=BOUND_S)
        (begun, *_) = await _commits(client, run)
        inside = await _commits(client, state.phases["child"].child)
        assert {commit.correlation for commit in inside} == {run}
        assert inside[0].causation == begun.id


async def test_a_client_that_a_handler_makes_itself_goes_on_with_the_story(server: Server) -> None:
    async with serving(server, _chain()), bus.connect(server.url) as client:
        inner = await client.ask("elsewhere", server.url, str)
        assert (await _commits(client, inner))[0].correlation not in (None, inner)


async def test_an_ask_within_a_handler_has_no_more_time_than_its_handler(server: Server) -> None:
    agent = Agent("nested")

    @agent.capability("outer", timeout_s=3)
    async def outer(_: int, context: Context) -> str:
        asking = asyncio.create_task(context.client.ask("inner", 1, str, timeout_s=600))
        return await asking

    @agent.capability("inner")
    async def inner(_: int, context: Context) -> str:
        return context.run

    async with serving(server, agent), bus.connect(server.url) as client:
        run = await client.ask("outer", 1, str)
        state = await client.runs.load(run)
        assert state.deadline_at - state.started_at <= timedelta(seconds=3)


async def test_a_context_without_a_worker_says_that_it_has_no_client() -> None:
    with pytest.raises(SettingsError, match="no client"):
        _ = Context().client
