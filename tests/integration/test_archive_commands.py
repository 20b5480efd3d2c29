"""`phasebus archive` as it is typed, against a real server."""

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
from console.failure import FAILED, NOT_FOUND, OK, REFUSED, USAGE

GATE = Plan("gated", phases=[Phase("gate", approval=Approval(prompt="go on?"))])
PHASEBUS = Path(sys.executable).with_name("phasebus")


class Terminal:
    """Types commands to one bus."""

    def __init__(self, server: Server, folder: Path) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "PHASEBUS_"))}
        self.environment = {**clean, "NATS_URL": server.url, "PHASEBUS_OPERATOR_URL": server.operator_url}
        self.folder = folder

    async def type(self, *words: str, code: int = OK, **environment: str) -> tuple[str, str]:
        process = await asyncio.create_subprocess_exec(
            *(PHASEBUS, *words),
            cwd=self.folder,
            env=self.environment | environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complained = await asyncio.wait_for(process.communicate(), 30)
        assert process.returncode == code, complained.decode()
        return said.decode(), complained.decode()

    async def results(self, *words: str) -> list[dict[str, Any]]:
        said, _ = await self.type(*words, "--json")
        return [json.loads(line) for line in said.splitlines()]


@pytest.fixture
async def terminal(server: Server, tmp_path: Path) -> Terminal:
    async with connect(server.url) as client:
        await client.start(GATE, run="gone")
        await client.approve("gone", "gate", by="ann")
        await client.start(GATE, run="open")
    return Terminal(server, tmp_path)


async def test_the_tour_of_an_archive(terminal: Terminal) -> None:
    command = ("archive", "run", "--to", "old", "--keep", "run=0s", "--keep", "topic=7d")
    said, hint = await terminal.type(*command, "--dry-run")
    assert "1 is open" in said and "nothing was done" in hint
    assert not (terminal.folder / "old").exists()
    runs, parts, topics, lines, done = await terminal.results(*command)
    assert runs["class"] == "run" and runs["goes"]["records"] == 2 and topics["goes"]["records"] == 0
    assert [(each["class"], each["goes"]["records"]) for each in (parts, lines)] == [("part", 0), ("line", 0)]
    assert done["removed"] == 2 and [each["records"] for each in done["segments"]] == [2]
    said, _ = await terminal.type("archive", "ls", "old")
    assert "00000001.jsonl.zst" in said
    assert (await terminal.results("archive", "verify", "old"))[0]["problem"] == ""
    _, complained = await terminal.type("run", "show", "gone", code=NOT_FOUND)
    assert "PHASEBUS_ARCHIVE" in complained
    for words in (("run", "show", "gone"), ("replay", "gone"), ("run", "ls")):
        said, _ = await terminal.type(*words, PHASEBUS_ARCHIVE="old")
        assert "gate" in said or "gone" in said
    for words in (("run", "ls"), ("events", "export")):
        said, hint = await terminal.type(*words)
        assert "open" in said and "PHASEBUS_ARCHIVE=DIR" in hint
        _, hint = await terminal.type(*words, PHASEBUS_ARCHIVE="old")
        assert "PHASEBUS_ARCHIVE" not in hint


async def test_what_is_read_from_the_archive_goes_to_other_places_too(terminal: Terminal) -> None:
    await terminal.type("archive", "run", "--to", "old", "--keep", "run=0s")
    await terminal.type("events", "export", "-o", "all.jsonl", PHASEBUS_ARCHIVE="old")
    await terminal.type("events", "import", "all.jsonl", "--into", "copy", PHASEBUS_ARCHIVE="old")
    said, _ = await terminal.type("run", "ls", PHASEBUS_NAMESPACE="copy")
    assert "gone" in said and "open" in said
    (terminal.folder / "code.py").write_text("def seen(event: object) -> None: ...\n", encoding="utf-8")
    _, hint = await terminal.type("replay", "gone", "--into", "code.py:seen", PHASEBUS_ARCHIVE="old")
    assert hint.startswith("fed ") and not hint.startswith("fed 0")


async def test_another_folder_is_no_archive_of_a_log_that_has_one(terminal: Terminal) -> None:
    command = ("archive", "run", "--keep", "run=0s", "--to")
    await terminal.type(*command, "old")
    _, complained = await terminal.type(*command, "new", code=REFUSED)
    assert f"this log is archived to {terminal.folder / 'old'}" in complained
    assert "next: phasebus events tail --subject" in complained
    await terminal.type(*command, "new", "--take-over")


async def test_a_damaged_archive_fails_the_check_and_is_named(terminal: Terminal) -> None:
    await terminal.type("archive", "run", "--to", "old", "--keep", "run=0s")
    path = terminal.folder / "old" / "00000001.jsonl.zst"
    path.write_bytes(path.read_bytes()[:-1])
    said, _ = await terminal.type("archive", "verify", "old", code=FAILED)
    assert "00000001.jsonl.zst is damaged" in said
    _, complained = await terminal.type("replay", "gone", code=FAILED, PHASEBUS_ARCHIVE="old")
    assert "Put back a copy" in complained


async def test_what_can_not_be_archived_is_said_with_what_to_do(terminal: Terminal) -> None:
    for words, code, said in (
        (("run", "--to", "old", "--keep", "runs=1d"), USAGE, "no class 'runs'"),
        (("run", "--to", "old", "--keep", "run=soon"), USAGE, "not an age"),
        (("run", "--to", "old"), USAGE, "--keep"),
        (("ls", "."), NOT_FOUND, "no archive"),
        (("verify", "nowhere"), USAGE, "nowhere"),
    ):
        _, complained = await terminal.type("archive", *words, code=code)
        assert said in complained
    _, complained = await terminal.type(
        *("archive", "run", "--to", "old", "--keep", "run=0s"), code=USAGE, PHASEBUS_OPERATOR_URL=""
    )
    assert "PHASEBUS_OPERATOR_URL" in complained
