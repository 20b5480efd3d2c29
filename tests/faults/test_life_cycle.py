"""Instances come and go while work flows: nothing is lost, nothing is done twice."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bus import Client, connect
from bus.broker.server import Server
from bus.registry.arrivals import event_in
from bus.registry.card import AgentDeregistered, AgentLost
from bus.rules.events import PhaseAttemptFailed, PhaseCompleted
from tests.harness import BOUND_S, agent_process, agent_processes, agents_there, happenings, supervised, until

STUBBORN = Path(__file__).with_name("stubborn.py")
MARKER = Path(__file__).with_name("marker.py")
TASKS = 500


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


async def test_instances_join_and_leave_under_load_with_nothing_lost_and_nothing_done_twice(
    server: Server, client: Client, tmp_path: Path
) -> None:
    lines = tmp_path / "lines"
    async with supervised(server):
        with agent_processes(server, MARKER, 2) as processes:
            await agents_there(client, 2)
            sending = asyncio.create_task(_send(client, lines))
            # Three join and three leave, the first two among them, while work waits, is taken and ends.
            for wave in range(3):
                await until(lambda wave=wave: _count(lines, "ended") > (wave + 1) * TASKS // 5)
                processes.append(agent_process(server, MARKER))
                processes[wave].send_signal(signal.SIGTERM)
                await until(lambda wave=wave: processes[wave].poll() is not None)
                assert processes[wave].returncode == 0
            runs = await sending
            states = [await client.result(run, timeout_s=60) for run in runs]
    assert {state.status for state in states} == {"completed"}
    # In the log each was done in its first attempt, and in the world as well.
    assert {len(state.phases["work"].items[0].attempts) for state in states} == {1}
    written = Counter(lines.read_text().splitlines())
    assert written == {f"{word} {run} 1": 1 for run in runs for word in ("began", "ended")}
    events = [event_in(record) async for record in client.log.read(client.subjects.agents)]
    assert [type(each) for each in events if isinstance(each, AgentDeregistered | AgentLost)][:3] == [
        AgentDeregistered
    ] * 3
    assert all(each.handed_back == 0 for each in events if isinstance(each, AgentDeregistered))


async def test_what_is_not_finished_within_the_grace_is_handed_back_and_done_elsewhere(
    server: Server, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHASEBUS_GRACE_S", "0.2")
    lines = tmp_path / "lines"
    with agent_processes(server, MARKER) as processes:
        await agents_there(client, 1)
        receipt = await client.send("mark", {"file": str(lines), "s": 60})
        await until(lambda: _count(lines, "began") == 1)
        processes.append(agent_process(server, MARKER))
        await agents_there(client, 2)
        processes[0].send_signal(signal.SIGTERM)
        state = await client.result(receipt.run, timeout_s=BOUND_S)
        await until(lambda: processes[0].poll() == 0)
    assert client.output(state, "work") == 2
    happened = [each.event for each in await happenings(client, receipt.run)]
    assert [each.cause for each in happened if isinstance(each, PhaseAttemptFailed)] == ["handed_back"]
    assert lines.read_text().split("\n")[:-1] == [
        f"{word} {receipt.run} {attempt}" for word, attempt in (("began", 1), ("began", 2), ("ended", 2))
    ]
    events = [event_in(record) async for record in client.log.read(client.subjects.agents)]
    (end,) = [each for each in events if isinstance(each, AgentDeregistered)][:1]
    assert (end.handed_back, end.reason) == (1, "the process was told to stop")


@pytest.mark.parametrize("capability", ["swallow", "thread"])
async def test_a_handler_that_can_not_be_ended_does_not_keep_its_process_from_ending(
    server: Server, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    """It had handed its work back and deregistered, and then waited for the handler until it was killed."""
    monkeypatch.setenv("PHASEBUS_GRACE_S", "0.2")
    lines = tmp_path / "lines"
    with agent_processes(server, STUBBORN) as processes:
        await agents_there(client, 1)
        receipt = await client.send(capability, str(lines))
        await until(lambda: _count(lines, "began") == 1)
        processes[0].send_signal(signal.SIGTERM)
        await until(lambda: processes[0].poll() == 0)
    (attempt,) = (await client.runs.load(receipt.run)).phases["work"].items[0].attempts
    assert attempt.cause == "handed_back"


async def test_a_result_that_lands_while_its_instance_drains_counts(
    server: Server, client: Client, tmp_path: Path
) -> None:
    lines = tmp_path / "lines"
    with agent_processes(server, MARKER) as processes:
        await agents_there(client, 1)
        receipt = await client.send("mark", {"file": str(lines), "s": 1})
        await until(lambda: _count(lines, "began") == 1)
        processes[0].send_signal(signal.SIGTERM)
        await until(lambda: _is_draining(client))
        waiting = await client.send("mark", {"file": str(lines), "s": 0})
        assert waiting.unserved == ["mark"]
        await until(lambda: processes[0].poll() == 0)
    happened = [each.event for each in await happenings(client, receipt.run)]
    assert [each.attempt for each in happened if isinstance(each, PhaseCompleted)] == [1]
    assert (await client.runs.load(waiting.run)).phases["work"].status == "ready"


async def test_a_second_sigterm_ends_the_process_at_once_and_its_work_goes_on_elsewhere(
    server: Server, client: Client, tmp_path: Path
) -> None:
    lines = tmp_path / "lines"
    async with supervised(server):
        with agent_processes(server, MARKER) as processes:
            await agents_there(client, 1)
            receipt = await client.send("mark", {"file": str(lines), "s": 60})
            await until(lambda: _count(lines, "began") == 1)
            processes[0].send_signal(signal.SIGTERM)
            await until(lambda: _is_draining(client))
            processes[0].send_signal(signal.SIGTERM)
            await until(lambda: processes[0].poll() is not None)
            assert processes[0].returncode == 130
            processes.append(agent_process(server, MARKER))
            state = await client.result(receipt.run, timeout_s=BOUND_S)
            lost = [event_in(record) async for record in client.log.read(client.subjects.agents)]
    assert [attempt.cause for attempt in state.phases["work"].items[0].attempts] == ["crashed", ""]
    assert [(each.cause, each.held) for each in lost if isinstance(each, AgentLost)] == [("crashed", 1)]


async def test_an_instance_that_an_operator_drains_still_finishes_after_a_first_sigterm(
    server: Server, client: Client, tmp_path: Path
) -> None:
    lines = tmp_path / "lines"
    with agent_processes(server, MARKER) as processes:
        await agents_there(client, 1)
        receipt = await client.send("mark", {"file": str(lines), "s": 1})
        await until(lambda: _count(lines, "began") == 1)
        await client.drain_agents("marker", by="ann")
        await until(lambda: _is_draining(client))
        processes[0].send_signal(signal.SIGTERM)
        await until(lambda: processes[0].poll() == 0)
    assert client.output(await client.runs.load(receipt.run), "work") == 1


async def _send(client: Client, lines: Path) -> list[str]:
    runs: list[str] = []
    for _ in range(TASKS // 10):
        receipts = await asyncio.gather(*(client.send("mark", {"file": str(lines), "s": 0.02}) for _ in range(10)))
        runs += [receipt.run for receipt in receipts]
    return runs


def _count(lines: Path, word: str) -> int:
    return lines.read_text().count(word) if lines.exists() else 0


async def _is_draining(client: Client) -> bool:
    return "draining" in [each.status for each in await client.agents()]
