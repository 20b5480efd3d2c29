"""Attention and progress as projections: typed rows that follow from kept ones, as of now, a position or a time."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from bus import Approval, Client, Phase, Plan, connect
from bus.broker.server import Server
from bus.clock import utc_now
from bus.errors import NotFound
from projections.attention import Concern
from projections.derived import ATTENTION, PROGRESS
from projections.kept import Kept, derived
from projections.progress import Progress
from projections.runner import Runner
from projections.shelf import Shelf, open_shelf
from tests.harness import serving, supervised, until
from tests.integration.test_projection_commands import phasebus
from tests.integration.test_runner import echo

PLAN = Plan("gated", phases=[Phase("work", "echo", input=1), Phase("review", approval=Approval(), after=["work"])])
BASES = {each.name: each for each in (*ATTENTION.of, *PROGRESS.of)}


async def gated(client: Client, run: str) -> int:
    """A run that waits at its gate, and the position at which it began to."""
    await client.start(PLAN, run=run)

    async def waits() -> bool:
        return (await client.runs.load(run)).phases["review"].status == "waiting"

    await until(waits)
    return (await client.runs.load(run)).position


async def kept(client: Client, shelf: Shelf) -> None:
    await Runner(client, shelf, BASES.values()).catch_up()


async def test_what_needs_a_look_is_asked_as_of_now_a_position_and_a_time(server: Server, tmp_path: Path) -> None:
    shelf = open_shelf(f"sqlite:///{tmp_path}/rows.db")
    async with supervised(server), serving(server, echo()), connect(server.url) as client:
        with pytest.raises(NotFound):
            await derived(client, shelf, ATTENTION)
        began = await gated(client, "one")
        await asyncio.sleep(0.01)
        then = utc_now()
        await client.approve("one", "review", by="ann")
        await client.start(Plan("sold", phases=[Phase("sell", "nobody")]), run="lonely")
        await kept(client, shelf)
        now = await derived(client, shelf, ATTENTION)
        assert now == {}
        waiting = await derived(client, shelf, ATTENTION, at=began)
        assert list(waiting) == ["one/review/approval"]
        [concern] = waiting.values()
        assert isinstance(concern, Concern)
        assert (concern.kind, concern.next_step) == ("waiting", "phasebus run approve one review")
        assert await derived(client, shelf, ATTENTION, at=then) == waiting
        # Nothing has happened since, and yet it is something to look at by then: rows hold instants.
        rows = {each.name: await (await Kept.find(client, shelf, each)).rows() for each in ATTENTION.of}
        later = ATTENTION.derive(rows, utc_now() + timedelta(minutes=1))
        assert list(later) == ["lonely/sell/unserved"]
        one, other = [(await derived(client, shelf, PROGRESS, at=each))["one"] for each in (began, None)]
        assert isinstance(one, Progress)
        assert (one.phases_done, one.gates_left, other.phases_done, other.fraction) == (1, 1, 2, 1.0)
    shelf.close()


async def test_they_are_built_and_asked_by_the_command(server: Server, tmp_path: Path) -> None:
    async with supervised(server), serving(server, echo()), connect(server.url) as client:
        began = await gated(client, "one")
        await client.approve("one", "review", by="ann")
    built = [each["projection"] for each in phasebus(server, tmp_path, "rebuild", "attention", "progress")]
    assert built == ["runs", "agents", "breakers"]
    assert phasebus(server, tmp_path, "query", "attention") == []
    [waiting] = phasebus(server, tmp_path, "query", "attention", "--at", str(began))
    assert waiting["key"] == "one/review/approval"
    [far] = phasebus(server, tmp_path, "query", "progress", "one")
    assert far["row"]["fraction"] == 1.0  # type: ignore[index]
