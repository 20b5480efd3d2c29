"""`phasebus schedule` as it is typed, against a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bus import connect
from bus.broker.server import Server
from console.failure import NOT_FOUND, OK, USAGE
from tests.harness import supervised, until

PHASEBUS = Path(sys.executable).with_name("phasebus")
PLAN = """
name = "short"

[[phases]]
key = "go"
wait_for = "go"
when = "input.wait == true"
"""


class Terminal:
    """Types commands to one bus, in a folder with a plan."""

    def __init__(self, server: Server, folder: Path) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "PHASEBUS_"))}
        self.environment = clean | {"NATS_URL": server.url}
        self.folder = folder
        (folder / "plan.toml").write_text(PLAN)

    def type(self, *words: str, code: int = OK) -> tuple[str, str]:
        ended = subprocess.run(
            [PHASEBUS, "schedule", *words],
            check=False,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert ended.returncode == code, ended.stderr
        return ended.stdout, ended.stderr

    def results(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.type(*words, "--json")[0].splitlines()]


@pytest.fixture
async def terminal(server: Server, tmp_path: Path) -> Terminal:
    async with connect(server.url):
        return Terminal(server, tmp_path)


async def test_the_tour_of_a_schedule(server: Server, terminal: Terminal) -> None:
    assert "no schedules" in terminal.type("ls")[1]
    said, _ = terminal.type("add", "nightly", "plan.toml", "--cron", "30 2 * * *", "--zone", "Europe/Berlin")
    assert "nightly: 0 30 2 * * * Europe/Berlin, next 20" in said
    words = ("--every", "1s", "--input", '{"wait": false}', "--overlap", "allow", "--catch-up", "1h", "--by", "ann")
    [entry] = terminal.results("add", "tick", "plan.toml", *words)
    assert (entry["by"], entry["schedule"]["every_s"], entry["schedule"]["catch_up_s"]) == ("ann", 1, 3600)
    said, _ = terminal.type("ls")
    assert [line.split()[0] for line in said.splitlines()] == ["NAME", "nightly", "tick"]
    async with supervised(server), connect(server.url) as client:

        async def is_started() -> bool:
            return any(run.startswith("tick-") for run in await client.ledger.names())

        await until(is_started)
    assert "tick has ended" in terminal.type("rm", "tick")[0]
    assert [each["schedule"]["name"] for each in terminal.results("ls")] == ["nightly"]


async def test_what_can_not_be_scheduled_is_said_in_one_line(terminal: Terminal) -> None:
    for words, said in (
        (("--cron", "99 2 * * *"), "Bad minute"),
        (("--cron", "0 2 * * *", "--zone", "Mars/Base"), "no time zone 'Mars/Base'"),
        (("--every", "soon"), "not a length of time"),
        (("--at", "tomorrow"), "not a time"),
        ((), "one of at, every_s and cron"),
        (("--every", "1h", "--at", "2030-01-01T00:00"), "one of at, every_s and cron"),
    ):
        _, complained = terminal.type("add", "nightly", "plan.toml", *words, code=USAGE)
        assert said in complained
    _, complained = terminal.type("rm", "nightly", code=NOT_FOUND)
    assert "phasebus schedule ls" in complained
