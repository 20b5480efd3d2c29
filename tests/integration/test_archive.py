"""Archiving on a real server: what leaves the log is read as before, and nothing else leaves it."""

from __future__ import annotations

import asyncio
import fcntl
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Any
from uuid import uuid4

import pytest

from bus import Agent, Approval, Client, Phase, Plan, Reject, connect
from bus.archives.archiving import Outcome, archive, choose
from bus.archives.notices import REMOVED, SEALED, STARTED
from bus.archives.retention import Policy
from bus.broker.connection import Connection
from bus.broker.server import Server
from bus.errors import Archived, ArchiveDamaged, Forbidden, Misconfigured, NotFound, Refused, SettingsError
from bus.format.envelope import Envelope, envelope
from bus.format.subjects import Subjects
from bus.log.archive import Archive
from bus.log.layout import log_config
from bus.log.log import Log, Part
from bus.log.record import Record
from bus.log.segment import SEGMENT_BYTES, line_of
from bus.settings import Settings
from projections.catchup import build
from projections.runs import RUNS
from tests.harness import BOUND_S, happenings, serving, supervised, until

GATE = Plan("gated", phases=[Phase("gate", approval=Approval(prompt="go on?"))])
AT_ONCE = Policy.of([f"{name}=0s" for name in ("run", "mail", "topic", "agent", "dead", "ops")])
RUNS_AT_ONCE = Policy.of(["run=0s"])


def message(text: str = "") -> Envelope:
    return envelope("test.v1", {"text": text}, id=uuid4().hex, source="/test", time=datetime.now(UTC))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url, operator_url=server.operator_url, request_timeout_s=2) as connected:
        yield connected


async def ended(client: Client, run: str) -> None:
    """A run that has ended: its gate was opened."""
    await client.start(GATE, {"of": run}, run=run)
    await client.approve(run, "gate", by="ann")


async def stored(log: Log, *subjects: str, **bounds: Any) -> list[Record]:
    return [record async for record in log.read(*subjects or ["bus.>"], **bounds)]


def facts(records: list[Record]) -> list[tuple[object, ...]]:
    """Everything that a record says."""
    lines = [line_of(record) for record in records]
    return [(each.position, each.subject, each.at, each.headers, each.content) for each in lines]


async def said(client: Client) -> list[tuple[str, dict[str, Any]]]:
    """What the log has been told about archives."""
    found = [record.envelope() async for record in client.log.read(client.subjects.ops("archive"))]
    return [(each.type, json.loads(bytes(each.data))) for each in found]


async def test_what_was_archived_leaves_the_log_and_is_read_as_before(
    server: Server, client: Client, folder: Path
) -> None:
    for number in range(5):
        await ended(client, f"r{number}")
        await client.log.append("bus.topic.news", message(str(number)))
    await client.start(GATE, run="open")
    before = await stored(client.log)
    outcome = await archive(client, folder, AT_ONCE, by="ann")
    assert outcome.removed == 15 and not outcome.kept
    left = await stored(client.log)
    assert {record.subject for record in left} == {
        *(f"bus.run.r{number}" for number in range(5)),
        *("bus.run.open", "bus.ops.archive"),
    }
    async with connect(server.url, archive=folder) as reading:
        whole = await stored(reading.log)
        assert facts([record for record in whole if record.position <= before[-1].position]) == facts(before)
        assert [record.position for record in whole] == sorted({record.position for record in [*before, *left]})


async def test_a_route_stands_although_what_it_was_before_is_archived(
    server: Server, client: Client, folder: Path
) -> None:
    for share in (5, 20):
        await client.set_route("price", {"1.*": 100 - share, "2.0.0": share}, by="ann")
    await archive(client, folder, AT_ONCE, by="ann")
    assert len(await stored(client.log, client.subjects.routes)) == 1
    async with connect(server.url) as later:
        (turn,) = await later.routes()
        assert turn.route is not None and (turn.revision, turn.route.part("2.0.0")) == (2, 0.2)


async def test_every_way_to_read_sees_archive_and_log_as_one(server: Server, client: Client, folder: Path) -> None:
    await client.log.append("bus.topic.old", message("first"))
    await ended(client, "gone")
    between = datetime.now(UTC)
    await client.log.append("bus.topic.old", message("second"))
    await client.start(GATE, run="open")
    records = await stored(client.log)
    position = await client.log.position_at(between)
    last = await client.log.last("bus.topic.old")
    await archive(client, folder, AT_ONCE, by="ann")
    assert await client.log.last("bus.topic.old") is None
    async with connect(server.url, archive=folder) as reading:
        log = reading.log
        newest = records[-1].position
        for record in records:
            found = await log.at(record.position)
            assert found is not None and facts([found]) == facts([record])
        again = await log.last("bus.topic.old")
        assert again is not None and last is not None and again.position == last.position
        assert await log.position_at(between) == position
        back = [record async for record in log.read_back("bus.>", before=newest + 1)]
        assert facts(back) == facts(records[::-1])
        some = await stored(log, "bus.topic.*", "bus.run.gone", after=1, upto=newest - 1)
        assert facts(some) == facts([each for each in records[1:-1] if each.subject != "bus.run.open"])
        followed = []
        async for record in log.follow("bus.>"):
            followed.append(record)
            if record.position == newest:
                break
        assert facts(followed) == facts(records)


async def test_an_archived_run_is_found_told_and_listed_only_where_the_archive_is(
    server: Server, client: Client, folder: Path
) -> None:
    await ended(client, "gone")
    state = await client.runs.load("gone")
    told = await happenings(client, "gone")
    await archive(client, folder, RUNS_AT_ONCE, by="ann")
    async with connect(server.url) as without:
        for reading in (
            without.runs.load("gone"),
            without.ledger.as_of("gone", state.position),
            happenings(without, "gone"),
        ):
            with pytest.raises(Archived, match="PHASEBUS_ARCHIVE"):
                await reading
        runs = await build(without, RUNS)
        assert not runs.rows and not runs.asides
        with pytest.raises(NotFound):
            await without.runs.load("never")
    async with connect(server.url, archive=folder) as reading_it:
        found = await reading_it.runs.load("gone")
        assert found.archived and found.status == "completed" and found.ended_at == state.ended_at
        assert await reading_it.ledger.as_of("gone", state.position) == state
        assert [each.event for each in await happenings(reading_it, "gone")] == [each.event for each in told]
        assert list((await build(reading_it, RUNS)).rows) == ["gone"]


async def test_an_archived_run_does_not_go_on_and_its_id_stays_taken(
    server: Server, client: Client, folder: Path
) -> None:
    await client.start(GATE, run="gone")
    await client.reject("gone", "gate", by="ann")
    await archive(client, folder, RUNS_AT_ONCE, by="ann")
    async with connect(server.url) as without, connect(server.url, archive=folder) as reading:
        # `client` knows the run from before; the others read it now.
        for each in (client, without, reading):
            with pytest.raises(Refused, match="archived"):
                await each.redrive("gone", by="ann")
            with pytest.raises(Refused):
                await each.start(GATE, run="gone")


async def test_an_open_run_a_young_one_and_one_with_dead_work_stay(
    server: Server, client: Client, folder: Path
) -> None:
    agent = Agent("painter")

    @agent.capability("paint")
    async def paint(query: dict[str, str]) -> None:
        raise Reject("no colour")

    async with serving(server, agent):
        dead = await client.send("paint", {})
        await client.result(dead.run, timeout_s=BOUND_S)
    await client.start(GATE, run="open")
    await ended(client, "young")
    selection = await choose(client, Policy.of(["run=1h", "dead=1h"]))
    assert not selection.upto
    selection = await choose(client, Policy.of(["run=0s", "dead=0s"]))
    assert set(selection.upto) == {"bus.run.young"}
    assert selection.tallies["run"].stays == {"is open": 1, "has dead work": 1}
    assert selection.tallies["dead"].stays == {"is still dead": 1}
    await client.redrive(dead.run, by="ann")
    await client.cancel(dead.run, by="ann")
    await archive(client, folder, Policy.of(["run=0s", "dead=0s"]), by="ann")
    async with connect(server.url, archive=folder) as reading:
        assert [each.number async for each in reading.dead_letters()] == [number async for number in _dead(reading)]
        assert not [letter async for letter in client.dead_letters()]


async def _dead(client: Client) -> AsyncIterator[int]:
    async for record in client.log.read("bus.dead.*"):
        yield record.position


async def test_a_run_that_goes_on_while_it_is_archived_stays_whole_and_goes_later(
    server: Server, client: Client, folder: Path
) -> None:
    await client.start(GATE, run="lively")
    await client.reject("lively", "gate", by="ann")
    await ended(client, "quiet")
    before = await stored(client.log, "bus.run.lively")

    def redrive(step: str, done: int, of: int) -> None:
        if step == "indexed":
            redriving.append(asyncio.get_running_loop().create_task(client.redrive("lively", by="bob")))

    redriving: list[asyncio.Task[Any]] = []
    # The redrive is stored before the runs are closed: both go over one line, in order.
    outcome = await archive(client, folder, RUNS_AT_ONCE, by="ann", progress=redrive)
    await asyncio.gather(*redriving)
    assert list(outcome.kept) == ["bus.run.lively"]
    assert facts(await stored(client.log, "bus.run.lively"))[: len(before)] == facts(before)
    async with connect(server.url, archive=folder) as reading:
        assert facts(await stored(reading.log, "bus.run.lively")) == facts(await stored(client.log, "bus.run.lively"))
        assert (await reading.runs.load("lively")).is_open
    await client.approve("lively", "gate", by="bob")
    whole = await stored(client.log, "bus.run.lively")
    outcome = await archive(client, folder, RUNS_AT_ONCE, by="ann")
    assert outcome.segments[0].records == len(whole) - len(before)
    async with connect(server.url, archive=folder) as reading:
        assert facts(await stored(reading.log, "bus.run.lively"))[: len(whole)] == facts(whole)


async def test_who_reads_while_somebody_archives_misses_nothing(server: Server, client: Client, folder: Path) -> None:
    # More than a page and the one that is fetched ahead: what comes after them has gone when it is asked for.
    count = 4_000
    async with client.log.pipeline() as pipeline:
        for number in range(count):
            await pipeline.append(Part(f"bus.topic.t{number % 7}", message(str(number))))
    async with connect(server.url, archive=folder) as reading:
        positions: list[int] = []
        async for record in reading.log.read("bus.topic.>"):
            positions.append(record.position)
            if len(positions) == 10:
                await archive(client, folder, AT_ONCE, by="ann")
        assert positions == list(range(1, count + 1))


async def test_the_log_is_told_who_archives_what_and_what_has_left_it(client: Client, folder: Path) -> None:
    await ended(client, "gone")
    outcome = await archive(client, folder, RUNS_AT_ONCE, by="ann")
    (started, who), (sealed, what), (removed, rest) = await said(client)
    assert (started, sealed, removed) == (STARTED, SEALED, REMOVED)
    assert (who["by"], who["policy"], who["folder"]) == ("ann", ["run=0s"], str(folder))
    assert what["records"] == {"run": 2}
    assert [each["sha256"] for each in what["segments"]] == [each.sha256 for each in outcome.segments]
    assert (rest["records"], rest["subjects"], rest.get("kept")) == (2, 1, None)


async def test_nothing_to_archive_is_told_to_nobody(client: Client, folder: Path) -> None:
    await client.start(GATE, run="open")
    outcome = await archive(client, folder, AT_ONCE, by="ann")
    assert not outcome.segments and not await said(client)


async def test_one_archiver_at_a_time_works_in_a_folder(client: Client, folder: Path) -> None:
    await asyncio.to_thread(folder.mkdir)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Refused, match="another process"):
            await archive(client, folder, RUNS_AT_ONCE, by="ann")


async def test_of_archivers_in_several_folders_one_gets_each_record(client: Client, tmp_path: Path) -> None:
    for number in range(5):
        await ended(client, f"r{number}")
    folders = [tmp_path / str(number) for number in range(4)]
    passes = (archive(client, folder, RUNS_AT_ONCE, by="ann") for folder in folders)
    outcomes = await asyncio.gather(*passes, return_exceptions=True)
    assert all(isinstance(each, Outcome | Refused) for each in outcomes)
    assert sum(each.removed for each in outcomes if isinstance(each, Outcome)) == 10
    assert sum(part.records for each in outcomes if isinstance(each, Outcome) for part in each.segments) == 10


async def test_a_log_has_one_archive_unless_that_is_given_up(client: Client, folder: Path, tmp_path: Path) -> None:
    await ended(client, "first")
    await archive(client, folder, RUNS_AT_ONCE, by="ann")
    await ended(client, "second")
    with pytest.raises(Refused, match=f"this log is archived to {folder}"):
        await archive(client, tmp_path / "other", RUNS_AT_ONCE, by="bob")
    moved = await asyncio.to_thread(folder.rename, tmp_path / "moved")
    assert (await archive(client, moved, RUNS_AT_ONCE, by="bob")).removed == 2
    await ended(client, "third")
    for _ in range(2):
        await archive(client, tmp_path / "other", RUNS_AT_ONCE, by="bob", take_over=True)
    await archive(client, tmp_path / "other", RUNS_AT_ONCE, by="bob")


async def test_an_archiver_that_never_ends_can_be_taken_over(client: Client, folder: Path, tmp_path: Path) -> None:
    await ended(client, "gone")

    def stop(step: str, done: int, of: int) -> None:
        if step == "written":
            raise KeyError(step)

    with pytest.raises(KeyError):
        await archive(client, folder, RUNS_AT_ONCE, by="ann", progress=stop)
    with pytest.raises(Refused, match="has not ended"):
        await archive(client, tmp_path / "other", RUNS_AT_ONCE, by="bob")
    outcome = await archive(client, tmp_path / "other", RUNS_AT_ONCE, by="bob", take_over=True)
    assert outcome.removed == 2


async def test_a_damaged_segment_is_named_and_never_believed(server: Server, client: Client, folder: Path) -> None:
    await ended(client, "gone")
    outcome = await archive(client, folder, RUNS_AT_ONCE, by="ann")
    path = folder / outcome.segments[0].file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    async with connect(server.url, archive=folder) as reading:
        with pytest.raises(ArchiveDamaged, match=path.name):
            await reading.runs.load("gone")
    found = [each async for each in (await Archive.open(folder)).verify()]
    assert path.name in found[0].problem
    path.unlink()
    async with connect(server.url, archive=folder) as reading:
        with pytest.raises(ArchiveDamaged, match=path.name):
            await reading.runs.load("gone")
    async with connect(server.url, archive=folder) as reading:
        (folder / "index.json").rename(folder / "index.away")
        with pytest.raises(ArchiveDamaged, match="not any more"):
            await reading.runs.load("gone")
    (folder / "index.json").write_bytes(b'{"sha256":"","index":{}}')
    with pytest.raises(ArchiveDamaged, match=r"index\.json"):
        async with connect(server.url, archive=folder):
            pass


async def test_an_archive_is_of_one_log(server: Server, client: Client, folder: Path) -> None:
    await ended(client, "gone")
    await archive(client, folder, RUNS_AT_ONCE, by="ann")
    async with connect(server.url, namespace="other", operator_url=server.operator_url) as other:
        with pytest.raises(Misconfigured, match="another folder"):
            await archive(other, folder, RUNS_AT_ONCE, by="ann")
    with pytest.raises(Misconfigured, match="PHASEBUS_ARCHIVE"):
        async with connect(server.url, namespace="other", archive=folder):
            pass


async def test_who_may_take_nothing_out_of_the_log_archives_nothing(
    server: Server, client: Client, folder: Path
) -> None:
    await ended(client, "gone")
    async with connect(server.url) as nobody:
        with pytest.raises(SettingsError, match="PHASEBUS_OPERATOR_URL"):
            await archive(nobody, folder, RUNS_AT_ONCE, by="ann")
    async with connect(server.url, operator_url=server.url, request_timeout_s=0.5) as ordinary:
        with pytest.raises(Misconfigured, match="may not"):
            await archive(ordinary, folder, RUNS_AT_ONCE, by="ann")
    assert not await said(client)


@pytest.mark.parametrize("api", ["STREAM.PURGE.BUS", "STREAM.DELETE.BUS", "STREAM.UPDATE.BUS"])
async def test_the_ordinary_login_can_take_nothing_out_of_the_log(server: Server, client: Client, api: str) -> None:
    await client.start(GATE, run="r")
    config = {"name": "BUS", "subjects": client.subjects.logged(), "max_msgs": 1}
    request = json.dumps(config if "UPDATE" in api else {}).encode()
    with pytest.raises(Forbidden):
        await client.connection.request(f"$JS.API.{api}", request if "DELETE" not in api else b"", timeout_s=5)
    assert await stored(client.log, "bus.run.r")


async def test_no_login_can_remove_one_record(server: Server, client: Client) -> None:
    receipt = await client.start(GATE, run="r")
    request = json.dumps({"seq": receipt.position}).encode()
    for url in (server.url, server.operator_url):
        async with Connection.open(url, name="test") as connection:
            answer = await connection.request("$JS.API.STREAM.MSG.DELETE.BUS", request, timeout_s=2)
            assert json.loads(answer.data)["error"]["err_code"] == 10057
            rollup = await connection.request("bus.run.r", b"{}", headers={"Nats-Rollup": "sub"}, timeout_s=2)
            assert "error" in json.loads(rollup.data)
    assert await client.log.at(receipt.position)


async def test_the_operator_can_purge_and_delete(server: Server, client: Client) -> None:
    await client.start(GATE, run="r")
    async with Connection.open(server.operator_url, name="test") as operator:
        for api in ("PURGE", "DELETE"):
            answer = await operator.request(f"$JS.API.STREAM.{api}.BUS", b"", timeout_s=2)
            assert json.loads(answer.data)["success"]


@pytest.mark.parametrize("limit", ["max_msgs", "max_bytes", "max_age", "max_msgs_per_subject"])
async def test_a_log_that_drops_what_is_over_a_limit_is_refused(connection: Connection, limit: str) -> None:
    config = {**log_config(Subjects("bus"), 1), limit: 10**9}
    await connection.request("$JS.API.STREAM.CREATE.BUS", json.dumps(config).encode(), timeout_s=2)
    with pytest.raises(Misconfigured, match=limit):
        await Log(connection, Subjects("bus"), Settings()).set_up()


async def test_a_subject_that_would_stand_for_others_stays(server: Server, client: Client, folder: Path) -> None:
    """The server takes `*` in a subject from who may publish anywhere, and as a filter it means every subject."""
    await client.log.append("bus.topic.young", message())
    for line in (b"PUB bus.topic.* 2\r\n{}\r\n", b"PUB bus.topic.\xff 2\r\n{}\r\n"):
        client.connection._client.send(line)
    await client.connection.flush(2)
    selection = await choose(client, AT_ONCE)
    assert all("*" not in subject and subject.isascii() for subject in selection.upto)
    outcome = await archive(client, folder, Policy.of(["topic=0s"]), by="ann")
    assert outcome.removed == 1


async def test_an_archive_holds_large_payloads_itself(server: Server, client: Client, folder: Path) -> None:
    texts = {name: token_hex(size) for name, size in {"small": 100, "large": 40_000, "huge": 1_500_000}.items()}
    for name, text in texts.items():
        await client.log.append(f"bus.topic.{name}", message(text))
    before = await stored(client.log)
    await archive(client, folder, AT_ONCE, by="ann")
    async with Connection.open(server.operator_url, name="test") as operator:
        await operator.request("$JS.API.STREAM.DELETE.OBJ_BUS_PAYLOADS", timeout_s=2)
    async with connect(server.url, archive=folder) as reading:
        found = await stored(reading.log, "bus.topic.*")
        assert facts(found) == facts(before)
        assert [json.loads(bytes(each.envelope().data))["text"] for each in found] == list(texts.values())


async def test_what_has_lost_its_payload_stays_where_it_may_come_back(
    server: Server, client: Client, folder: Path
) -> None:
    await client.log.append("bus.topic.huge", message(token_hex(1_500_000)))
    async with Connection.open(server.operator_url, name="test") as operator:
        await operator.request("$JS.API.STREAM.PURGE.OBJ_BUS_PAYLOADS", timeout_s=2)
    selection = await choose(client, AT_ONCE)
    assert selection.tallies["topic"].stays == {"has lost its payload": 1}


async def test_a_supervisor_goes_on_behind_archived_runs(server: Server, client: Client, folder: Path) -> None:
    await ended(client, "gone")
    await archive(client, folder, RUNS_AT_ONCE, by="ann")
    async with supervised(server):
        plan = Plan("late", phases=[Phase("a", "nobody", queue_timeout_s=0.2)])
        state = await client.result((await client.start(plan)).run, timeout_s=BOUND_S)
        assert state.status == "failed"


async def test_a_large_archive_is_read_a_page_at_a_time(server: Server, client: Client, folder: Path) -> None:
    async with client.log.pipeline() as pipeline:
        for number in range(400):
            await pipeline.append(Part(f"bus.topic.t{number % 3}", message(f"{number}" + "x" * 20_000)))
    before = facts(await stored(client.log))
    outcome = await archive(client, folder, AT_ONCE, by="ann")
    [segment] = outcome.segments
    assert segment.lines_bytes < SEGMENT_BYTES and len(segment.pages) > 5
    held = await Archive.open(folder)
    assert facts([record async for record in held.read("bus.topic.t1", after=100, upto=300)]) == [
        each for each in before if each[1] == "bus.topic.t1" and 100 < int(str(each[0])) <= 300
    ]
    async with connect(server.url, archive=folder) as reading:
        assert facts(await stored(reading.log, upto=400)) == before
    await until(lambda: len(held._pages) <= 8)
