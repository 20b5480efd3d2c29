"""The demo's own plan, with its real agents, while the server under it is killed and started again on its store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bus import connect
from bus.broker.server import Server
from bus.rules.events import PhaseCompleted, PhaseWaiting
from bus.runs.planfile import read_plan
from tests.harness import ROOT, agents_there, supervised

TESTWRITER = ROOT / "examples" / "testwriter"
AGENTS = ("scanner", "analyst", "author", "runner", "reporter")
MODULES = 4


@contextmanager
def agents(server: Server, folder: Path) -> Iterator[None]:
    command = [Path(sys.executable).with_name("phasebus"), "agent", "run", "--no-supervisor"]
    environment = {**os.environ, "NATS_URL": server.url, "PHASEBUS_WORKDIR": str(folder / "work")}
    processes = [
        subprocess.Popen(
            [*command, f"{TESTWRITER / name}.py:agent"], cwd=folder, env=environment, stderr=subprocess.DEVNULL
        )
        for name in AGENTS
    ]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


async def test_a_server_killed_in_the_middle_of_the_demos_plan_costs_nothing(server: Server, tmp_path: Path) -> None:
    package = tmp_path / "shapes"
    package.mkdir()
    for number in range(MODULES):
        (package / f"shape{number}.py").write_text("def area(side: int) -> int:\n    return side * side\n")
    kills = 0
    async with connect(server.url) as client, supervised(server):
        with agents(server, tmp_path):
            await agents_there(client, len(AGENTS))
            receipt = await client.start(read_plan(TESTWRITER / "plan.toml"), {"path": str(package)})
            async for happening in client.watch(receipt.run):
                # Twice: while items are under way, and between two phases.
                item_done = isinstance(happening.event, PhaseCompleted) and happening.event.item is not None
                if (item_done and kills == 0) or (isinstance(happening.event, PhaseWaiting) and kills == 1):
                    kills += 1
                    await server.kill()
                    await server.restart()
                if isinstance(happening.event, PhaseWaiting):
                    await client.approve(receipt.run, happening.event.phase, by="test")
            state = await client.runs.load(receipt.run)
            commits = [commit async for commit in client.ledger.commits(receipt.run)]
    assert (kills, state.status) == (2, "completed")
    assert {key: len(phase.items) for key, phase in state.phases.items()} == {
        "scan": 1,
        "measure": MODULES,
        "write": MODULES,
        "test": MODULES,
        "report": 1,
        "review": 0,
        "publish": 1,
    }
    accepted = [
        (event.phase, event.item)
        for commit in commits
        for event in commit.events
        if isinstance(event, PhaseCompleted) and event.attempt is not None
    ]
    assert len(accepted) == len(set(accepted))
    assert (tmp_path / "testwriter-report" / "report.md").is_file()
