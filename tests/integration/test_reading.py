"""Reading the log of a real server: by position and time, backwards, several subjects; following without a gap."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest

from bus.broker.connection import Connection
from bus.broker.server import Server
from bus.errors import InvalidName, Unavailable
from bus.format.envelope import Envelope, envelope
from bus.format.subjects import Subjects, pattern
from bus.log.log import Log, Part
from bus.log.record import Live, Record
from bus.settings import Settings
from tests.cutter import Cutter
from tests.harness import until

RUN = "bus.run.r"


def message(text: str = "") -> Envelope:
    return envelope("test.v1", {"text": text}, id=uuid4().hex, source="/test", time=datetime.now(UTC))


@pytest.fixture
async def log(connection: Connection) -> AsyncIterator[Log]:
    made = Log(connection, Subjects("bus"), Settings(append_timeout_s=15, request_timeout_s=2))
    await made.set_up()
    yield made


async def fill(log: Log, subjects: list[str]) -> None:
    async with log.pipeline() as pipeline:
        for subject in subjects:
            await pipeline.append(Part(subject, message()))


async def test_a_long_log_is_read_in_pages_from_any_position(log: Log) -> None:
    count = 1_700
    await asyncio.gather(*(log.append(f"bus.run.r{number % 7}", message()) for number in range(count)))
    everything = [record.position async for record in log.read("bus.run.*")]
    assert everything == list(range(1, count + 1))
    assert [record.position async for record in log.read("bus.run.*", after=600, upto=1_200)] == list(range(601, 1_201))
    assert len([record async for record in log.read("bus.run.r3")]) == len(range(3, count, 7))


async def test_reading_what_nobody_wrote_ends_at_once(log: Log) -> None:
    assert [record async for record in log.read("bus.run.nobody")] == []
    assert await log.last("bus.run.nobody") is None
    assert await log.at(12) is None


@pytest.mark.parametrize("subject", ["", "bus.run r", "bus..r", "bus.run.", "bus.>.r"])
async def test_what_can_not_be_a_subject_is_refused_and_not_read_as_everything_or_nothing(
    log: Log, subject: str
) -> None:
    await log.append(RUN, message())
    for records in (log.read(RUN, subject), log.read_back(subject), log.follow(subject)):
        with pytest.raises(InvalidName):
            await anext(records)


async def test_a_position_is_found_by_time(log: Log) -> None:
    first = await log.append(RUN, message("a"))
    between = datetime.now(UTC)
    await log.append(RUN, message("b"))
    assert await log.position_at(between) == first
    assert await log.position_at(datetime.now(UTC)) == first + 1


async def test_following_has_no_gap_and_no_duplicate_across_server_kills(log: Log, server: Server) -> None:
    count = 300
    seen: list[int] = []

    async def follow() -> None:
        async for record in log.follow("bus.run.*"):
            seen.append(record.position)
            if len(seen) == count:
                return

    async def write() -> None:
        for number in range(count):
            await log.append(f"bus.run.r{number % 3}", message())
            if number in {100, 200}:
                await server.kill()
                await server.restart()

    async with asyncio.timeout(40):
        await asyncio.gather(follow(), write())
    assert seen == list(range(1, count + 1))


@pytest.mark.parametrize("behind", [0, 10_000])
async def test_what_is_read_over_a_line_that_breaks_is_asked_for_again(log: Log, server: Server, behind: int) -> None:
    await fill(log, ["bus.run.a", "bus.run.b", "bus.run.a"])
    async with (
        Cutter.before(server.port) as cutter,
        Connection.open(cutter.url(server.url), name="cut") as connection,
    ):
        reader = Log(connection, log.subjects, Settings(request_timeout_s=10))
        reads: list[Callable[[], Awaitable[object]]] = [
            lambda: _positions(reader.read("bus.run.*")),
            lambda: _positions(reader.read_back("bus.run.a")),
            lambda: _position(reader.last("bus.run.b")),
            lambda: _position(reader.at(3)),
            lambda: reader.position_at(datetime.now(UTC)),
        ]
        found = []
        for read in reads:
            cutter.cut(b"$JS.API.DIRECT.GET", behind)
            found.append(await read())
    assert cutter.cuts == len(reads)
    assert found == [[1, 2, 3], [3, 1], 2, 3, 3]


async def test_a_page_that_whoever_was_asked_does_not_give_is_asked_for_again(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when one of several servers ends that had the question."""
    monkeypatch.setattr("bus.log.reading._SOON_S", 0.05)
    await fill(log, [RUN, RUN])
    connection = log._reader._connection
    publish, lost = connection._publish, ["the first"]

    def swallow(subject: str, *rest: Any) -> None:
        if not (lost and subject.startswith("$JS.API.DIRECT.GET") and lost.pop()):
            publish(subject, *rest)

    monkeypatch.setattr(connection, "_publish", swallow)
    assert await _positions(log.read(RUN)) == [1, 2]
    assert not lost


async def test_reading_a_stream_that_is_not_there_ends(connection: Connection) -> None:
    with pytest.raises(Unavailable, match="'BUS' does not answer: it is not there"):
        await Log(connection, Subjects("bus"), Settings(request_timeout_s=0.2)).last(RUN)


async def test_what_is_stored_while_several_subjects_are_read_hides_nothing_that_was_stored_before_it(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are read one after the other: what comes to the first when it has been read, and then to the second."""
    page = log._reader._page

    async def slow(subject: str, asked: str, after: int, size: int) -> object:
        found = await page(subject, asked, after, size)
        if subject == "bus.run.a" and log._reader._page is not page:
            monkeypatch.undo()
            await fill(log, ["bus.run.a", "bus.run.b"])
        return found

    await fill(log, ["bus.run.b"])
    monkeypatch.setattr(log._reader, "_page", slow)
    read = await _positions(log.read("bus.run.a", "bus.run.b"))
    assert read in ([1], [1, 2, 3])
    monkeypatch.setattr(log._reader, "_page", slow)
    async with aclosing(log.follow("bus.run.a", "bus.run.b")) as followed:
        assert [(await anext(followed)).position for _ in range(5)] == [1, 2, 3, 4, 5]


async def test_who_has_read_everything_of_several_subjects_asks_only_for_the_newest_position(
    log: Log, server: Server
) -> None:
    await fill(log, ["bus.run.a", "bus.run.b"])
    async with (
        Cutter.before(server.port) as cutter,
        Connection.open(cutter.url(server.url), name="counted") as connection,
    ):
        reader = Log(connection, log.subjects, Settings())
        assert await _positions(reader.read("bus.run.a", "bus.run.b", "bus.run.c", after=2)) == []
        assert b"".join(cutter.heard).count(b"$JS.API.DIRECT.GET") == 1
        assert await _positions(reader.read("bus.run.a", "bus.run.b", "bus.run.c", after=1)) == [2]


@pytest.mark.parametrize("seed", [1, 2])
async def test_whatever_is_read_or_followed_while_others_write_has_no_gap(log: Log, seed: int) -> None:
    dice = random.Random(seed)
    written = [f"bus.run.r{number}" for number in range(4)] + [f"bus.topic.t{number}.x" for number in range(3)]
    filters = [*written, "bus.run.*", "bus.topic.>", "bus.topic.*.x"]
    over = asyncio.Event()
    read: list[tuple[list[str], list[int]]] = []
    followed: list[tuple[list[str], list[int]]] = []

    async def write() -> None:
        while not over.is_set():
            await log.append(dice.choice(written), message())
            if dice.random() < 0.1:
                await asyncio.sleep(dice.random() * 0.01)

    async def keep_reading() -> None:
        while not over.is_set():
            wanted = dice.sample(filters, dice.randint(1, 4))
            read.append((wanted, await _positions(log.read(*wanted))))

    async def follow() -> None:
        await asyncio.sleep(dice.random())
        wanted = dice.sample(filters, dice.randint(1, 4))
        seen: list[int] = []
        followed.append((wanted, seen))
        async with aclosing(log.follow(*wanted)) as records:
            async for record in records:
                seen.append(record.position)
                if dice.random() < 0.02:
                    await asyncio.sleep(dice.random() * 0.1)

    followers = [asyncio.create_task(follow()) for _ in range(12)]
    doing = [asyncio.create_task(each) for each in (write(), write(), write(), keep_reading())]
    await asyncio.sleep(1.5)
    over.set()
    await asyncio.gather(*doing)
    everything = {record.position: record.subject async for record in log.read("bus.>")}

    def those(wanted: list[str]) -> list[int]:
        shapes = [pattern(each) for each in wanted]
        return [place for place, subject in everything.items() if any(each.fullmatch(subject) for each in shapes)]

    for wanted, found in read:
        assert found == [place for place in those(wanted) if place <= max(found, default=0)]
    await until(lambda: all(seen == those(wanted) for wanted, seen in followed))
    for follower in followers:
        follower.cancel()


async def test_any_subjects_and_bounds_read_what_a_plain_filter_would(log: Log) -> None:
    seeded = random.Random(7)
    names = [f"bus.{kind}.{name}" for kind in ("run", "topic") for name in "abcde"] + ["bus.ops.x.y"]
    # Long stretches of one subject between mixed ones: the reader changes the filter it asks the server with.
    subjects = [seeded.choice(names) for _ in range(1_500)] + ["bus.run.a"] * 1_500 + ["bus.topic.e"] * 1_500
    subjects += [seeded.choice(names) for _ in range(1_500)]
    await fill(log, subjects)
    wanted = [
        ["bus.run.*"],
        ["bus.run.a", "bus.topic.>"],
        ["bus.topic.e"],
        [">", "bus.run.a"],
        ["bus.*.x.y", "bus.run.b"],
    ]
    for filters in wanted:
        for after, upto in ((0, None), (1_234, 4_321), (5_990, None), (0, 0)):
            expected = [
                position
                for position, subject in enumerate(subjects, 1)
                if after < position <= (upto if upto is not None else len(subjects))
                and any(pattern(each).fullmatch(subject) for each in filters)
            ]
            assert [record.position async for record in log.read(*filters, after=after, upto=upto)] == expected
        backwards = [record.position async for record in log.read_back(*filters, before=5_000)]
        forwards = [record.position async for record in log.read(*filters, upto=4_999)]
        assert backwards == forwards[::-1]


async def test_reading_backwards_stops_when_nobody_wants_more(log: Log) -> None:
    await fill(log, [RUN] * 3_000)
    async with aclosing(log.read_back(RUN)) as records:
        assert [(await anext(records)).position for _ in range(3)] == [3_000, 2_999, 2_998]


async def test_several_subjects_are_followed_as_one_in_order(log: Log) -> None:
    await fill(log, ["bus.run.a", "bus.topic.t", "bus.run.b"])
    async with aclosing(log.follow("bus.run.*", "bus.topic.t")) as records:
        assert [(await anext(records)).position for _ in range(3)] == [1, 2, 3]
        await fill(log, ["bus.topic.t", "bus.topic.other", "bus.run.a"])
        assert [(await anext(records)).position for _ in range(2)] == [4, 6]


@pytest.mark.parametrize(("idle_s", "afterwards"), [(1_000.0, 1), (0.2, 0)], ids=["by the next", "by looking"])
async def test_a_live_copy_that_got_lost_is_noticed(
    log: Log, connection: Connection, monkeypatch: pytest.MonkeyPatch, idle_s: float, afterwards: int
) -> None:
    monkeypatch.setattr("bus.log.reading._IDLE_S", idle_s)
    seen: list[int] = []

    async def follow() -> None:
        async for record in log.follow(RUN):
            seen.append(record.position)

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follow())
        await log.append(RUN, message())
        await until(lambda: seen == [1])
        callbacks = connection._client.callbacks
        live = next(sid for sid, interest in connection._client._subs.items() if interest.subject.startswith("live."))
        take = callbacks.pop(live)
        await log.append(RUN, message())
        await connection.flush(2)
        callbacks[live] = take
        await fill(log, [RUN] * afterwards)
        await until(lambda: seen == [1, 2, 3][: 2 + afterwards])
        following.cancel()


async def test_a_live_copy_that_got_lost_is_noticed_by_the_next_on_any_subject(
    log: Log, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.log.reading._IDLE_S", 1_000.0)
    seen: list[int] = []

    async def follow() -> None:
        async for record in log.follow("bus.run.*", "bus.topic.>"):
            seen.append(record.position)

    async with asyncio.timeout(10), asyncio.TaskGroup() as tasks:
        following = tasks.create_task(follow())
        await log.append("bus.run.a", message())
        await until(lambda: seen == [1])
        callbacks = connection._client.callbacks
        live = [sid for sid, interest in connection._client._subs.items() if interest.subject.startswith("live.")]
        taken = {sid: callbacks.pop(sid) for sid in live}
        await log.append("bus.run.a", message())
        await connection.flush(2)
        callbacks.update(taken)
        await fill(log, ["bus.run.b", "bus.topic.t"])
        await until(lambda: seen == [1, 2, 3, 4])
        following.cancel()


async def test_what_a_lagging_replica_does_not_have_yet_is_looked_for_until_it_has(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.log.reading._IDLE_S", 1_000.0)
    reader = log._reader
    stored, lags = reader._stored, False

    def lagging(subjects: list[str], after: int, upto: int | None) -> AsyncGenerator[Record, None]:
        return stored(subjects, after, 2 if lags else upto)

    monkeypatch.setattr(reader, "_stored", lagging)
    async with asyncio.timeout(10), aclosing(log.follow("bus.run.*")) as records:
        await fill(log, ["bus.run.a", "bus.run.b"])
        assert [(await anext(records)).position for _ in range(2)] == [1, 2]
        lags = True
        coming = asyncio.ensure_future(anext(records))
        await fill(log, ["bus.topic.t", "bus.run.a"])
        await asyncio.sleep(0.2)
        lags = False
        assert (await coming).position == 4


async def test_following_ends_when_the_connection_is_closed(server: Server) -> None:
    async with Connection.open(server.url, name="short") as connection:
        log = Log(connection, Subjects("bus"), Settings())
        await log.set_up()
        await log.append(RUN, message())
        records = log.follow(RUN)
        await anext(records)
    with pytest.raises(Unavailable):
        async with asyncio.timeout(10):
            await anext(records)


async def test_following_takes_no_more_into_memory_than_some_bytes(log: Log, connection: Connection) -> None:
    live = Live(connection, ["live.bus.>"])
    live.caught_up()
    async with log.pipeline() as pipeline:
        for _ in range(40):
            await pipeline.append(Part(RUN, message("x" * 500_000)))
    await connection.flush(5)
    live.close()
    assert live._missed
    assert live._size_bytes < 10 * 2**20


async def test_reading_backwards_in_pages_of_few_bytes_gives_each_record_once(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.log.reading._PAGE_BYTES", 10_000)
    sizes = [10, 3_000, 20_000, 50, 9_000, 10, 700] * 60
    async with log.pipeline() as pipeline:
        for size in sizes:
            await pipeline.append(Part(RUN, message("x" * size)))
    assert [record.position async for record in log.read_back(RUN)] == list(range(len(sizes), 0, -1))


async def test_a_record_knows_when_it_was_stored_and_what_its_headers_were(log: Log, connection: Connection) -> None:
    began = datetime.now(UTC)
    sent = message()
    async with aclosing(log.follow(RUN)) as live:
        coming = asyncio.ensure_future(anext(live))
        await asyncio.sleep(0.05)
        await log.append(RUN, sent, expected=0)
        stored = await log.at(1)
        assert stored is not None
        for record in (stored, await coming):
            assert began <= record.stored_at <= datetime.now(UTC)
            assert record.headers == {"Nats-Msg-Id": sent.id, "Content-Type": "application/cloudevents+json"}


async def _positions(records: AsyncIterator[Record]) -> list[int]:
    return [record.position async for record in records]


async def _position(record: Awaitable[Record | None]) -> int | None:
    found = await record
    return found.position if found is not None else None
