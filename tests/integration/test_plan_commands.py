"""`phasebus plan` and `run diff` as they are typed, against a real server."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from bus import Approval, Phase, Plan, connect
from bus.broker.server import Server
from console.failure import FAILED, OK

PHASEBUS = Path(sys.executable).with_name("phasebus")
WAITS = Plan(
    "release", phases=[Phase("gate", approval=Approval(prompt="go on?")), Phase("ship", "ship", after=["gate"])]
)
SAME = """
name = "release"
version = "2"
[[phases]]
key = "gate"
approval = { prompt = "go on?" }
[[phases]]
key = "ship"
capability = "ship"
after = ["gate"]
[[phases]]
key = "tell"
capability = "tell"
after = ["ship"]
"""
NO_GATE = """
name = "release"
version = "3"
[[phases]]
key = "ship"
capability = "ship"
"""


class Terminal:
    """Types commands to one bus."""

    def __init__(self, server: Server, folder: Path) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "PHASEBUS_"))}
        self.environment = {**clean, "NATS_URL": server.url}
        self.folder = folder

    async def type(self, *words: str, code: int = OK) -> str:
        process = await asyncio.create_subprocess_exec(
            *(PHASEBUS, *words),
            cwd=self.folder,
            env=self.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complained = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == code, complained.decode()
        return said.decode()

    async def results(self, *words: str, code: int = OK) -> list[dict[str, Any]]:
        said = await self.type(*words, "--json", code=code)
        return [json.loads(line) for line in said.splitlines()]


@pytest.fixture
async def terminal(server: Server, tmp_path: Path) -> Terminal:
    (tmp_path / "same.toml").write_text(SAME)
    (tmp_path / "no_gate.toml").write_text(NO_GATE)
    async with connect(server.url) as client:
        for run in ("approved", "rejected", "waiting"):
            await client.start(WAITS, run=run)
        await client.approve("approved", "gate", by="ann")
        await client.reject("rejected", "gate", by="ann", comment="no")
    return Terminal(server, tmp_path)


async def test_a_plan_is_checked_against_the_runs_there_are(terminal: Terminal) -> None:
    said = await terminal.type("plan", "check", "same.toml")
    assert "3 runs checked" in said
    found = await terminal.results("plan", "check", "no_gate.toml", code=FAILED)
    outcomes = {each["run"]: each["outcome"] for each in found}
    # Of the open ones, what was approved has no place in this plan; nobody has done anything in the other.
    assert outcomes == {"approved": "breaks", "rejected": "differs", "waiting": "differs"}
    said = await terminal.type("plan", "check", "no_gate.toml", "approved", code=FAILED)
    assert "breaks: gate is approved, and the plan has no such phase" in said
    found = await terminal.results("plan", "check", "no_gate.toml", "--runs", "0", code=FAILED)
    assert {each["run"] for each in found} == {"approved", "waiting"}


async def test_a_plan_is_shown_in_an_order_in_which_it_can_run(terminal: Terminal) -> None:
    lines = (await terminal.type("plan", "show", "same.toml")).splitlines()
    assert lines[0] == "release 2, 3 phases"
    assert [line.split()[0] for line in lines[2:]] == ["gate", "ship", "tell"]


async def test_two_runs_are_compared(terminal: Terminal) -> None:
    said = await terminal.type("run", "diff", "approved", "rejected", code=FAILED)
    assert "phase.approved.v1" in said and "phase.failed.v1" in said
    (found,) = await terminal.results("run", "diff", "approved", "waiting", code=FAILED)
    assert found["status"] == ["in_progress", "in_progress"]
    assert found["parting"]["other"] is None
    assert "the same events" in await terminal.type("run", "diff", "waiting", "waiting")
