"""Appending to the log of a real server: never doubled, whatever happens to the line; all of a batch or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from bus.broker.connection import Connection
from bus.broker.server import Server
from bus.errors import MalformedMessage, Misconfigured, Refused, TooLarge, TooMany, Unavailable
from bus.format.envelope import Envelope, envelope
from bus.format.subjects import Subjects
from bus.log.log import Log, Part, VersionConflict
from bus.log.record import Record
from bus.settings import Settings
from tests.cutter import Cutter

RUN = "bus.run.r"
SETTINGS = Settings(append_timeout_s=15, request_timeout_s=2, payload_limit_bytes=500_000)


def message(text: str = "") -> Envelope:
    return envelope("test.v1", {"text": text}, id=uuid4().hex, source="/test", time=datetime.now(UTC))


@asynccontextmanager
async def cut_log(cutter: Cutter, server: Server) -> AsyncIterator[Log]:
    """A log over a line that breaks."""
    async with Connection.open(cutter.url(server.url), name="cut") as connection:
        made = Log(connection, Subjects("bus"), SETTINGS)
        await made.set_up()
        yield made


@pytest.fixture
async def log(connection: Connection) -> AsyncIterator[Log]:
    made = Log(connection, Subjects("bus"), SETTINGS)
    await made.set_up()
    yield made


async def test_an_append_at_the_expected_position_is_stored(log: Log) -> None:
    first = await log.append(RUN, message("a"), expected=0)
    second = await log.append(RUN, message("b"), expected=first)
    assert [record.position async for record in log.read(RUN)] == [first, second]


async def test_a_conflict_brings_what_the_other_writer_stored(log: Log) -> None:
    first = await log.append(RUN, message("a"), expected=0)
    with pytest.raises(VersionConflict) as caught:
        await log.append(RUN, message("b"), expected=0)
    assert [record.position for record in caught.value.tail] == [first]


async def test_one_of_many_racing_writers_wins(log: Log) -> None:
    answers = await asyncio.gather(
        *(log.append(RUN, message(str(number)), expected=0) for number in range(20)), return_exceptions=True
    )
    assert sum(isinstance(answer, int) for answer in answers) == 1
    assert sum(isinstance(answer, VersionConflict) for answer in answers) == 19


async def test_of_very_much_a_conflict_brings_the_beginning_and_says_so(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bus.log.appending._TAIL_BYTES", 10_000)
    async with log.pipeline() as pipeline:
        for _ in range(50):
            await pipeline.append(Part(RUN, message("x" * 1_000)))
    seen, has_more = 0, True
    while has_more:
        with pytest.raises(VersionConflict) as caught:
            await log.append(RUN, message(), expected=seen)
        assert 0 < len(caught.value.tail) < 12
        assert caught.value.tail[0].position == seen + 1
        seen, has_more = caught.value.tail[-1].position, caught.value.has_more
    assert await log.append(RUN, message(), expected=seen) == 51


async def test_a_resend_after_a_lost_answer_is_stored_once(log: Log) -> None:
    once = message("a")
    first = await log.append(RUN, once, expected=0)
    assert await log.append(RUN, once, expected=0) == first
    assert len([record async for record in log.read(RUN)]) == 1


async def test_an_id_that_another_message_has_is_no_resend(log: Log, connection: Connection) -> None:
    once = message("a")
    await log.append("bus.topic.a", once)
    with pytest.raises(Refused, match="id of its own"):
        await log.append("bus.topic.b", once)
    impatient = Log(connection, log.subjects, Settings(append_timeout_s=0.2))
    for parts in ([once, message()], [message(), once]):
        with pytest.raises(Unavailable):
            await impatient.append_together([Part("bus.topic.a", parts[0]), Part("bus.topic.b", parts[1])])
    with pytest.raises(Refused):
        async with log.pipeline() as pipeline:
            await pipeline.append(Part("bus.topic.b", once))
    assert [record.subject async for record in log.read(">")] == ["bus.topic.a"]
    assert await log.append("bus.topic.a", once) == 1


async def test_a_resent_batch_is_stored_once(log: Log) -> None:
    parts = [Part(RUN, message("a"), 0), Part("bus.dead.c", message("b"))]
    first = await log.append_together(parts)
    assert await log.append_together(parts) == first
    assert len([record async for record in log.read("bus.>")]) == 2


async def test_a_batch_with_one_conflict_leaves_nothing(log: Log) -> None:
    await log.append(RUN, message("a"), expected=0)
    with pytest.raises(VersionConflict):
        await log.append_together([Part(RUN, message("b"), 0), Part("bus.dead.c", message("c"))])
    assert len([record async for record in log.read("bus.>")]) == 1


async def test_a_batch_over_the_servers_limit_is_refused_before_anything_is_sent(log: Log, server: Server) -> None:
    with pytest.raises(TooMany, match="1001 messages of one batch: the limit is 1000"):
        await log.append_together([Part(f"bus.topic.t{number}", message()) for number in range(1_001)])
    with pytest.raises(TooLarge):
        await log.append_together([Part("bus.topic.a", message()), Part("bus.topic.b", message("x" * 2**20))])
    assert [record async for record in log.read(">")] == []
    assert await log.append_together([Part(f"bus.topic.t{number}", message()) for number in range(1_000)]) == 1


async def test_a_batch_that_is_abandoned_leaves_nothing(log: Log, connection: Connection) -> None:
    member = {"Nats-Batch-Id": "lost", "Nats-Batch-Sequence": "1"}
    await connection.request("bus.topic.a", b"never committed", headers=member, timeout_s=2)
    assert await log.append("bus.topic.a", message()) == 1
    assert len([record async for record in log.read(">")]) == 1


async def test_a_conflict_in_any_member_of_a_batch_names_its_subject(log: Log) -> None:
    first = await log.append("bus.run.b", message(), expected=0)
    with pytest.raises(VersionConflict) as caught:
        await log.append_together([Part("bus.run.a", message(), 0), Part("bus.run.b", message(), 0)])
    assert (caught.value.subject, [record.position for record in caught.value.tail]) == ("bus.run.b", [first])


async def test_a_pipeline_answers_with_positions_and_raises_the_first_failure(log: Log) -> None:
    async with log.pipeline(window=50) as pipeline:
        positions = [await pipeline.append(Part(RUN, message(str(number)))) for number in range(500)]
    assert [position.result() for position in positions] == list(range(1, 501))
    with pytest.raises(VersionConflict):
        async with log.pipeline() as pipeline:
            refused = await pipeline.append(Part(RUN, message(), 0))
            stored = await pipeline.append(Part(RUN, message()))
    assert isinstance(refused.exception(), VersionConflict)
    assert stored.result() == 501


async def test_leaving_a_pipeline_can_be_cancelled_while_the_server_is_away(
    connection: Connection, log: Log, server: Server
) -> None:
    log = Log(connection, log.subjects, Settings(append_timeout_s=60, request_timeout_s=0.05))

    async def write() -> None:
        async with log.pipeline() as pipeline:
            await pipeline.append(Part(RUN, message()))

    await server.kill()
    writing = asyncio.create_task(write())
    await asyncio.sleep(0.3)
    writing.cancel()
    await asyncio.wait([writing], timeout=10)
    assert writing.cancelled()


async def test_a_conflict_is_told_when_the_replica_that_answers_has_caught_up(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log.append(RUN, message("a"), expected=0)
    stored, lagging = log._reader._stored, [True, True]

    def behind(subjects: list[str], after: int, upto: int | None) -> AsyncGenerator[Record, None]:
        return stored(subjects, after, 0 if lagging and lagging.pop() else upto)

    monkeypatch.setattr(log._reader, "_stored", behind)
    with pytest.raises(VersionConflict) as caught:
        await log.append(RUN, message("b"), expected=0)
    assert [record.position for record in caught.value.tail] == [1]
    assert not lagging


async def test_a_pipeline_over_a_line_that_breaks_stores_each_message_once(server: Server) -> None:
    async with Cutter.before(server.port) as cutter, cut_log(cutter, server) as log:
        async with log.pipeline() as pipeline:
            positions = [await pipeline.append(Part("bus.topic.t", message(f"n{number};"))) for number in range(100)]
            cutter.cut(b"n60;")
        assert cutter.cuts == 1
        texts = [record.body.partition(b'"text":"n')[2].partition(b";")[0] async for record in log.read(">")]
        assert sorted(map(int, texts)) == list(range(100))
        assert sorted(position.result() for position in positions) == list(range(1, 101))


@pytest.mark.parametrize("behind", [0, 200, 10_000])
@pytest.mark.parametrize("expected", [None, 0])
async def test_an_append_whose_line_breaks_anywhere_is_stored_once(
    server: Server, expected: int | None, behind: int
) -> None:
    async with Cutter.before(server.port) as cutter, cut_log(cutter, server) as log:
        cutter.cut(b"HPUB bus.run.r", behind)
        position = await log.append(RUN, message("a"), expected=expected)
        assert cutter.cuts == 1
        assert [record.position async for record in log.read(RUN)] == [position] == [1]


@pytest.mark.parametrize("behind", [0, 300, 900, 10_000])
@pytest.mark.parametrize("expected", [None, 0])
async def test_a_batch_whose_line_breaks_anywhere_is_stored_once(
    server: Server, expected: int | None, behind: int
) -> None:
    parts = [Part("bus.topic.a", message("a"), expected), Part("bus.topic.b", message("b"))]
    async with Cutter.before(server.port) as cutter, cut_log(cutter, server) as log:
        cutter.cut(b"HPUB bus.topic.a", behind)
        first = await log.append_together([*parts, Part("bus.topic.c", message("c"), expected)])
        assert cutter.cuts == 1
        assert [(record.position, record.subject) async for record in log.read(">")] == [
            (first + number, f"bus.topic.{letter}") for number, letter in enumerate("abc")
        ]


async def test_a_message_over_the_limit_is_refused_and_the_log_goes_on(log: Log) -> None:
    with pytest.raises(TooLarge):
        await log.append(RUN, message("x" * 2**20), expected=0)
    assert await log.append(RUN, message("a"), expected=0)


async def test_an_append_survives_a_server_that_is_killed_and_comes_back(log: Log, server: Server) -> None:
    first = await log.append(RUN, message("a"), expected=0)
    await server.kill()
    pending = asyncio.create_task(log.append(RUN, message("b"), expected=first))
    await asyncio.sleep(0)
    await server.restart()
    assert await pending == first + 1
    assert len([record async for record in log.read(RUN)]) == 2


async def test_a_forged_status_does_not_hide_a_record(log: Log, connection: Connection) -> None:
    await connection.request("bus.topic.t", b"not ours", headers={"Status": "404"}, timeout_s=2)
    await log.append("bus.topic.t", message())
    records = [record async for record in log.read("bus.topic.t")]
    assert [record.position for record in records] == [1, 2]
    with pytest.raises(MalformedMessage):
        records[0].envelope()


async def test_a_stream_that_does_not_keep_the_promise_is_refused(connection: Connection) -> None:
    await connection.request("$JS.API.STREAM.CREATE.BUS", b'{"name":"BUS","subjects":["bus.run.>"]}', timeout_s=2)
    with pytest.raises(Misconfigured, match="BUS"):
        await Log(connection, Subjects("bus"), Settings()).set_up()
