"""`phasebus lock` and `phasebus decision` as they are typed, against a real server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bus import LeaseLost, connect
from bus.broker.server import Server
from console.failure import FAILED, NOT_FOUND, OK, REFUSED, TIMED_OUT, USAGE

PHASEBUS = Path(sys.executable).with_name("phasebus")


class Terminal:
    """Types commands to one bus."""

    def __init__(self, server: Server, folder: Path) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "PHASEBUS_"))}
        self.environment = clean | {"NATS_URL": server.url}
        self.folder = folder

    async def type(self, *words: str, code: int = OK) -> tuple[str, str]:
        """Meanwhile this process renews what it holds."""
        return await asyncio.to_thread(self._type, words, code)

    async def results(self, *words: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (await self.type(*words, "--json"))[0].splitlines()]

    def _type(self, words: tuple[str, ...], code: int) -> tuple[str, str]:
        ended = subprocess.run(
            [PHASEBUS, *words],
            check=False,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert ended.returncode == code, ended.stderr
        return ended.stdout, ended.stderr


@pytest.fixture
async def terminal(server: Server, tmp_path: Path) -> Terminal:
    async with connect(server.url):
        return Terminal(server, tmp_path)


async def test_who_has_a_lock_is_listed_and_it_can_be_taken_away(server: Server, terminal: Terminal) -> None:
    assert "nobody has" in (await terminal.type("lock", "ls"))[1]
    async with connect(server.url) as client:
        async with client.semaphore("gpu", limit=2, by="bob", ttl_s=30):
            with pytest.raises(LeaseLost, match="ended by ann"):
                async with client.lock("deploy", by="bob", ttl_s=30) as lease:
                    said, _ = await terminal.type("lock", "ls")
                    assert [line.split()[0] for line in said.splitlines()] == ["LEASE", "lock.deploy", "permit.gpu.0"]
                    [first, _] = await terminal.results("lock", "ls")
                    assert (first["holder"], first["token"]) == ("bob", lease.token)
                    said, _ = await terminal.type("lock", "break", "deploy", "--by", "ann")
                    assert f"lock.deploy is taken from bob (token {lease.token})" in said
                    await asyncio.sleep(20)
        _, complained = await terminal.type("lock", "break", "permit.gpu.0", code=NOT_FOUND)
        assert "phasebus lock ls" in complained
    _, complained = await terminal.type("lock", "break", "permit.gpu", code=USAGE)
    assert "permit" in complained


async def test_the_tour_of_a_decision(server: Server, terminal: Terminal) -> None:
    assert "no decisions" in (await terminal.type("decision", "ls"))[1]
    words = ("--option", "yes", "--option", "no", "--voter", "ann=2", "--voter", "bob", "--by", "eve")
    [made] = await terminal.results("decision", "propose", "ship it?", *words)
    assert (made["proposal"]["by"], made["proposal"]["voters"]) == ("eve", {"ann": 2, "bob": 1})
    id = made["id"]
    said, _ = await terminal.type("decision", "vote", id, "no", "--by", "bob", "--comment", "tests are red")
    assert "no: 1  bob (tests are red)" in said
    assert "missing: ann" in said
    _, complained = await terminal.type("decision", "vote", id, "yes", "--by", "bob", code=REFUSED)
    assert "a vote is final" in complained
    await terminal.type("decision", "show", id, "--wait", "0.2", code=TIMED_OUT)
    said, _ = await terminal.type("decision", "vote", id, "yes", "--by", "ann")
    assert "yes, by votes" in said
    assert [each["id"] for each in await terminal.results("decision", "ls")] == [id]
    assert await terminal.results("decision", "ls", "--open") == []
    [shown] = await terminal.results("decision", "show", id)
    assert shown["outcome"] == {"why": "votes", "tally": {"yes": 2, "no": 1}, "option": "yes"}


async def test_a_proposal_that_was_rejected_and_one_that_is_none_are_told_apart(terminal: Terminal) -> None:
    words = ("--option", "yes", "--option", "no", "--voter", "ann")
    [made] = await terminal.results("decision", "propose", "ship it?", *words, "--timeout", "0.1")
    said, _ = await terminal.type("decision", "show", made["id"], "--wait", "20", code=FAILED)
    assert "rejected, too few voted" in said
    await terminal.type("decision", "show", "unknown", code=NOT_FOUND)
    for wrong, says in (
        (("--voter", "ann"), "there twice"),
        (("--voter", "bob=x"), "not a voter"),
        (("--tie", "last"), "tie is"),
        (("--quorum", "2"), "quorum"),
    ):
        _, complained = await terminal.type("decision", "propose", "ship it?", *words, *wrong, code=USAGE)
        assert says in complained
