"""Export and import: a log in another place says the same, and nothing that goes wrong on the way damages it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bus import Client, RunState, connect, serving
from bus.archives.importing import Imported, import_lines
from bus.broker.server import Server, embedded
from bus.errors import MalformedMessage, Refused
from bus.format.envelope import encode, envelope
from bus.history import feed
from bus.history.selection import Selection
from bus.log import lines
from bus.log.lines import Line
from projections.catchup import build
from projections.runs import RUNS, rows
from tests.harness import BOUND_S, supervised, until
from tests.integration.test_feed import PLAN, history, shop

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


@asynccontextmanager
async def fresh(folder: Path) -> AsyncIterator[tuple[Client, Server]]:
    async with embedded(folder, durability="fast") as server, connect(server.url, durability="fast") as client:
        yield client, server


async def exported(client: Client, **wanted: Any) -> list[bytes]:
    found = feed.records(client.log, Selection(**wanted))
    return [
        lines.write(lines.line(each.position, each.subject, each.stored_at, each.headers, each.body))
        async for each in found
    ]


async def imported(client: Client, text: list[bytes]) -> Imported:
    return await import_lines(client, lambda: text)


def but_for_its_place(text: bytes) -> Line:
    return msgspec.structs.replace(lines.read(text, "a line"), position=1, at=NOW)


async def views(client: Client, *runs: str) -> list[object]:
    """What `run show`, `run ls` and `dead ls` say, but for positions."""
    letters = [msgspec.structs.replace(each, number=0) async for each in client.dead_letters()]
    states = [_without_positions(await client.runs.load(run)) for run in runs]
    listed = rows((await build(client, RUNS)).rows, NOW, tasks=True)
    return [states, listed, letters]


def _without_positions(state: RunState) -> RunState:
    replace = msgspec.structs.replace
    phases = {
        key: replace(phase, items=[replace(item, origin=0) for item in phase.items])
        for key, phase in state.phases.items()
    }
    return replace(state, position=0, origin=0, phases=phases)


async def test_an_imported_log_says_the_same_and_exports_the_same_lines(client: Client, tmp_path: Path) -> None:
    # Positions that the copy can't have.
    await client.log.append("bus.topic.t", envelope("t.v1", 1, id="only-here", source="/test", time=NOW))
    await client.connection.request(
        "bus.work.price.forged.work.1".replace("work", "topic", 1),
        b" with\nlines \xff",
        headers={"A": "b"},
        timeout_s=5,
    )
    await history(client, "one", "two")
    await client.redrive("two", by="test")
    before = await exported(client, subjects=["bus.run.*", "bus.dead.*", "bus.topic.price.>"])
    async with fresh(tmp_path / "other") as (other, _):
        assert await imported(other, before) == Imported(len(before), 0, [])
        after = await exported(other)
        assert [*map(but_for_its_place, after)] == [*map(but_for_its_place, before)]
        assert [lines.read(each, "").position for each in after] != [lines.read(each, "").position for each in before]
        assert await views(other, "one", "two") == await views(client, "one", "two")


async def test_payloads_that_no_message_can_hold_move_along(client: Client, tmp_path: Path) -> None:
    large = {"text": "".join(chr(32 + number * 7919 % 90) for number in range(3_000_000))}
    receipt = await client.send("read", large)
    text = await exported(client)
    async with fresh(tmp_path / "other") as (other, _):
        assert (await imported(other, text)).stored == len(text)
        assert (await other.runs.load(receipt.run)).input.value == large
        assert [*map(but_for_its_place, await exported(other))] == [*map(but_for_its_place, text)]
        assert (await imported(other, text)).there == len(text)


async def test_an_imported_run_goes_on(client: Client, tmp_path: Path) -> None:
    await client.start(PLAN, {"items": [1, 2]}, run="open")
    text = await exported(client)
    async with fresh(tmp_path / "other") as (other, server):
        await imported(other, text)
        async with supervised(server, durability="fast"), serving(other, shop()):
            assert (await other.result("open", timeout_s=BOUND_S)).status == "completed"


async def test_another_namespace_takes_it_and_its_unreadable_work_goes_there_when_redriven(
    server: Server, client: Client
) -> None:
    async with serving(client, shop()):
        await client.connection.request("bus.work.price.forged.work.1", b"\xff", timeout_s=5)
        await until(lambda: _letters(client))
    [found] = [each async for each in client.dead_letters()]
    await client.redrive_letter(found.number, by="test")
    text = await exported(client)
    async with connect(server.url, namespace="copy") as copy:
        assert (await imported(copy, text)).stored == len(text)
        [letter] = [each async for each in copy.dead_letters()]
        assert letter.standing == "redriven"
        heard: list[str] = []
        for namespace in ("bus", "copy"):
            copy.connection.subscribe(f"{namespace}.work.>", lambda message: heard.append(message.subject))
        await copy.redrive_letter(letter.number, by="test")
        await copy.connection.flush(5)
        assert heard == ["copy.work.price.forged.work.1"]


async def test_an_import_that_is_repeated_adds_nothing_and_one_that_was_cut_short_is_finished(
    client: Client, tmp_path: Path
) -> None:
    await history(client, "one", "two")
    text = await exported(client)
    async with fresh(tmp_path / "other") as (other, _):
        part = text[: len(text) // 2]
        await imported(other, part)
        assert await imported(other, text) == Imported(len(text) - len(part), len(part), [])
        assert await imported(other, text) == Imported(0, len(text), [])
        # An older export of the same is there as well.
        assert await imported(other, part) == Imported(0, len(part), [])
        assert [*map(but_for_its_place, await exported(other))] == [*map(but_for_its_place, text)]
    assert await imported(client, text) == Imported(0, len(text), [])


async def test_a_subject_that_holds_something_else_is_named_and_nothing_is_written(
    client: Client, tmp_path: Path
) -> None:
    await history(client, "one", "two")
    text = await exported(client)
    async with fresh(tmp_path / "other") as (other, _):
        await history(other, "two")
        before = await exported(other)
        with pytest.raises(Refused, match=r"bus\.run\.two"):
            await imported(other, text)
        assert await exported(other) == before


@pytest.mark.parametrize(
    ("broken", "says"),
    [(b'{"position":1,', "line 3 is not a record"), (b"nonsense\n", "line 3 is not a record")],
)
async def test_a_broken_line_is_named_and_nothing_is_written(
    client: Client, tmp_path: Path, broken: bytes, says: str
) -> None:
    await history(client, "one")
    text = await exported(client)
    async with fresh(tmp_path / "other") as (other, _):
        with pytest.raises(MalformedMessage, match=says):
            await imported(other, [*text[:2], broken, *text[2:]])
        assert await exported(other) == []


async def test_lines_that_are_out_of_order_are_refused_and_exports_of_several_runs_may_stand_in_a_row(
    client: Client, tmp_path: Path
) -> None:
    await history(client, "one", "two")
    text = await exported(client)
    async with fresh(tmp_path / "other") as (other, _):
        with pytest.raises(MalformedMessage, match="is out of order: it stood at position"):
            await imported(other, text[::-1])
        assert await exported(other) == []
        runs = [*await exported(client, subjects=["bus.run.two"]), *await exported(client, subjects=["bus.run.one"])]
        assert (await imported(other, runs)).stored == len(runs)
        for run in ("one", "two"):
            assert (await other.runs.load(run)).status == (await client.runs.load(run)).status


async def test_what_is_no_subject_of_a_log_is_refused(client: Client) -> None:
    stray = lines.write(lines.line(1, "bus.work.c.r.p.1", NOW, {}, b"{}"))
    with pytest.raises(MalformedMessage, match=r"line 1: 'bus\.work\.c\.r\.p\.1' is not a subject"):
        await imported(client, [stray])


async def test_what_can_not_be_sent_is_left_out_and_said(client: Client) -> None:
    hostile = lines.write(lines.line(1, "bus.topic.\udcff", NOW, {}, b"{}"))
    ours = lines.write(lines.line(2, "bus.topic.t", NOW, {"Nats-Msg-Id": "a"}, b"{}"))
    for stored in (1, 0):
        done = await imported(client, [hostile, ours])
        assert (done.stored, len(done.left_out)) == (stored, 1)
        assert done.left_out[0].startswith("line 1: ")


def many(count: int) -> list[bytes]:
    """Records of a few subjects, mixed, with ids."""

    def each() -> Iterator[bytes]:
        for number in range(count):
            message = envelope("t.v1", {"n": number}, id=f"id-{number}", source="/test", time=NOW)
            subject = f"bus.topic.t{number % 7}"
            yield lines.write(lines.line(number + 1, subject, NOW, {"Nats-Msg-Id": message.id}, encode(message)))

    return list(each())


async def test_an_import_goes_on_across_kills_of_the_server_in_order_and_without_doubles(tmp_path: Path) -> None:
    text = many(6_000)
    async with embedded(tmp_path / "store") as server, connect(server.url) as client:

        async def kill() -> None:
            for threshold in (1_000, 3_000):
                while (await client.log.last("bus.>") or _NONE).position < threshold:
                    await asyncio.sleep(0.01)
                await server.kill()
                await server.restart()

        done, _ = await asyncio.gather(imported(client, text), kill())
        assert done == Imported(len(text), 0, [])
        assert [*map(but_for_its_place, await exported(client))] == [*map(but_for_its_place, text)]


async def test_others_may_write_elsewhere_meanwhile_but_not_to_the_same_subjects(client: Client) -> None:
    text = many(4_000)

    async def elsewhere() -> None:
        for number in range(100):
            message = envelope("t.v1", number, id=f"else-{number}", source="/test", time=NOW)
            await client.log.append("bus.topic.elsewhere", message)

    done, _ = await asyncio.gather(imported(client, text), elsewhere())
    assert done.stored == len(text)
    ours = await exported(client, subjects=[f"bus.topic.t{number}" for number in range(7)])
    assert [*map(but_for_its_place, ours)] == [*map(but_for_its_place, text)]


async def test_a_writer_on_the_same_subject_ends_the_import(client: Client) -> None:
    async def meddle() -> None:
        while (await client.log.last("bus.>") or _NONE).position < 1:
            await asyncio.sleep(0)
        await client.log.append("bus.topic.t3", envelope("t.v1", 0, id="meddler", source="/test", time=NOW))

    meddling = asyncio.create_task(meddle())
    with pytest.raises(Refused, match=r"somebody else writes to 'bus\.topic\.t3'"):
        await imported(client, many(20_000))
    await meddling


class _NONE:
    position = 0


async def _letters(client: Client) -> bool:
    return bool([each async for each in client.dead_letters()])
