"""Projections of a real log: built, followed live, as of a position, and past records that are no commits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing

import msgspec
from structlog.testing import capture_logs

from bus import Agent, Approval, Client, Phase, Plan, connect, ref
from bus.broker.server import Server
from bus.clock import utc_now
from bus.format.envelope import decode, encode
from bus.rules.run import RunState
from projections.attention import Living, concerns
from projections.catchup import build, follow
from projections.history import History, learn
from projections.progress import progress
from projections.projection import View
from projections.runs import RUNS, rows
from tests.harness import BOUND_S, serving

PLAN = Plan(
    "squares",
    phases=[
        Phase("each", "square", each=ref("input.numbers"), width=4),
        Phase("ok", approval=Approval(prompt="Fine?"), after=["each"]),
    ],
)
POISON = [b"", b"\xff\xfe", b"{}", b"[" * 5_000, b'{"specversion":"1.0","id":"1","source":"/x"}']


def squares() -> Agent:
    agent = Agent("squares")

    @agent.capability("square", concurrency=4)
    async def square(number: int) -> int:
        return number * number

    return agent


async def seen(client: Client, condition: Callable[[View[RunState]], bool]) -> View[RunState]:
    """What a follower sees as soon as the condition holds."""
    async with asyncio.timeout(BOUND_S), aclosing(follow(client, RUNS)) as views:
        async for view in views:
            if condition(view):
                return view
    raise AssertionError("following never ends by itself")


async def test_an_empty_log_has_a_state_at_position_0(server: Server) -> None:
    async with connect(server.url) as client:
        assert await build(client, RUNS) == View()
        assert await seen(client, lambda _: True) == View()


async def test_a_follower_sees_what_a_rebuild_sees_at_every_position(server: Server) -> None:
    async with serving(server, squares()), connect(server.url) as client:
        following = asyncio.create_task(
            seen(client, lambda runs: bool(runs.rows) and not any(run.is_open for run in runs.rows.values()))
        )
        receipt = await client.start(PLAN, {"numbers": list(range(20))}, run="squares-1")
        waiting = await seen(client, _waits)
        now = utc_now()
        beats = await client.agents()
        living = Living({beat.instance for beat in beats}, {name for beat in beats for name in beat.capabilities})
        concern = concerns(waiting.rows.values(), living, History(), now)[0]
        assert (concern.kind, concern.next_step) == ("waiting", "phasebus run approve squares-1 ok")
        done = progress(waiting.rows["squares-1"], History(), now)
        assert (done.phases_done, done.items_done, done.items_total, done.gates_left) == (1, 20, 20, 1)

        await client.approve(receipt.run, "ok", by="ann")
        last = await following
        assert last == await build(client, RUNS)
        assert await build(client, RUNS, upto=waiting.position) == waiting
        assert last.rows[receipt.run] == await client.runs.load(receipt.run)
        assert [(row.run, row.status, row.current) for row in rows(last.rows, utc_now())] == [
            ("squares-1", "completed", ())
        ]
        assert {kind.phase for kind in learn(last.rows.values()).phases} == {"each"}


async def test_records_that_are_no_commits_are_counted_and_logged_and_do_not_stop_a_projection(
    server: Server,
) -> None:
    async with serving(server, squares()), connect(server.url) as client:
        following = asyncio.create_task(seen(client, lambda runs: "later" in runs.rows))
        await client.start(PLAN, {"numbers": [1]}, run="first")
        record = await client.log.last(client.subjects.run("first"))
        assert record is not None
        # Well formed, but on another run's subject; and a commit that can't be a run's first.
        elsewhere = msgspec.structs.replace(decode(record.body), id="elsewhere")
        stray = msgspec.structs.replace(
            elsewhere, id="stray", runid="stray", data=msgspec.Raw(b'{"events":[{"type":"run.completed.v1"}]}')
        )
        with capture_logs() as logs:
            for body in [*POISON, encode(elsewhere)]:
                await client.connection.request(client.subjects.run("broken"), body, timeout_s=5)
            await client.connection.request(client.subjects.run("stray"), encode(stray), timeout_s=5)
            await client.start(PLAN, {"numbers": [1]}, run="later")
            live = await following
        assert set(live.rows) == {"first", "later"}
        assert [aside.subject.split(".")[-1] for aside in live.asides] == ["broken"] * 6 + ["stray"]
        said = [log["position"] for log in logs if log["event"] == "set aside"]
        assert said == [aside.position for aside in live.asides]
        assert set((await build(client, RUNS)).rows) == {"first", "later"}


def _waits(runs: View[RunState]) -> bool:
    return any(run.phases["ok"].status == "waiting" for run in runs.rows.values())
