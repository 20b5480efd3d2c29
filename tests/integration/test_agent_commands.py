"""`phasebus agent ls, show, drain, quarantine, release` as they are typed, against a real server and real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bus import Client, connect
from bus.broker.server import Server
from console.failure import NOT_FOUND, OK, USAGE
from tests.harness import agent_processes, agents_there, until

PHASEBUS = Path(sys.executable).with_name("phasebus")
SLEEPER = Path(__file__).parents[1] / "faults" / "sleeper.py"


class Terminal:
    """Types `phasebus agent ...` to one bus."""

    def __init__(self, server: Server) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "PHASEBUS_"))}
        self.environment = clean | {"NATS_URL": server.url}

    def type(self, *words: str, code: int = OK) -> tuple[str, str]:
        command = [PHASEBUS, "agent", *words]
        ended = subprocess.run(command, check=False, env=self.environment, capture_output=True, text=True, timeout=30)
        assert ended.returncode == code, ended.stderr
        return ended.stdout, ended.stderr

    def results(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.type(*words, "--json")[0].splitlines()]


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    async with connect(server.url) as connected:
        yield connected


async def test_the_tour_of_an_operator(server: Server, client: Client) -> None:
    terminal = Terminal(server)
    assert "no agent answers" in terminal.type("ls")[1]
    with agent_processes(server, SLEEPER, 2) as processes:
        await agents_there(client, 2)
        first, second = (row["instance"] for row in terminal.results("ls", "--capability", "sleep", "--version", ">=1"))
        assert terminal.type("ls", "--tag", "gpu") == ("", "no such agent is there: phasebus agent ls\n")
        terminal.type("ls", "--version", ">=x", code=USAGE)

        said, _ = terminal.type("quarantine", first, "--by", "ann", "--reason", "slow disk")
        assert said == f"{first} is quarantined\n"
        listed, hints = terminal.type("ls")
        assert [line.split()[3] for line in listed.splitlines()[1:]] == ["quarantined", "live"]
        assert f"quarantine of {first} by ann since" in hints and "slow disk" in hints
        shown, _ = terminal.type("show", first)
        assert "status   quarantined (by ann: slow disk)" in shown
        assert 'takes {"type":"object","additionalProperties":{"type":"number"}}' in shown

        terminal.type("quarantine", "sleeper", "--by", "bob")
        assert {row["status"] for row in terminal.results("ls")} == {"quarantined"}
        assert terminal.type("release", "sleeper") == (
            f"{second} is live\n",
            f"{first} stays in quarantine for another reason: phasebus agent ls\n",
        )
        assert terminal.results("release", first) == [{"instance": first, "agent": "sleeper", "status": "live"}]
        assert "not in quarantine" in terminal.type("release", first, code=NOT_FOUND)[1]

        terminal.type("drain", first, "--reason", "new host")
        await until(lambda: sorted(str(process.poll()) for process in processes) == ["0", "None"])
        (gone,) = terminal.results("show", first)
        assert gone["status"] == "gone" and gone["note"].endswith(": new host")
        assert [row["instance"] for row in terminal.results("show", "sleeper")] == [second]
        assert "no instance of nobody is there" in terminal.type("drain", "nobody", code=NOT_FOUND)[1]
        assert "there is no agent or instance" in terminal.type("show", "nobody", code=NOT_FOUND)[1]
        assert "what starts takes nothing" in terminal.type("quarantine", "sleeper", "--version", ">=2")[1]
