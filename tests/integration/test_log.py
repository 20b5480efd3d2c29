"""The log against a real server: appends that are never doubled, reads by position, following without a gap."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from bus.connection import Connection
from bus.envelope import Envelope, envelope
from bus.errors import MalformedMessage, Misconfigured, TooLarge
from bus.log import Log, Part, VersionConflict
from bus.server import Server
from bus.settings import Settings
from bus.subjects import Subjects

RUN = "bus.run.r"


def message(text: str = "") -> Envelope:
    return envelope("test.v1", {"text": text}, id=uuid4().hex, source="/test", time=datetime.now(UTC))


@pytest.fixture
async def log(connection: Connection) -> AsyncIterator[Log]:
    made = Log(connection, Subjects("bus"), Settings(append_timeout_s=15, request_timeout_s=2))
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


async def test_a_resend_after_a_lost_answer_is_stored_once(log: Log) -> None:
    once = message("a")
    first = await log.append(RUN, once, expected=0)
    assert await log.append(RUN, once, expected=0) == first
    assert len([record async for record in log.read(RUN)]) == 1


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


async def test_a_message_over_the_limit_is_refused_and_the_log_goes_on(log: Log) -> None:
    with pytest.raises(TooLarge):
        await log.append(RUN, message("x" * 2**20), expected=0)
    assert await log.append(RUN, message("a"), expected=0)


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
