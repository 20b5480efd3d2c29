"""`phasebus route` as it is typed, against a real server."""

from __future__ import annotations

import asyncio
import json
from functools import partial

import pytest

from bus import Agent, Reject, connect
from bus.broker.server import Server
from console.failure import NOT_FOUND, OK, REFUSED, USAGE
from tests.harness import BOUND_S, serving, supervised, until
from tests.integration.test_guard_commands import typed as typed_now
from tests.integration.test_routes import follows


async def typed(server: Server, *words: str, code: int = OK) -> str:
    return await asyncio.to_thread(partial(typed_now, server, *words, code=code))


def pricer(version: str) -> Agent:
    agent = Agent("pricing", version=version)

    @agent.capability("price")
    async def price(number: int) -> str:
        if version == "2.0.0" and number % 2:
            raise Reject("odd")
        return version

    return agent


async def test_a_route_is_set_seen_compared_and_removed(server: Server) -> None:
    async with serving(server, pricer("1.4.0"), pricer("2.0.0")), connect(server.url) as client:
        assert "no routes" in await typed(server, "route", "ls")
        said = await typed(server, "route", "set", "price", "1.*=50", "2.0.0=50", "--by", "ann", "--reason", "canary")
        assert said == "price: 1.* 50.0%, 2.0.0 50.0% (revision 1)\n"
        await follows(client, "price", "1.*", "2.0.0")
        runs = [(await client.send("price", number)).run for number in range(12)]
        states = [await client.result(run, timeout_s=BOUND_S) for run in runs]
        lines = (await typed(server, "route", "ls")).splitlines()
        assert lines[1].split()[:6] == ["price", "1.*", "50.0%,", "2.0.0", "50.0%", "1"]
        assert "ann" in lines[1] and "canary" in lines[1]
        shown = json.loads(await typed(server, "route", "show", "price", "--json"))
        assert sum(shown["arms"][each]["taken"] for each in ("1.*", "2.0.0")) >= 12
        assert shown["arms"]["1.*"]["failed"] == 0
        assert shown["live"] == {"1.*": 1, "2.0.0": 1}
        table = (await typed(server, "route", "show", "price")).splitlines()
        assert table[1].split()[:4] == ["1.*", "50", "50.0%", "1"]
        arm = states[0].phases["work"].items[0].arm
        assert arm is not None
        assert f"for {arm.versions} by revision 1 of the route" in await typed(server, "run", "show", runs[0])
        assert "by revision 1 of the route" in await typed(server, "events", "cat", "--run", runs[0])
        assert "anybody" in await typed(server, "route", "rm", "price", "--by", "ben")
        assert "no routes" in await typed(server, "route", "ls")
        assert "anybody" in await typed(server, "route", "show", "price")


@pytest.mark.parametrize("share", ["1.*", "=5", "1.*=much"])
async def test_what_is_no_share_is_said_so(server: Server, share: str) -> None:
    assert "1.*=95" in await typed(server, "route", "set", "price", share, code=USAGE)


async def test_a_route_is_not_set_over_one_that_was_not_seen(server: Server) -> None:
    async with connect(server.url):
        hints = await typed(server, "route", "set", "price", "1.*=1")
        assert "no live instance of 1.*" in hints
        assert "at revision 1, not 0" in await typed(
            server, "route", "set", "price", "2=1", "--seen", "0", code=REFUSED
        )
        assert "never had one" in await typed(server, "route", "show", "ship", code=NOT_FOUND)
        assert "never had one" in await typed(server, "route", "rm", "ship", code=NOT_FOUND)
        assert ">=x" in await typed(server, "route", "set", "price", ">=x=1", code=USAGE)


async def test_an_arm_without_anybody_is_named_to_who_looks(server: Server) -> None:
    async with supervised(server), serving(server, pricer("1.4.0")), connect(server.url) as client:
        await client.set_route("price", {"3.*": 1}, by="ann")
        await client.send("price", 1)

        async def is_told(*words: str) -> bool:
            return "offers 'price' of version 3.*" in await asyncio.to_thread(
                partial(typed_now, server, *words, code=1 if words == ("doctor",) else OK)
            )

        await until(partial(is_told, "attention"))
        await until(partial(is_told, "doctor"))
