"""Rows of projections, subscribed to: everything as it is, then what changes, whoever dies meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from bus import Client, connect
from bus.broker.server import Server
from bus.errors import NotFound
from bus.history.rows import Mark, RowsAsked
from projections import changes, serving
from projections.catchup import build
from projections.changes import Changed
from projections.kept import Kept
from projections.projection import Projection, R, Rows
from projections.runner import Runner
from projections.runs import RUNS, Glance
from projections.shelf import Shelf, open_shelf
from tests.harness import BOUND_S
from tests.harness import serving as agents
from tests.integration.test_runner import COUNTS, Count, completed, echo


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    opened = open_shelf(f"sqlite:///{tmp_path / 'rows.db'}")
    yield opened
    opened.close()


@asynccontextmanager
async def keeping(client: Client, shelf: Shelf, *projections: Projection[R]) -> AsyncIterator[None]:
    """What `phasebus projection run` does."""
    stop = asyncio.Event()
    async with serving.serving(client, shelf, projections) as served, asyncio.TaskGroup() as tasks:
        runner = Runner(client, shelf, projections, on_changed=served.changed)
        await runner.catch_up()
        tasks.create_task(runner.run(stop))
        try:
            yield
        finally:
            stop.set()


async def taken(stream: AsyncGenerator[Changed[R], None], rows: dict[str, R], wanted: dict[str, R]) -> Changed[R]:
    """Apply changes until the rows are those wanted; the last one."""
    async with asyncio.timeout(BOUND_S):
        async for change in stream:
            change.apply(rows)
            if not change.more and rows == wanted:
                return change
    raise AssertionError("the stream ended")


async def test_all_rows_come_first_and_then_what_changes_to_whoever_may_only_read(server: Server, shelf: Shelf) -> None:
    async with (
        agents(server, echo()),
        connect(server.url) as client,
        connect(server.auditor_url) as auditor,
        keeping(client, shelf, COUNTS, RUNS),
    ):
        await completed(client, "one")
        rows: dict[str, Count] = {}
        async with aclosing(changes.kept(auditor, COUNTS)) as stream:
            await taken(stream, rows, {"a": Count(1), "b": Count(1)})
            await completed(client, "two")
            last = await taken(stream, rows, {"a": Count(2), "b": Count(2)})
        assert last.position <= (await client.log.last("bus.>")).position  # type: ignore[union-attr]
        wanted = dict((await build(client, RUNS)).rows)
        async with aclosing(changes.kept(auditor, RUNS)) as runs:
            await taken(runs, {}, wanted)
        async with aclosing(changes.glances(auditor, RUNS, Glance)) as glances:
            seen = (await anext(glances)).rows
        assert {key: row.status for key, row in seen.items() if row} == {"one": "completed", "two": "completed"}


async def test_whoever_comes_back_with_a_mark_gets_what_has_changed_since_and_nothing_else(
    server: Server, shelf: Shelf
) -> None:
    async with agents(server, echo()), connect(server.url) as client, keeping(client, shelf, RUNS):
        await completed(client, "one")
        rows: dict[str, object] = {}
        async with aclosing(changes.kept(client, RUNS)) as stream:
            mark = (await taken(stream, rows, dict((await build(client, RUNS)).rows))).mark
        await completed(client, "two")
        wanted = dict((await build(client, RUNS)).rows)
        # As it would have been stored in between.
        mark = msgspec.json.decode(msgspec.json.encode(mark), type=Mark)
        later: dict[str, object] = {"one": wanted["one"]}
        async with aclosing(changes.kept(client, RUNS, since=mark)) as stream:
            async with asyncio.timeout(BOUND_S):
                async for change in stream:
                    assert not change.afresh
                    assert set(change.rows) <= {"two"}
                    change.apply(later)
                    if later == wanted:
                        break


def _spread(rows: Rows[Count], happening: object) -> None:
    """Many rows from few events, one of which comes and goes, and one that is too large for a message."""
    count = (rows.get("0") or Count(0)).completed + 1
    for number in range(1_200):
        rows[str(number)] = Count(count)
    if "flicker" in rows:
        del rows["flicker"]
    else:
        rows["flicker"] = Count(count)


SPREAD = Projection(name="spread", version=1, row=Count, fold=_spread, subjects=["run.*"])


async def test_rows_come_in_pages_and_what_is_gone_is_said(server: Server, shelf: Shelf) -> None:
    async with agents(server, echo()), connect(server.url) as client, keeping(client, shelf, SPREAD):
        rows: dict[str, Count] = {}
        async with aclosing(changes.kept(client, SPREAD)) as stream:
            first = await anext(stream)
            assert not first.rows and not first.more
            for run in ("one", "two", "three"):
                await completed(client, run)
                await taken(stream, rows, dict((await build(client, SPREAD)).rows))
        async with aclosing(changes.kept(client, SPREAD)) as stream:
            page = await anext(stream)
            assert page.afresh and page.more and len(page.rows) == 500
            # In the middle of the pages everything changes; from there on, the rest comes as it is then.
            half = dict(page.rows)
            await completed(client, "four")
            wanted = dict((await build(client, SPREAD)).rows)
        resumed = {key: row for key, row in half.items() if row is not None}
        async with aclosing(changes.kept(client, SPREAD, since=page.mark)) as stream:
            await taken(stream, resumed, wanted)


class Text(msgspec.Struct, frozen=True):
    text: str


def _grow(rows: Rows[Text], happening: object) -> None:
    before = rows.get("large") or Text("x")
    rows["large"] = Text(before.text * 1_100)


LARGE = Projection(
    name="large", version=1, row=Text, fold=_grow, subjects=["topic.>"], glance=lambda row: len(row.text)
)


async def test_a_row_too_large_for_a_message_is_named_with_its_size(server: Server, shelf: Shelf) -> None:
    async with connect(server.url) as client, keeping(client, shelf, LARGE):
        rows: dict[str, Text] = {}
        async with aclosing(changes.kept(client, LARGE)) as stream:
            await client.publish("a", 1)
            await taken(stream, rows, {"large": Text("x" * 1_100)})
            await client.publish("a", 2)
            last = await taken(stream, rows, {})
            assert last.omitted["large"] > 1_100 * 1_100
        async with aclosing(changes.glances(client, LARGE, int)) as lengths:
            assert (await anext(lengths)).rows == {"large": 1_100 * 1_100}


async def test_a_rebuild_begins_afresh_with_the_same_rows(server: Server, shelf: Shelf) -> None:
    async with agents(server, echo()), connect(server.url) as client, keeping(client, shelf, COUNTS):
        await completed(client, "one")
        rows: dict[str, Count] = {}
        async with aclosing(changes.kept(client, COUNTS)) as stream:
            await taken(stream, rows, {"a": Count(1), "b": Count(1)})
            await Runner(client, shelf, [COUNTS]).catch_up(afresh=True)
            await completed(client, "two")
            await taken(stream, rows, {"a": Count(2), "b": Count(2)})


async def test_of_two_shelves_whoever_has_begun_with_one_stays_with_it(
    server: Server, shelf: Shelf, tmp_path: Path
) -> None:
    other = open_shelf(f"sqlite:///{tmp_path / 'other.db'}")
    async with agents(server, echo()), connect(server.url) as client, connect(server.url) as second:
        await completed(client, "one")
        async with keeping(client, shelf, COUNTS), keeping(second, other, COUNTS):
            builds = {(await Kept.find(client, each, COUNTS)).build.id for each in (shelf, other)}
            assert len(builds) == 2
            for build_id in builds:
                for _ in range(10):
                    asked = msgspec.json.encode(RowsAsked(Mark(build_id, 1)))
                    answer = await client.connection.request("bus.rows.counts", asked, timeout_s=5)
                    page = json.loads(answer.data)
                    assert page["mark"]["build"] == build_id and not page.get("afresh")
    other.close()


async def test_nobody_keeps_it_is_said_at_once_also_to_whoever_may_only_read(server: Server) -> None:
    async with connect(server.url) as client, connect(server.auditor_url) as auditor:
        for each in (client, auditor):
            with pytest.raises(NotFound, match="nobody keeps projection 'counts'"):
                await anext(changes.kept(each, COUNTS))


async def test_what_is_no_question_is_answered_with_the_reason(server: Server, shelf: Shelf) -> None:
    async with connect(server.url) as client, keeping(client, shelf, COUNTS):
        for body in (b"\xff", b"[]", b'{"mark": 3}'):
            answer = await client.connection.request("bus.rows.counts", body, timeout_s=5)
            assert "no RowsAsked" in json.loads(answer.data)["problem"]
        large = await client.connection.request("bus.rows.counts", b" " * 5_000, timeout_s=5)
        assert "4096 bytes at most" in json.loads(large.data)["problem"]
        # A build that nobody can have is as good as one that nobody has any more.
        for name in ("no such thing", "counts/1/0f9e8d7c", "\n", "*"):
            asked = msgspec.json.encode(RowsAsked(Mark(name, 7)))
            answer = await client.connection.request("bus.rows.counts", asked, timeout_s=5)
            assert json.loads(answer.data)["afresh"]
        # And an empty question asks for everything.
        assert json.loads((await client.connection.request("bus.rows.counts", timeout_s=5)).data)["afresh"]


async def test_a_subscriber_goes_on_when_server_and_runner_were_away(server: Server, shelf: Shelf) -> None:
    rows: dict[str, Count] = {}
    async with (
        agents(server, echo()),
        connect(server.url) as client,
        connect(server.auditor_url) as auditor,
        aclosing(changes.kept(auditor, COUNTS)) as stream,
    ):
        async with keeping(client, shelf, COUNTS):
            await completed(client, "one")
            await taken(stream, rows, {"a": Count(1), "b": Count(1)})
            await server.restart()
            await completed(client, "two")
            await taken(stream, rows, {"a": Count(2), "b": Count(2)})
        await completed(client, "three")
        going = asyncio.create_task(taken(stream, rows, {"a": Count(4), "b": Count(4)}))
        async with keeping(client, shelf, COUNTS):
            await completed(client, "four")
            assert not (await going).afresh


async def test_what_is_folded_here_changes_like_what_is_kept(server: Server) -> None:
    async with agents(server, echo()), connect(server.url) as client, connect(server.auditor_url) as auditor:
        await completed(client, "one")
        rows: dict[str, Count] = {}
        async with aclosing(changes.folded(auditor, COUNTS)) as stream:
            first = await taken(stream, rows, {"a": Count(1), "b": Count(1)})
            assert first.afresh
            await completed(client, "two")
            await taken(stream, rows, {"a": Count(2), "b": Count(2)})
        async with aclosing(changes.folded(client, COUNTS, after=first.position)) as stream:
            assert (await anext(stream)).rows == {"a": Count(2), "b": Count(2)}
