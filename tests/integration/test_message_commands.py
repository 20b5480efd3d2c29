"""`phasebus ask, send, tell, publish, subscribe` as they are typed, against a real server."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from bus import Agent, Context, connect
from bus.broker.server import Server
from console.failure import FAILED, OK, REFUSED, USAGE
from tests.harness import serving

PHASEBUS = Path(sys.executable).with_name("phasebus")

Type = Callable[..., Awaitable[str]]


@pytest.fixture
def typed(server: Server, tmp_path: Path) -> Type:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "PHASEBUS_"))}

    async def type_(*words: str, code: int = OK) -> str:
        process = await asyncio.create_subprocess_exec(
            PHASEBUS,
            *words,
            cwd=tmp_path,
            env=clean | {"NATS_URL": server.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        async with asyncio.timeout(30):
            out, error = await process.communicate()
        assert process.returncode == code, error.decode()
        return out.decode().strip()

    return type_


def clerk() -> Agent:
    agent = Agent("clerk")

    @agent.capability("double")
    async def double(number: int, context: Context) -> int:
        await context.emit(number)
        return number * 2

    @agent.mail()
    async def hear(number: int) -> None:
        """Heard."""

    return agent


async def test_an_answer_is_printed_with_its_parts_if_they_are_wanted(server: Server, typed: Type) -> None:
    async with serving(server, clerk()):
        assert await typed("ask", "double", "4") == "8"
        assert await typed("ask", "double", "4", "--fast") == "8"
        part, answer = (await typed("ask", "double", "4", "--stream")).splitlines()
        assert (json.loads(part), answer) == ({"index": 0, "attempt": 1, "part": 4}, "8")
        await typed("ask", "double", '"four"', code=FAILED)
        await typed("ask", "nobody", "4", code=REFUSED)
        await typed("ask", "double", "4", "--fast", "--stream", code=USAGE)


async def test_what_is_sent_again_under_its_id_has_the_same_run(server: Server, typed: Type) -> None:
    async with serving(server, clerk()):
        run = await typed("send", "double", "4", "--id", "order 7")
        again = json.loads(await typed("send", "double", "4", "--id", "order 7", "--json"))
        assert (again["run"], again["duplicate"]) == (run, True)
        await typed("send", "double", "5", "--id", "order 7", code=REFUSED)
        assert (await typed("tell", "clerk", "4", "--at", "2026-01-01T00:00:00+0000")).startswith("task-")


async def test_what_is_urgent_is_said_so_and_shown(server: Server, typed: Type) -> None:
    async with serving(server, clerk()):
        run = await typed("send", "double", "4", "--priority", "high", "--sender", "customer-7")
        assert "priority  high" in await typed("run", "show", run)
        assert await typed("ask", "double", "4", "--priority", "low") == "8"
        assert (await typed("ask", "double", "4", "--priority", "low", "--stream")).splitlines()[-1] == "8"
        await typed("ask", "double", "4", "--priority", "low", "--fast", code=USAGE)
        await typed("send", "double", "4", "--priority", "urgent", code=USAGE)


async def test_what_is_published_is_read_from_any_position(server: Server, typed: Type) -> None:
    async with connect(server.url):
        pass  # whoever connects first makes the bus; a command only looks for one
    position = int(await typed("publish", "orders.packed", '{"number": 7}'))
    news = json.loads(await typed("subscribe", "orders.*", "--after", str(position - 1), "--limit", "1"))
    assert (news["topic"], news["value"], news["position"]) == ("orders.packed", {"number": 7}, position)
    await typed("publish", "Not a topic", "1", code=USAGE)
