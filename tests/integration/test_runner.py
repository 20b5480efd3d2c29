"""Projections that are kept: resumed, rebuilt beside the served one, as of the past, and past what can't be folded."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
from msgspec import Struct

from bus import Agent, Client, Phase, Plan, connect
from bus.broker.server import Server
from bus.errors import NotFound, SettingsError
from bus.history.happening import Happening
from bus.rules.events import PhaseCompleted
from projections import runner as running
from projections.catchup import build, uncollected
from projections.kept import Kept
from projections.projection import Projection, Rows, each_of
from projections.runner import Runner
from projections.runs import RUNS
from projections.shelf import Build, Change, Shelf, ShelfDamaged, Step, open_shelf
from tests.harness import BOUND_S, serving

PLAN = Plan("two", phases=[Phase("a", "echo"), Phase("b", "echo", after=["a"])])


class Count(Struct, frozen=True):
    completed: int


def _count(rows: Rows[Count], happening: Happening) -> None:
    if isinstance(happening.event, PhaseCompleted):
        before = rows.get(happening.event.phase) or Count(0)
        rows[happening.event.phase] = Count(before.completed + 1)


COUNTS = Projection(
    name="counts", version=1, row=Count, fold=_count, subjects=["run.*"], glance=lambda row: row.completed
)


def echo() -> Agent:
    agent = Agent("echo")

    @agent.capability("echo", concurrency=8)
    async def answer(value: object) -> object:
        return value

    return agent


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    opened = open_shelf(f"sqlite:///{tmp_path / 'rows.db'}")
    yield opened
    opened.close()


async def completed(client: Client, *runs: str) -> None:
    await asyncio.gather(*(client.start(PLAN, run=run) for run in runs))
    await asyncio.gather(*(client.result(run, timeout_s=BOUND_S) for run in runs))


async def test_rows_and_position_are_kept_and_a_second_process_goes_on_from_there(server: Server, shelf: Shelf) -> None:
    async with serving(server, echo()), connect(server.url) as client:
        await completed(client, "one", "two")
        upto = await Runner(client, shelf, [RUNS, COUNTS]).catch_up()
        await completed(client, "three")
        later = Runner(client, shelf, [RUNS, COUNTS])
        assert await later.catch_up() > upto
        kept = await Kept.find(client, shelf, RUNS)
        assert await kept.rows() == dict((await build(client, RUNS)).rows)
        assert await (await Kept.find(client, shelf, COUNTS)).glances(int) == {"a": 3, "b": 3}
        assert await kept.row("nobody") is None


async def test_what_happens_reaches_the_rows_while_the_runner_runs(server: Server, shelf: Shelf) -> None:
    stop = asyncio.Event()
    async with serving(server, echo()), connect(server.url) as client:
        serving_rows = asyncio.create_task(Runner(client, shelf, [COUNTS]).run(stop))
        await completed(client, "one")
        async with asyncio.timeout(BOUND_S):
            while True:
                try:
                    found = await (await Kept.find(client, shelf, COUNTS)).rows()
                except NotFound:
                    found = {}
                if found == {"a": Count(1), "b": Count(1)}:
                    break
                await asyncio.sleep(0.01)
        stop.set()
        await serving_rows


async def test_a_rebuild_grows_beside_the_served_build_and_takes_its_place_whole(server: Server, shelf: Shelf) -> None:
    async with serving(server, echo()), connect(server.url) as client:
        await completed(client, "one")
        live = Runner(client, shelf, [COUNTS])
        await live.catch_up()
        before = await Kept.find(client, shelf, COUNTS)
        await Runner(client, shelf, [COUNTS]).catch_up(afresh=True)
        after = await Kept.find(client, shelf, COUNTS)
        assert after.build.id != before.build.id
        assert await after.rows() == {"a": Count(1), "b": Count(1)}
        assert await before.rows() == {}
        # The one that was replaced under its feet finds the new one.
        await completed(client, "two")
        await live.catch_up()
        assert await after.rows() == {"a": Count(2), "b": Count(2)}
        assert len(shelf.builds()) == 1


@pytest.mark.parametrize("step", ["_add", "_finish"])
async def test_a_rebuild_that_another_process_overtook_is_begun_again_and_not_given_up(
    step: str, server: Server, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    begin, original = Shelf.begin, getattr(Runner, step)

    def listed(self: Shelf, projection: str, version: int, log: str) -> Build:
        build = begin(self, projection, version, log)
        begun.append(build.id)
        return build

    async with serving(server, echo()), connect(server.url) as client:
        await completed(client, "one")

        def overtaken(self: Runner, *given: Any, **named: Any) -> object:
            # Just before this, another process puts what it has built there.
            monkeypatch.setattr(Runner, step, original)
            other = Runner(client, shelf, [COUNTS])
            asyncio.run_coroutine_threadsafe(other.catch_up(afresh=True), loop).result(BOUND_S)
            return original(self, *given, **named)

        loop = asyncio.get_running_loop()
        monkeypatch.setattr(Shelf, "begin", listed)
        monkeypatch.setattr(Runner, step, overtaken)
        await Runner(client, shelf, [COUNTS]).catch_up(afresh=True)
        kept = await Kept.find(client, shelf, COUNTS)
        assert len(begun) == 3 and kept.build.id == begun[2]
        assert await kept.rows() == {"a": Count(1), "b": Count(1)}


async def test_what_came_since_the_build_that_was_put_in_place_of_one_is_not_left_out(
    server: Server, shelf: Shelf
) -> None:
    stop = asyncio.Event()

    async def counted(completed: int) -> None:
        async with asyncio.timeout(BOUND_S):
            while True:
                served = [each.id for each in shelf.builds() if each.is_served]
                if served and shelf.row(served[0], "b") == f'{{"completed":{completed}}}':
                    return
                await asyncio.sleep(0.01)

    async with serving(server, echo()), connect(server.url) as client:
        await completed(client, "one")
        log, upto = await running.log_of(client)
        live = asyncio.create_task(Runner(client, shelf, [COUNTS]).run(stop))
        await completed(client, "two")
        await counted(2)
        # Somebody has built it too, a while ago.
        behind = shelf.begin("counts", 1, log)
        shelf.save([Step(behind.id, 0, upto, [Change(key, '{"completed":1}') for key in ("a", "b")])])
        shelf.serve(behind)
        await completed(client, "three")
        await counted(3)
        stop.set()
        await live


async def test_nothing_is_left_of_a_build_that_was_replaced(server: Server, tmp_path: Path) -> None:
    shelf = open_shelf(f"sqlite:///{tmp_path / 'rows.db'}")
    async with serving(server, echo()), connect(server.url) as client:
        await completed(client, "one")
        for _ in range(3):
            await Runner(client, shelf, [COUNTS]).catch_up(afresh=True)
    [served] = shelf.builds()
    shelf.close()
    with closing(sqlite3.connect(tmp_path / "rows.db")) as database, database:
        tracked = database.execute("SELECT application_name FROM tracking WHERE application_name LIKE 'counts%'")
        assert tracked.fetchall() == [(served.id,)]
        assert database.execute("SELECT DISTINCT build FROM phasebus_rows").fetchall() == [(served.id,)]


def test_two_processes_that_store_at_once_wait_for_each_other(tmp_path: Path) -> None:
    def store(name: str) -> None:
        shelf = open_shelf(f"sqlite:///{tmp_path / 'rows.db'}")
        build = shelf.begin(name, 1, "log")
        for position in range(200):
            shelf.save([Step(build.id, position, position + 1, [Change("key", str(position))])])
        shelf.close()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(store, name) for name in ("one", "two")]:
            done.result(BOUND_S)
    shelf = open_shelf(f"sqlite:///{tmp_path / 'rows.db'}")
    assert [shelf.row(build.id, "key") for build in shelf.builds()] == ["199", "199"]
    shelf.close()


def test_who_opens_a_new_file_while_another_writes_its_first_rows_waits_for_him(tmp_path: Path) -> None:
    """Found in one run of four: SQLite does not wait for a writer when it switches a file to its write-ahead log."""
    path = tmp_path / "rows.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE theirs (key TEXT)")
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(open_shelf, f"sqlite:///{path}")
        with pytest.raises(TimeoutError):
            opening.result(0.2)
        other.execute("COMMIT")
        opening.result(BOUND_S).close()
    other.close()


async def test_a_new_version_of_a_fold_is_built_from_the_beginning(server: Server, shelf: Shelf) -> None:
    newer = Projection(name="counts", version=2, row=Count, fold=_count, subjects=["run.*"])
    async with serving(server, echo()), connect(server.url) as client:
        await completed(client, "one")
        await Runner(client, shelf, [COUNTS]).catch_up()
        await Runner(client, shelf, [newer]).catch_up()
        assert [(each.version, each.is_served) for each in shelf.builds()] == [(2, True)]
        assert await (await Kept.find(client, shelf, newer)).rows() == {"a": Count(1), "b": Count(1)}


async def test_an_event_the_fold_can_not_take_is_set_aside_with_its_reason_and_nothing_else(
    server: Server, shelf: Shelf
) -> None:
    def picky(rows: Rows[Count], happening: Happening) -> None:
        _count(rows, happening)
        if isinstance(happening.event, PhaseCompleted) and happening.event.phase == "a":
            raise ValueError("not an a")

    projection = Projection(name="picky", version=1, row=Count, fold=picky, subjects=["run.*"])
    async with serving(server, echo()), connect(server.url) as client:
        await completed(client, "one", "two")
        await client.connection.request(client.subjects.run("broken"), b"\xff", timeout_s=5)
        await Runner(client, shelf, [projection]).catch_up()
        kept = await Kept.find(client, shelf, projection)
        assert await kept.rows() == {"b": Count(2)}
        asides = shelf.asides(kept.build.id)
        assert [aside.reason for aside in asides[:2]] == ["ValueError: not an a"] * 2
        assert asides[2].subject.endswith(".broken") and len(asides) == 3


async def test_an_event_that_a_fold_of_many_can_not_take_is_set_aside_alone(server: Server, shelf: Shelf) -> None:
    stretches: list[int] = []

    def stretch(rows: Rows[Count], happenings: Sequence[Happening]) -> None:
        stretches.append(len(happenings))
        for each in happenings:
            if isinstance(each.event, PhaseCompleted) and each.event.phase == "a" and each.run == "two":
                raise ValueError("not this one")
            _count(rows, each)

    projection = Projection(
        name="stretched", version=1, row=Count, fold=each_of(stretch), stretch=stretch, subjects=["run.*"]
    )
    async with serving(server, echo()), connect(server.url) as client:
        await completed(client, "one", "two", "three")
        await Runner(client, shelf, [projection]).catch_up()
        kept = await Kept.find(client, shelf, projection)
        assert await kept.rows() == {"a": Count(2), "b": Count(3)}
        assert [aside.reason for aside in shelf.asides(kept.build.id)] == ["ValueError: not this one"]
        # All of them at once, and then each.
        assert stretches[0] > 1 and set(stretches[1:]) == {1}


async def test_two_runners_of_the_same_projection_end_with_the_same_rows_as_one(server: Server, shelf: Shelf) -> None:
    stop = asyncio.Event()
    async with serving(server, echo()), connect(server.url) as client, connect(server.url) as other:
        both = [asyncio.create_task(Runner(each, shelf, [RUNS, COUNTS]).run(stop)) for each in (client, other)]
        await completed(client, *(f"r{number}" for number in range(20)))
        stop.set()
        await asyncio.gather(*both)
        await Runner(client, shelf, [RUNS, COUNTS]).catch_up()
        assert await (await Kept.find(client, shelf, COUNTS)).rows() == {"a": Count(20), "b": Count(20)}
        assert await (await Kept.find(client, shelf, RUNS)).rows() == dict((await build(client, RUNS)).rows)


async def test_rows_as_of_any_position_are_those_a_rebuild_up_to_there_makes(
    server: Server, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "MARK_EVERY", 10)
    monkeypatch.setattr(running, "_BATCH", 7)
    async with serving(server, echo()), connect(server.url) as client:
        await completed(client, *(f"r{number}" for number in range(20)))
        upto = await Runner(client, shelf, [RUNS]).catch_up()
        kept = await Kept.find(client, shelf, RUNS)
        for position in [0, 1, upto, *Random(7).sample(range(2, upto), 12)]:
            expected = dict((await build(client, RUNS, upto=position)).rows)
            assert await kept.rows(at=position) == expected
            assert await kept.row("r3", at=position) == expected.get("r3")


async def test_catching_up_is_not_held_up_by_the_garbage_collector_and_circles_do_not_pile_up(
    server: Server, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_BATCH", 7)
    monkeypatch.setattr(running, "_COLLECTED_BATCHES", 2)
    was_on: set[bool] = set()
    left: list[weakref.ref[Loop]] = []
    there: list[int] = []

    class Loop:
        def __init__(self) -> None:
            self.itself = self

    def fold(rows: Rows[Count], happening: Happening) -> None:
        was_on.add(gc.isenabled())
        left.append(weakref.ref(Loop()))
        there.append(sum(each() is not None for each in left))
        _count(rows, happening)

    projection = Projection(name="circles", version=1, row=Count, fold=fold, subjects=["run.*"])
    async with serving(server, echo()), connect(server.url) as client:
        await completed(client, *(f"r{number}" for number in range(20)))
        await Runner(client, shelf, [projection]).catch_up()
    assert was_on == {False} and gc.isenabled()
    assert max(there) < len(left) / 2


async def test_what_tidies_the_database_beside_has_ended_when_the_runner_has_caught_up(
    server: Server, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_BATCH", 7)
    monkeypatch.setattr(running, "_TIDY_BYTES", 1)
    checkpoint = shelf.checkpoint
    begun: list[None] = []
    ended: list[None] = []

    def slow() -> None:
        begun.append(None)
        time.sleep(0.05)
        checkpoint()
        ended.append(None)

    monkeypatch.setattr(shelf, "checkpoint", slow)
    async with serving(server, echo()), connect(server.url) as client:
        await completed(client, *(f"r{number}" for number in range(20)))
        await Runner(client, shelf, [COUNTS]).catch_up()
        assert len(begun) == len(ended) > 0
        assert await (await Kept.find(client, shelf, COUNTS)).rows() == {"a": Count(20), "b": Count(20)}


async def test_a_database_that_can_not_be_tidied_is_told_of_also_when_nothing_comes_behind(
    server: Server, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ShelfDamaged("the disk is full")

    monkeypatch.setattr(running, "_TIDY_BYTES", 1)
    monkeypatch.setattr(shelf, "checkpoint", broken)
    async with serving(server, echo()), connect(server.url) as client:
        await completed(client, "one")
        with pytest.raises(ShelfDamaged, match="the disk is full"):
            await Runner(client, shelf, [COUNTS]).catch_up()


async def test_who_cancels_a_runner_may_close_the_shelf_nothing_is_written_any_more(
    server: Server, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, ended = threading.Event(), threading.Event()
    save = shelf.save

    def slow(steps: Iterable[Step]) -> None:
        begun.set()
        time.sleep(0.2)
        save(steps)
        ended.set()

    monkeypatch.setattr(shelf, "save", slow)
    async with serving(server, echo()), connect(server.url) as client:
        await completed(client, "one")
        catching_up = asyncio.create_task(Runner(client, shelf, [COUNTS]).catch_up())
        assert await asyncio.to_thread(begun.wait, BOUND_S)
        catching_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await catching_up
        assert ended.is_set()


def test_the_collector_is_off_until_the_last_who_wanted_that_has_ended() -> None:
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(uncollected())
        second.enter_context(uncollected())
        first.close()
        assert not gc.isenabled()
    assert gc.isenabled()


async def test_projections_whose_subjects_overlap_are_read_for_once(server: Server, shelf: Shelf) -> None:
    wider = Projection(name="wider", version=1, row=Count, fold=_count, subjects=["run.>", "agent.>"])
    async with serving(server, echo()), connect(server.url) as client:
        await completed(client, "one")
        await Runner(client, shelf, [COUNTS, wider]).catch_up()
        for projection in (COUNTS, wider):
            assert await (await Kept.find(client, shelf, projection)).rows() == {"a": Count(1), "b": Count(1)}


async def test_rows_of_another_log_are_not_served_as_this_one_s(server: Server, shelf: Shelf) -> None:
    async with serving(server, echo()), connect(server.url) as client:
        await completed(client, "one")
        await Runner(client, shelf, [COUNTS]).catch_up()
        async with connect(server.url, namespace="other") as elsewhere:
            await Runner(elsewhere, shelf, [COUNTS]).catch_up()
            assert await (await Kept.find(elsewhere, shelf, COUNTS)).rows() == {}


def test_an_address_that_is_none_is_refused_and_says_what_it_begins_with() -> None:
    with pytest.raises(SettingsError, match="sqlite:///"):
        open_shelf("redis://somewhere")


def test_a_file_that_is_no_database_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "rows.db").write_bytes(b"this is not a database, and never was one" * 100)
    with pytest.raises(ShelfDamaged, match=r"rows\.db"):
        open_shelf(f"sqlite:///{tmp_path / 'rows.db'}")
