"""`phasebus breaker` and `phasebus limit` as they are typed, against a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bus import connect
from bus.broker.server import Server
from console.failure import NOT_FOUND, OK, USAGE

PHASEBUS = Path(sys.executable).with_name("phasebus")


def typed(server: Server, *words: str, code: int = OK) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "PHASEBUS_"))}
    ended = subprocess.run(
        [PHASEBUS, *words],
        check=False,
        env=clean | {"NATS_URL": server.url},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == code, ended.stderr
    return ended.stdout + ended.stderr


async def test_a_breaker_is_opened_seen_and_closed(server: Server) -> None:
    async with connect(server.url):
        assert "no breaker has ever opened" in typed(server, "breaker", "ls")
        said = typed(server, "breaker", "open", "openai", "--for", "10m", "--reason", "moving", "--by", "ann")
        assert said == "openai is open\n"
        [line] = typed(server, "breaker", "ls").splitlines()[1:]
        assert line.split()[:2] == ["openai", "open"]
        assert "in 9 min" in line or "in 10 min" in line
        assert "ann" in line
        assert "moving" in line
        shown = json.loads(typed(server, "breaker", "ls", "--json"))
        assert (shown["breaker"], shown["status"], shown["by"]) == ("openai", "open", "ann")
        assert typed(server, "breaker", "close", "openai", "--by", "ann") == "openai is closed\n"
        assert "none of this name" in typed(server, "breaker", "close", "opnai", code=NOT_FOUND)
        assert "not a length of time" in typed(server, "breaker", "open", "openai", "--for", "soon", code=USAGE)


async def test_limits_show_what_is_left(server: Server) -> None:
    async with connect(server.url) as client:
        assert "no limit has been used" in typed(server, "limit", "ls")
        await client.limit("openai", calls_per_s=5, cost_per_day=20).take(cost=7.5)
        rows = [line.split() for line in typed(server, "limit", "ls").splitlines()[1:]]
        assert rows == [["openai", "calls_per_s", "5", "5"], ["openai", "cost_per_day", "20", "12.5"]]
        shown = json.loads(typed(server, "limit", "ls", "--json"))
        assert shown["standing"]["accounts"]["cost_per_day"]["left"] == 12.5
