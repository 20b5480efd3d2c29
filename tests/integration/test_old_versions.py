"""Logs that other versions wrote: read as the newest, also as of a position; what is unknown is kept and reported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import msgspec
import pytest
import structlog

from bus import Agent, Client, Phase, Plan, connect
from bus.broker.server import Server
from bus.clock import utc_now
from bus.format import messages
from bus.format.envelope import envelope
from bus.format.schemas import Catalogue
from bus.rules import events
from bus.rules.events import COMMIT, EVENTS, EventReader, PhaseReady, PhaseStarted, UnknownEvent
from bus.runs import unknown
from projections.catchup import build
from projections.runs import RUNS, rows
from tests.harness import happenings, serving


class Started(PhaseStarted, tag="phase.started.v3", frozen=True, kw_only=True):
    """Two versions from now: an instance is on a host, and it says why it has taken the work."""

    host: str
    why: str


def version_to_come() -> Catalogue:
    """The events of that version, and how it reads those of this one."""
    others = [type for type in events.Known.__args__ if type is not PhaseStarted]
    found = Catalogue.of(*others, Started)

    @found.upcaster("phase.started.v1")
    def with_host(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "host": f"host of {old['instance']}"}

    @found.upcaster("phase.started.v2")
    def with_reason(old: dict[str, Any]) -> dict[str, Any]:
        return {**old, "why": "nobody knows"}

    return found


@pytest.fixture(autouse=True)
def _nothing_said() -> Iterator[None]:
    unknown._said.clear()
    yield
    unknown._said.clear()


agent = Agent("doubler")


@agent.capability("double")
def double(number: int) -> int:
    return 2 * number


PLAN = Plan("twice", phases=[Phase("one", "double", input=1), Phase("two", "double", input={"ref": "one"})])


async def finished(client: Client, server: Server, run: str) -> None:
    async with serving(server, agent):
        await client.start(PLAN, run=run)
        await client.result(run, timeout_s=20)


async def append(client: Client, run: str, *written: object) -> int:
    """Events of another version, as that would store them."""
    message = envelope(COMMIT, {"events": written}, id=uuid4().hex, source="other", time=utc_now(), runid=run)
    return await client.log.append(client.subjects.run(run), message)


async def test_a_log_of_this_version_is_read_by_one_two_versions_on(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(server.url) as client:
        await finished(client, server, "twice-1")
        now = await client.runs.load("twice-1")
        told = await happenings(client, "twice-1")
        monkeypatch.setattr(events, "EVENT_READER", EventReader(version_to_come()))
        later = [each.event for each in await happenings(client, "twice-1")]
        started = [event for event in later if isinstance(event, PhaseStarted)]
        assert len(later) == len(told)
        assert {(type(event), event.host[:8], event.why) for event in started if isinstance(event, Started)} == {
            (Started, "host of ", "nobody knows")
        }
    async with connect(server.url) as fresh:
        assert await fresh.runs.load("twice-1") == now
        first = next(each for each in told if isinstance(each.event, PhaseStarted))
        then = await fresh.ledger.as_of("twice-1", first.position)
        assert then.phases["one"].status == "in_progress"
        assert then.phases["two"].status == "pending"
        assert [row.status for row in rows((await build(fresh, RUNS)).rows, utc_now())] == ["completed"]


async def test_this_version_keeps_what_a_newer_one_wrote_and_says_so_once(server: Server) -> None:
    async with connect(server.url) as client:
        await client.start(Plan("twice", phases=[Phase("one", "nobody.offers")]), run="twice-2")
        before = await client.runs.load("twice-2")
        paused = {"type": "phase.paused.v1", "phase": "one", "by": ["ann"]}
        newer = {"type": "phase.ready.v2", "phase": "one", "attempt": 7}
        with structlog.testing.capture_logs() as logged:
            position = await append(client, "twice-2", paused, newer, paused)
            async with connect(server.url) as other:
                state = await other.runs.load("twice-2")
                commits = [commit async for commit in other.ledger.commits("twice-2", after=before.position)]
                await build(other, RUNS)
        assert state.phases == before.phases
        assert (state.position, state.events, state.unknown_events) == (position, before.events + 3, 3)
        kept = [event for event in commits[0].events if isinstance(event, UnknownEvent)]
        assert [msgspec.json.decode(event.raw) for event in kept] == [paused, newer, paused]
        assert [(line["type"], line["standing"], line["run"]) for line in logged if "kept" in line["event"]] == [
            ("phase.paused.v1", "unknown", "twice-2"),
            ("phase.ready.v2", "newer", "twice-2"),
        ]
        # It can be gone on with: what is appended next stands after what was not understood.
        cancelled = await client.cancel("twice-2", by="ann")
        assert (cancelled.status, cancelled.unknown_events) == ("cancelled", 3)


async def test_types_that_somebody_makes_up_are_not_logged_without_end(server: Server) -> None:
    async with connect(server.url) as client:
        await client.start(Plan("twice", phases=[Phase("one", "nobody.offers")]), run="twice-3")
        made_up = [{"type": f"made.up.v{number}", "x": "y" * 100} for number in range(1, 301)]
        with structlog.testing.capture_logs() as logged:
            await append(client, "twice-3", *made_up)
            assert (await client.runs.load("twice-3")).unknown_events == 300
        said = [line["event"] for line in logged]
        assert len(said) == 101
        assert said[-1].startswith("too many unknown types")


async def test_a_malformed_event_of_an_older_version_is_set_aside_with_its_commit(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connect(server.url) as client:
        await client.start(Plan("twice", phases=[Phase("one", "nobody.offers")]), run="twice-4")
        before = await client.runs.load("twice-4")
        await append(client, "twice-4", {"type": "phase.started.v1", "phase": "one", "attempt": 1})
        monkeypatch.setattr(events, "EVENT_READER", EventReader(version_to_come()))
        async with connect(server.url) as other:
            state = await other.runs.load("twice-4")
        assert (state.phases, state.events) == (before.phases, before.events)


class Amount(msgspec.Struct, tag_field="type", tag="amount.v2", frozen=True):
    cents: int


async def test_work_and_results_that_were_stored_as_an_older_version_reach_handlers_and_callers_as_the_newest(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = Catalogue.of(Amount)
    mine.upcaster("amount.v1")(lambda old: {"cents": old["euros"] * 100})
    monkeypatch.setattr("bus.handlers.handling.MESSAGES", mine)
    monkeypatch.setattr("bus.messages.answers.MESSAGES", mine)
    till = Agent("till")

    @till.capability("add")
    def add(amounts: list[Amount]) -> dict[str, Any]:
        return {"type": "amount.v1", "euros": sum(amount.cents for amount in amounts) // 100}

    stored = [{"type": "amount.v1", "euros": 3}, {"type": "amount.v2", "cents": 400}]
    async with connect(server.url) as client, serving(server, till):
        assert await client.ask("add", stored, Amount, timeout_s=10) == Amount(700)
        assert await client.ask("add", stored, timeout_s=10) == {"type": "amount.v1", "euros": 7}


def test_the_library_s_own_catalogues_have_no_older_versions_yet() -> None:
    assert EVENTS.upcasters == messages.MESSAGES.upcasters == {}
    assert events.type_of(PhaseReady(phase="a", attempt=1)) in EVENTS.types
