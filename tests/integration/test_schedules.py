"""Schedules on a real server: what is due is started once, whoever was up at that moment."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from agents.supervisor import Supervisor
from bus import Approval, Client, NotFound, Phase, Plan, PlanError, ScheduleError, connect
from bus.archives.outgoing import select
from bus.archives.retention import Policy
from bus.broker.connection import Connection
from bus.broker.server import Server
from bus.clock import utc_now
from bus.log.streams import info
from bus.rules.events import RunStarted
from bus.runs.schedule import SKIPPED, OccurrenceSkipped, Schedule
from bus.runs.schedules import Timers, Timetable
from tests.harness import supervised, until

GATE = Plan("gated", phases=[Phase("gate", approval=Approval())])
# A plan without work that ends at once: its only phase is skipped.
SHORT = Plan("short", phases=[Phase("go", wait_for="go", when="input.wait == true")])


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


async def runs(client: Client, name: str) -> list[str]:
    return [run for run in await client.ledger.names() if run.startswith(f"{name}-")]


async def at_least(client: Client, name: str, count: int) -> None:
    async def enough() -> bool:
        return len(await runs(client, name)) >= count

    await until(enough)


async def timers(client: Client) -> dict[str, int]:
    found = await info(client.connection, client.subjects.timers_stream, 5, subjects=client.subjects.all_timers)
    return found.subjects


async def skipped(client: Client) -> list[OccurrenceSkipped]:
    records = [record.envelope() async for record in client.log.read(client.subjects.ops("skipped") + ".*")]
    return [msgspec.json.decode(each.data, type=OccurrenceSkipped) for each in records if each.type == SKIPPED]


async def rung(client: Client, count: int) -> None:
    """Wait until so many occurrences have rung and nobody has heard them."""

    async def enough() -> bool:
        return sum(many for subject, many in (await timers(client)).items() if ".rung." in subject) >= count

    await until(enough)


async def test_what_is_due_every_second_is_started_each_time_with_its_input(server: Server, client: Client) -> None:
    async with supervised(server):
        entry = await client.schedule("tick", SHORT, {"wait": False}, every_s=1, overlap="allow", by="ann")
        await at_least(client, "tick", 3)
        state = await client.runs.load((await runs(client, "tick"))[0])
    assert (state.status, state.input.value, entry.by) == ("completed", {"wait": False}, "ann")


async def test_cron_is_started_too_and_the_runs_name_says_when(server: Server, client: Client) -> None:
    async with supervised(server):
        await client.schedule("even", SHORT, {"wait": False}, cron="*/2 * * * * *", zone="Europe/Berlin")
        await at_least(client, "even", 2)
    assert all(int(run[-1]) % 2 == 0 for run in await runs(client, "even"))


async def test_a_time_is_started_once(server: Server, client: Client) -> None:
    at = utc_now() + timedelta(seconds=1)
    async with supervised(server):
        entry = await client.schedule("once", GATE, at=at)
        await client.schedule("long-ago", GATE, at=at - timedelta(hours=1))
        await client.schedule("tick", SHORT, {"wait": False}, every_s=1)
        await at_least(client, "once", 1)
        await at_least(client, "tick", 4)
        assert len(await runs(client, "once")) == len(await runs(client, "long-ago")) == 1
    assert entry.schedule.at is not None
    assert await runs(client, "once") == [entry.schedule.run(entry.schedule.at)]
    assert (await client.schedules())[1].next is None


async def test_what_is_due_while_nobody_is_up_is_started_when_somebody_is_back(server: Server, client: Client) -> None:
    await client.schedule("tick", SHORT, {"wait": False}, every_s=1, overlap="allow")
    await rung(client, 3)
    assert await runs(client, "tick") == []
    async with supervised(server):
        await at_least(client, "tick", 3)

        async def all_heard() -> bool:
            return not any(".rung." in subject for subject in await timers(client))

        await until(all_heard)


async def test_an_occurrence_is_skipped_while_the_run_before_is_open_and_the_log_says_so(
    server: Server, client: Client
) -> None:
    async with supervised(server):
        await client.schedule("tick", GATE, every_s=1)

        async def some_skipped() -> bool:
            return len(await skipped(client)) >= 2

        await until(some_skipped)
        [first] = await runs(client, "tick")
        found = await skipped(client)
        assert {(each.name, each.reason, each.run) for each in found} == {("tick", "overlap", first)}
        assert len({each.at for each in found}) == len(found)
        await client.approve(first, "gate", by="ann")
        await at_least(client, "tick", 2)


async def test_what_is_due_for_too_long_is_not_started(server: Server, client: Client) -> None:
    async with supervised(server):
        await client.schedule("missed", GATE, at=utc_now() - timedelta(hours=1), catch_up_s=60)

        async def said() -> bool:
            return [(each.name, each.reason) for each in await skipped(client)] == [("missed", "late")]

        await until(said)
    assert await runs(client, "missed") == []


async def test_a_schedule_that_was_ended_starts_nothing_more(server: Server, client: Client) -> None:
    await client.schedule("tick", SHORT, {"wait": False}, every_s=1)
    await rung(client, 1)
    await client.unschedule("tick", by="ann")
    assert await timers(client) == {}
    assert await client.schedules() == []
    with pytest.raises(NotFound, match="no schedule 'tick'"):
        await client.unschedule("tick")
    async with supervised(server):
        await client.schedule("other", SHORT, {"wait": False}, every_s=1)
        await at_least(client, "other", 1)
    assert await runs(client, "tick") == []


async def test_the_same_schedule_once_more_changes_nothing_and_another_replaces_it(client: Client) -> None:
    first = await client.schedule("tick", GATE, every_s=3600)
    again = await client.schedule("tick", GATE, every_s=3600)
    assert again.position == first.position
    other = await client.schedule("tick", GATE, every_s=1800)
    assert other.position > first.position
    assert list(await timers(client)) == [client.subjects.timer("tick", other.position)]
    [entry] = await client.schedules()
    assert entry.schedule.every_s == 1800
    assert entry.next is not None and entry.next > utc_now()


async def test_a_schedule_that_can_not_work_leaves_nothing_behind(client: Client) -> None:
    wrong: list[dict[str, Any]] = [
        {"cron": "0 99 * * * *"},
        {"cron": "0 2 * * *", "zone": "Mars/Base"},
        {"every_s": 0},
        {},
    ]
    for each in wrong:
        with pytest.raises(ScheduleError, match="schedule 'tick'"):
            await client.schedule("tick", GATE, **each)
    with pytest.raises(PlanError):
        await client.schedule("tick", 7, every_s=5)  # type: ignore[arg-type]
    assert await client.log.last(client.subjects.ops("schedule")) is None


async def test_what_the_server_refuses_is_refused_with_its_reason(client: Client) -> None:
    schedule = Schedule(name="tick", plan=GATE, input=msgspec.Raw(b"{}"), cron="0 0 2 * * *")
    msgspec.structs.force_setattr(schedule, "cron", "0 0 0 L * *")
    with pytest.raises(ScheduleError, match="pattern is invalid"):
        await Timers(client.connection, client.subjects, client.settings).set(schedule, 1)


async def test_lost_timers_are_made_again_and_old_ones_end(server: Server, client: Client) -> None:
    async with supervised(server), Connection.open(server.operator_url, name="test") as operator:
        await client.schedule("tick", SHORT, {"wait": False}, every_s=1)
        await at_least(client, "tick", 1)
        await operator.request(f"$JS.API.STREAM.DELETE.{client.subjects.timers_stream}", timeout_s=5)
        before = len(await runs(client, "tick"))
        await at_least(client, "tick", before + 3)
        stale = Schedule(name="ended", plan=GATE, input=msgspec.Raw(b"{}"), every_s=3600)
        await Timers(client.connection, client.subjects, client.settings).set(stale, 1)

        async def is_gone() -> bool:
            return client.subjects.timer("ended", 1) not in await timers(client)

        await until(is_gone)


async def test_two_leaders_at_once_start_an_occurrence_once(server: Server, client: Client) -> None:
    await client.schedule("tick", SHORT, {"wait": False}, every_s=1, overlap="allow")
    async with supervised(server), connect(server.url, name="rival") as other:
        stop = asyncio.Event()
        rival = Supervisor(other, "rival")
        # It believes that it leads, as one does whose lease has ended without its knowing.
        rival._leadership.claim = _always  # type: ignore[method-assign]
        task = asyncio.create_task(rival.run(stop))
        await at_least(client, "tick", 5)
        stop.set()
        await task
    for run in await runs(client, "tick"):
        events = [event async for commit in client.ledger.commits(run) for event in commit.events]
        assert sum(isinstance(event, RunStarted) for event in events) == 1


async def test_a_record_nobody_can_read_does_no_harm_to_other_schedules(server: Server, client: Client) -> None:
    client.connection.publish(client.subjects.ops("schedule"), b"\xff")
    client.connection.publish(client.subjects.ops("schedule"), b'{"specversion":"1.0"}')
    await client.schedule("tick", SHORT, {"wait": False}, every_s=1)
    client.connection.publish(client.subjects.rung("tick", 999), b"")
    client.connection.publish(f"{client.subjects.namespace}.timer.rung.x", b"")
    async with supervised(server):
        await at_least(client, "tick", 2)
    timetable = Timetable(client.log)
    await timetable.refresh()
    assert list(timetable.entries) == ["tick"]


async def _always() -> bool:
    return True


async def test_schedules_stay_when_what_operators_did_is_archived(client: Client) -> None:
    await client.schedule("tick", GATE, every_s=3600)
    chosen = await select(client.log, Policy.of(["ops=0s"]), utc_now() + timedelta(days=1))
    assert (chosen.upto, dict(chosen.tallies["ops"].stays)) == ({}, {"says which schedules there are": 1})
