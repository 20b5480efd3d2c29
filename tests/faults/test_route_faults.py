"""Routes while processes and the server are killed: no work is lost, doubled or left waiting."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from bus import connect
from bus.broker.server import Server
from bus.runs.task import WORK
from tests.faults.test_handovers import assert_one_result
from tests.harness import BOUND_S, agent_process, agents_there, supervised, until
from tests.integration.test_routes import follows

VERSIONED = Path(__file__).with_name("versioned.py")
SENT = 60


def started(server: Server, version: str, monkeypatch: pytest.MonkeyPatch) -> subprocess.Popen[bytes]:
    monkeypatch.setenv("PRICING_VERSION", version)
    return agent_process(server, VERSIONED)


async def test_a_canary_that_is_killed_costs_no_work_and_one_that_comes_back_gets_its_part_again(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    processes = [started(server, version, monkeypatch) for version in ("1.4.0", "2.0.0")]
    try:
        async with supervised(server), connect(server.url) as client:
            await agents_there(client, 2)
            await client.set_route("price", {"1.*": 50, "2.0.0": 50}, by="ann")
            await follows(client, "price", "1.*", "2.0.0")
            runs = [(await client.send("price", number)).run for number in range(SENT)]
            processes[1].kill()
            states = [await client.result(run, timeout_s=BOUND_S) for run in runs]
            moved = [state.phases[WORK].items[0].arm for state in states]
            assert any(arm is not None and arm.instead_of == "2.0.0" for arm in moved)
            for state in states:
                answer, arm = client.output(state, WORK), state.phases[WORK].items[0].arm
                assert arm is not None and answer == {"1.*": "1.4.0", "2.0.0": "2.0.0"}[arm.versions]
                await assert_one_result(client, state.run)
            processes.append(started(server, "2.0.0", monkeypatch))
            await follows(client, "price", "2.0.0")
            answers = Counter([await client.ask("price", number, str) for number in range(20)])
            assert set(answers) == {"1.4.0", "2.0.0"}
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def test_a_route_holds_after_the_server_was_killed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    processes = [started(server, version, monkeypatch) for version in ("1.4.0", "2.0.0")]
    try:
        async with supervised(server), connect(server.url) as client:
            await agents_there(client, 2)
            await client.set_route("price", {"1.*": 0, "2.0.0": 1}, by="ann")
            await follows(client, "price", "2.0.0")
            runs = [(await client.send("price", number)).run for number in range(10)]
            await server.kill()
            await server.restart()
            await until(lambda: client.connection.is_connected)
            runs += [(await client.send("price", number)).run for number in range(10)]
            for run in runs:
                state = await client.result(run, timeout_s=2 * BOUND_S)
                arm = state.phases[WORK].items[0].arm
                assert arm is not None
                assert client.output(state, WORK) == "2.0.0"
                await assert_one_result(client, run)
            await client.set_route("price", {"1.*": 1, "2.0.0": 0}, by="ann")
            await follows(client, "price", "1.*")
            assert await client.ask("price", 1, str) == "1.4.0"
    finally:
        for process in processes:
            process.kill()
            process.wait()
