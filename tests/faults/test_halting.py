"""Work that is under way and not wanted any more: whoever does it is told, stops, and says nothing of it afterwards."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from bus import Client, Phase, Plan, RetryPolicy, connect
from bus.broker.server import Server
from bus.clock import utc_now
from bus.registry.presence import Held
from bus.rules.commands import Cancel, Command, Skip
from bus.rules.decide import decide
from bus.rules.events import Commit, PhaseAttemptFailed, ResultRefused
from bus.rules.folding import evolve
from bus.runs.halts import Halt
from tests.harness import (
    BOUND_S,
    agent_processes,
    agents_there,
    happenings,
    has_ended,
    pid_of,
    supervised,
    until,
)

HOLDER = Path(__file__).with_name("holder.py")
NEVER_AGAIN = RetryPolicy(lost=0, unknown=0, transient=0)
KINDS = ["async", "stubborn", "thread", "process"]


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


def holding(folder: Path, *kinds: str, **bounds: float) -> Plan:
    """A plan with a phase of each kind, side by side."""
    return Plan(
        "holding",
        phases=[Phase(kind, f"hold.{kind}", input=str(folder), retry=NEVER_AGAIN, **bounds) for kind in kinds],
    )


async def under_way(folder: Path, *kinds: str) -> list[int]:
    """Wait until all handlers have begun; the processes of the isolated one."""
    await until(lambda: all((folder / f"{kind}.began").exists() for kind in kinds))
    isolated = folder / "process.began"
    return [int(pid) for pid in isolated.read_text().split()] if isolated.exists() else []


async def stopped(folder: Path, pids: list[int], *kinds: str) -> None:
    """Wait until all handlers have been told, and the isolated one and its child are dead."""
    told = [kind for kind in kinds if kind != "process"]
    await until(lambda: all((folder / f"{kind}.ended").exists() for kind in told))
    await until(lambda: all(map(has_ended, pids)))


async def nothing_is_held(client: Client) -> None:
    async def is_so() -> bool:
        return not any(beat.held for beat in await client.agents())

    await until(is_so)


async def refused(client: Client, run: str) -> int:
    """How many late results the log has."""
    commits = [commit async for commit in client.ledger.commits(run)]
    return sum(isinstance(event, ResultRefused) for commit in commits for event in commit.events)


async def test_cancelling_a_run_stops_handlers_of_every_kind(server: Server, client: Client, tmp_path: Path) -> None:
    with agent_processes(server, HOLDER):
        await agents_there(client, 1)
        receipt = await client.start(holding(tmp_path, *KINDS))
        pids = await under_way(tmp_path, *KINDS)
        assert not any(map(has_ended, pids))
        await client.cancel(receipt.run, by="ann", reason="wrong branch")
        await stopped(tmp_path, pids, *KINDS)
        await nothing_is_held(client)
        (tmp_path / "go").touch()
        # Their places are free again, that of the one that goes on regardless too.
        state = await client.result((await client.start(holding(tmp_path, "async", "stubborn"))).run, timeout_s=BOUND_S)
        assert await refused(client, receipt.run) == 0
    assert (tmp_path / "async.ended").read_text() == "the run was cancelled by ann: wrong branch"
    assert (tmp_path / "thread.ended").read_text() == "the run was cancelled by ann: wrong branch"
    assert state.status == "completed"


async def test_skipping_a_phase_stops_its_handler_and_no_other(server: Server, client: Client, tmp_path: Path) -> None:
    with agent_processes(server, HOLDER):
        await agents_there(client, 1)
        receipt = await client.start(holding(tmp_path, "thread", "async"))
        await under_way(tmp_path, "thread", "async")
        await client.runs.submit(receipt.run, Skip("thread", "ann", "known"))
        await stopped(tmp_path, [], "thread")
        (tmp_path / "go").touch()
        state = await client.result(receipt.run, timeout_s=BOUND_S)
    assert (state.phases["thread"].status, state.phases["async"].status) == ("skipped", "completed")
    assert not (tmp_path / "async.ended").exists()


async def test_an_item_that_fails_for_all_stops_the_others(server: Server, client: Client, tmp_path: Path) -> None:
    folders = [str(tmp_path), "/nowhere"]
    plan = Plan("items", phases=[Phase("all", "hold.async", each="input", fail_fast=True, retry=NEVER_AGAIN)])
    with agent_processes(server, HOLDER):
        await agents_there(client, 1)
        receipt = await client.start(plan, folders)
        state = await client.result(receipt.run, timeout_s=BOUND_S)
        await stopped(tmp_path, [], "async")
        await nothing_is_held(client)
    assert [item.status for item in state.phases["all"].items] == ["cancelled", "failed"]


@pytest.mark.parametrize(
    ("bounds", "cause"),
    [({"timeout_s": 1.5}, "timed_out"), ({"silence_timeout_s": 1.5}, "silent")],
    ids=["deadline", "silence"],
)
async def test_a_clock_that_runs_out_stops_handlers_of_every_kind(
    server: Server, client: Client, tmp_path: Path, bounds: dict[str, float], cause: str
) -> None:
    with agent_processes(server, HOLDER):
        await agents_there(client, 1)
        receipt = await client.start(holding(tmp_path, *KINDS, **bounds))
        pids = await under_way(tmp_path, *KINDS)
        state = await client.result(receipt.run, timeout_s=BOUND_S)
        await stopped(tmp_path, pids, *KINDS)
        await nothing_is_held(client)
        (tmp_path / "go").touch()
        assert await refused(client, receipt.run) == 0
    attempts = [phase.items[0].attempts[0] for phase in state.phases.values()]
    assert [(each.cause, each.problem.code if each.problem else "") for each in attempts] == [(cause, cause)] * 4
    assert all(each.duration_s and each.instance.startswith("holder-") for each in attempts)


async def test_a_phase_s_total_time_stops_its_handler(server: Server, client: Client, tmp_path: Path) -> None:
    async with supervised(server):
        with agent_processes(server, HOLDER):
            await agents_there(client, 1)
            receipt = await client.start(holding(tmp_path, "async", total_timeout_s=1.0))
            state = await client.result(receipt.run, timeout_s=BOUND_S)
            await stopped(tmp_path, [], "async")
    assert state.phases["async"].items[0].attempts[0].cause == "cancelled"
    assert "within 1 s, all attempts together" in (tmp_path / "async.ended").read_text()


async def test_a_sign_of_life_is_enough_for_a_long_silence_bound(
    server: Server, client: Client, tmp_path: Path
) -> None:
    """What reports is heard, also through a process of its own; nothing but its deadline ends it."""
    with agent_processes(server, HOLDER):
        await agents_there(client, 1)
        plan = holding(tmp_path, "reporting", silence_timeout_s=1.0, timeout_s=3.0)
        state = await client.result((await client.start(plan)).run, timeout_s=BOUND_S)
    assert state.phases["reporting"].items[0].attempts[0].cause == "timed_out"
    assert state.phases["reporting"].items[0].attempts[0].note == "still here"


async def commit_silently(client: Client, run: str, command: Command) -> None:
    """As a process that is gone before it has told anybody."""
    state = await client.runs.load(run)
    now = utc_now()
    happened = decide(state, command, run=run, now=now)
    commit = Commit(run, os.urandom(8).hex(), now, state.position + 1, happened)
    await client.ledger.append(evolve(state, commit), commit, None, state)


async def test_who_was_not_told_is_told_by_the_supervisor(server: Server, client: Client, tmp_path: Path) -> None:
    async with supervised(server):
        with agent_processes(server, HOLDER):
            await agents_there(client, 1)
            receipt = await client.start(holding(tmp_path, *KINDS))
            pids = await under_way(tmp_path, *KINDS)
            await commit_silently(client, receipt.run, Cancel("ann"))
            await stopped(tmp_path, pids, *KINDS)
            await nothing_is_held(client)
            assert await refused(client, receipt.run) == 0
    assert (tmp_path / "thread.ended").read_text() == "the log has it as over"


async def test_who_was_not_told_learns_it_from_its_own_progress(server: Server, client: Client, tmp_path: Path) -> None:
    with agent_processes(server, HOLDER):
        await agents_there(client, 1)
        receipt = await client.start(holding(tmp_path, "reporting"))
        await under_way(tmp_path, "reporting")
        await commit_silently(client, receipt.run, Cancel("ann"))
        await stopped(tmp_path, [], "reporting")
        await nothing_is_held(client)
        assert await refused(client, receipt.run) == 0


@pytest.mark.parametrize("attempt", [1, 2])
async def test_a_forged_halt_stops_nothing(server: Server, client: Client, tmp_path: Path, attempt: int) -> None:
    with agent_processes(server, HOLDER):
        await agents_there(client, 1)
        receipt = await client.start(holding(tmp_path, "async"))
        await under_way(tmp_path, "async")
        (instance,) = [beat.instance for beat in await client.agents()]
        forged = Halt([Held(receipt.run, "async", None, attempt)], "because I say so")
        for data in (msgspec.json.encode(forged), b"\xff", b"{}", b"[" * 100_000):
            client.connection.publish(client.subjects.halt(instance), data)
        await client.connection.flush(5)
        assert (await client.agents())[0].held
        (tmp_path / "go").touch()
        state = await client.result(receipt.run, timeout_s=BOUND_S)
    assert client.output(state, "async") == "went on in attempt 1"
    assert not (tmp_path / "async.ended").exists()


async def test_a_killed_worker_takes_its_isolated_handlers_with_it(
    server: Server, client: Client, tmp_path: Path
) -> None:
    async with supervised(server):
        with agent_processes(server, HOLDER) as processes:
            await agents_there(client, 1)
            receipt = await client.start(holding(tmp_path, "process"))
            pids = await under_way(tmp_path, "process")
            processes[0].kill()
            await until(lambda: all(map(has_ended, pids)))
            state = await client.result(receipt.run, timeout_s=BOUND_S)
    assert [attempt.cause for attempt in state.phases["process"].items[0].attempts] == ["crashed"]


async def test_an_isolated_handler_that_is_killed_is_a_crash_of_that_attempt_only(
    server: Server, client: Client, tmp_path: Path
) -> None:
    with agent_processes(server, HOLDER):
        await agents_there(client, 1)
        receipt = await client.start(holding(tmp_path, "process", "async"))
        pids = await under_way(tmp_path, "process", "async")
        os.kill(pids[0], signal.SIGKILL)
        await until(lambda: all(map(has_ended, pids)))
        (tmp_path / "go").touch()
        state = await client.result(receipt.run, timeout_s=BOUND_S)
    (crashed,) = state.phases["process"].items[0].attempts
    assert crashed.problem is not None
    assert (crashed.cause, crashed.problem.code) == ("crashed", "crashed")
    assert "SIGKILL" in crashed.problem.title
    assert state.phases["async"].status == "completed"


async def test_a_frozen_worker_stops_its_handlers_when_it_wakes(server: Server, client: Client, tmp_path: Path) -> None:
    """Its attempts went on elsewhere, and it is told so by what has waited for it on the line."""
    plan = Plan("frozen", phases=[Phase("async", "hold.async", input=str(tmp_path))])
    async with supervised(server, lease_s=1.5):
        with agent_processes(server, HOLDER, 2):
            await agents_there(client, 2)
            receipt = await client.start(plan)
            await under_way(tmp_path, "async")
            state = await client.runs.load(receipt.run)
            frozen = await pid_of(client, state.phases["async"].items[0].attempts[0].instance)
            os.kill(frozen, signal.SIGSTOP)

            async def is_taken_over() -> bool:
                return len((await client.runs.load(receipt.run)).phases["async"].items[0].attempts) == 2

            await until(is_taken_over)
            os.kill(frozen, signal.SIGCONT)
            await stopped(tmp_path, [], "async")
            (tmp_path / "go").touch()
            state = await client.result(receipt.run, timeout_s=BOUND_S)
            events = [each.event for each in await happenings(client, receipt.run)]
    assert client.output(state, "async") == "went on in attempt 2"
    assert [each.cause for each in events if isinstance(each, PhaseAttemptFailed)] == ["frozen"]
    assert not any(isinstance(each, ResultRefused) for each in events)
