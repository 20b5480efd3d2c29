"""Forecasts are shown together with how often they have held."""

from __future__ import annotations

import asyncio
import json

from bus import Agent, Client, Phase, Plan, connect
from bus.broker.server import Server
from tests.harness import BOUND_S, serving, supervised, until
from tests.integration.test_cache import typed

PLAN = Plan("bake", phases=[Phase("a", "nap", input=0.02), Phase("b", "nap", input=0.02, after=["a"])])
LONG = Plan("bake", phases=[Phase("a", "nap", input=0.02), Phase("b", "nap", input=600.0, after=["a"])])


def baker() -> Agent:
    agent = Agent("baker")

    @agent.capability("nap")
    async def nap(s: float) -> None:
        await asyncio.sleep(s)

    return agent


async def is_held(client: Client, run: str) -> bool:
    return (await client.runs.load(run)).phases["b"].status == "in_progress"


async def test_what_is_left_is_told_with_how_often_that_held(server: Server) -> None:
    async with supervised(server), serving(server, baker()), connect(server.url) as client:
        for number in range(6):
            await client.start(PLAN, run=f"past-{number}")
            await client.result(f"past-{number}", timeout_s=BOUND_S)
        await client.start(LONG, run="now")
        await until(lambda: is_held(client, "now"))
        _, shown = await typed(server, "run", "show", "now")
        _, listed = await typed(server, "run", "ls", "--eta")
        first = (await typed(server, "run", "ls", "--eta", "--json"))[1].splitlines()[0]
        await client.cancel("now", by="test")
    [said] = [line for line in shown.splitlines() if line.startswith("progress")]
    assert "left (held " in said
    assert "LEFT" in listed and "left (held " in listed
    row = json.loads(first)
    assert row["run"] == "now" and row["progress"]["eta"]["p90_s"] >= 0 and row["scored"]["forecasts"] > 0
