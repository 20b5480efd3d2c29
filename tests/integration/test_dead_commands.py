"""`phasebus dead` as it is typed, against a real server."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from bus import Agent, Client, Reject, connect, serving
from bus.broker.server import Server
from console.failure import FAILED, NOT_FOUND, OK, REFUSED, USAGE
from tests.harness import BOUND_S, until

PHASEBUS = Path(sys.executable).with_name("phasebus")
MEND = """
def upper(sku):
    return sku.upper()

nothing = 1
"""


class Terminal:
    """Types `phasebus dead` commands, beside an agent that buys what is in `stock`."""

    def __init__(self, server: Server, client: Client, folder: Path) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("NATS_", "PHASEBUS_"))}
        self.environment = clean | {"NATS_URL": server.url}
        self.client = client
        self.folder = folder
        self.stock: set[str] = set()
        self.bought: list[str] = []
        self.agent = Agent("shop")

        @self.agent.capability("shop.buy", on_dead="skip")
        async def buy(sku: str) -> str:
            if sku not in self.stock:
                raise Reject(f"unknown sku {sku!r}")
            self.bought.append(sku)
            return sku

    async def type(self, *words: str, code: int = OK) -> tuple[str, str]:
        process = await asyncio.create_subprocess_exec(
            *(PHASEBUS, "dead", *words),
            cwd=self.folder,
            env=self.environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complained = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == code, complained.decode()
        return said.decode(), complained.decode()

    async def results(self, *words: str, code: int = OK) -> list[dict[str, Any]]:
        said, _ = await self.type(*words, "--json", code=code)
        return [json.loads(line) for line in said.splitlines()]

    async def die(self, *skus: str) -> list[str]:
        """Send work that is given up; the numbers of its letters."""
        for sku in skus:
            await self.client.result((await self.client.send("shop.buy", sku)).run, timeout_s=BOUND_S)
        return [str(each.number) async for each in self.client.dead_letters(status=["open"])]

    async def all_stand(self, *wanted: str) -> None:
        async def so() -> bool:
            return tuple([each.standing async for each in self.client.dead_letters()]) == wanted

        await until(so)


@pytest.fixture
async def terminal(server: Server, tmp_path: Path) -> AsyncIterator[Terminal]:
    (tmp_path / "mend.py").write_text(MEND)
    async with connect(server.url) as client:
        terminal = Terminal(server, client, tmp_path)
        async with serving(client, terminal.agent):
            yield terminal


async def test_the_tour_of_dead_letters(terminal: Terminal) -> None:
    first, second, third = await terminal.die("a-1", "a-2", "b")
    said, hint = await terminal.type("group")
    assert "3  shop.buy    permanent  rejected" in said and "unknown sku '…'" in said
    assert "phasebus dead redrive --group KEY --dry-run" in hint
    [group] = await terminal.results("group")
    assert (group["count"], group["numbers"]) == (3, [int(first), int(second), int(third)])
    assert [each["number"] for each in await terminal.results("ls", "--group", group["group"])] == group["numbers"]

    said, hint = await terminal.type("redrive", "--group", group["group"], "--max", "2", "--dry-run")
    assert said.splitlines()[0].startswith(f"would redrive {first}, shop.buy from task-")
    assert "2 would be redriven; nothing was done" in hint
    await terminal.all_stand("open", "open", "open")
    _, complaint = await terminal.type("redrive", "--group", group["group"], code=USAGE)
    assert "3 dead letters would be redriven: say --yes, or --dry-run" in complaint

    terminal.stock |= {"a-1", "a-2"}
    said, hint = await terminal.type("redrive", "--all", "--yes", "--max", "2", "--pace", "50/s", "--try-one")
    assert said == f"redriven {first}\nredriven {second}\n"
    assert "2 redriven; there are more, and --max is reached" in hint
    await terminal.all_stand("resolved", "resolved", "open")

    terminal.stock.add("c")
    said, _ = await terminal.type("edit", third, "--payload", '"c"', "--reason", "it was c", "--by", "ann")
    assert said == f"redriven {third} with another payload\n"
    await terminal.all_stand("resolved", "resolved", "resolved")
    assert terminal.bought == ["a-1", "a-2", "c"]
    said, _ = await terminal.type("show", third)
    assert "status      resolved" in said and '"b"' in said
    assert 'phase.input_replaced  work by ann: it was c: "c"' in said
    assert await terminal.results("ls") == []


async def test_a_discarded_letter_says_by_whom_and_why(terminal: Terminal) -> None:
    [number] = await terminal.die("a")
    assert (await terminal.type("discard", number, "--reason", "old", "--by", "ann"))[0] == f"discarded {number}\n"
    _, complaint = await terminal.type("discard", number, code=REFUSED)
    assert complaint == f"error: dead letter {number} is discarded\n"
    assert "discarded by ann: old" in (await terminal.type("show", number))[0]
    [letter] = await terminal.results("ls", "--status", "discarded")
    assert (letter["number"], letter["status"]) == (int(number), "discarded")


async def test_a_transform_is_tried_dry_and_then_for_real(terminal: Terminal) -> None:
    [number] = await terminal.die("a")
    terminal.stock.add("A")
    transform = ("--transform", "mend.py:upper")
    [dry] = await terminal.results("redrive", number, *transform, "--dry-run")
    assert (dry["would_redrive"], dry["payload"]) == (True, "A")
    [sent, ended] = await terminal.results("redrive", number, *transform)
    assert (sent["redriven"], ended["ending"], ended["redriven"]) == (True, "done", 1)
    await terminal.all_stand("resolved")
    assert terminal.bought == ["A"]
    _, complaint = await terminal.type("redrive", number, "--transform", "mend.py:nothing", code=USAGE)
    assert "is of type int, not a function" in complaint


async def test_what_was_tried_first_and_died_again_keeps_the_others_back(terminal: Terminal) -> None:
    first, *_ = await terminal.die("a", "b")
    said, hint = await terminal.type("redrive", "--capability", "shop.buy", "--yes", "--try-one", code=FAILED)
    assert said == f"redriven {first}\n"
    assert "the first one did not succeed, so the others stay" in hint
    operation = hint.split()[1].rstrip(";")
    _, complaint = await terminal.type("redrive", "--resume", operation, code=REFUSED)
    assert f"redrive {operation} is over: 1 were redriven (died_again)" in complaint


async def test_an_interrupted_redrive_is_resumed_by_its_id(terminal: Terminal) -> None:
    numbers = await terminal.die(*"abc")
    terminal.stock |= set("abc")
    process = await asyncio.create_subprocess_exec(
        *(PHASEBUS, "dead", "redrive", "--all", "--yes", "--pace", "1/h", "--transform", "mend.py:upper"),
        cwd=terminal.folder,
        env=terminal.environment,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    hint = (await asyncio.wait_for(process.stderr.readline(), 60)).decode()
    process.kill()
    await process.communicate()
    operation = hint.split()[-1]
    assert hint == f"redrive {operation}; if it is interrupted: --resume {operation}\n"
    _, complaint = await terminal.type("redrive", "--resume", operation, "--all", code=USAGE)
    assert "leave out the rest" in complaint
    _, complaint = await terminal.type("redrive", "--resume", "nothing", code=NOT_FOUND)
    assert "there is no redrive 'nothing'" in complaint
    assert numbers


async def test_an_export_has_everything(terminal: Terminal) -> None:
    await terminal.die("a")
    [line] = (await terminal.type("export", "--all"))[0].splitlines()
    letter = json.loads(line)
    assert (letter["payload"], letter["status"], letter["cause"]) == ("a", "open", "error")
    assert letter["attempts"][0]["agent"] == "shop"
    assert letter["causation"] and letter["began"] and letter["origin"]


async def test_a_capability_is_released(terminal: Terminal) -> None:
    assert (await terminal.type("release", "shop.buy", "--by", "ann"))[0] == "released shop.buy\n"
    _, complaint = await terminal.type("release", "Shop!", code=USAGE)
    assert "is not a dotted name" in complaint


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        ("redrive", USAGE, "which? give numbers, options that choose, or --all"),
        ("redrive 5 --all", USAGE, "which?"),
        ("redrive 99999", NOT_FOUND, "there is no dead letter 99999"),
        ("redrive --all --pace fast", USAGE, "write 10/s, 100/m or 5/h"),
        ("edit 99999 --payload 1", NOT_FOUND, "there is no dead letter 99999"),
        ("discard 99999", NOT_FOUND, "there is no dead letter 99999"),
        ("ls --status done", USAGE, "is not one of"),
    ],
)
async def test_what_is_wrong_is_said(terminal: Terminal, words: str, code: int, complaint: str) -> None:
    assert complaint in (await terminal.type(*words.split(), code=code))[1]
