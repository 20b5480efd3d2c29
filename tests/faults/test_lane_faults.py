"""Work with a key keeps its order, whoever dies and whoever comes: at least once around a kill, never out of order."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bus import Agent, connect
from bus.broker.server import Server
from tests.faults.sender import KEYS as KEY
from tests.harness import ROOT, agent_process, agent_processes, agents_there, serving, supervised, until

KEYS = [f"customer-{number}" for number in range(10)]
EACH = 20
SEED = 5
POINTS = 12
# Turns of the event loop between the step and the end: none, until the bytes were sent, until the answer is there.
BEATS = [0, 0, 1, 2, 3, 5]


async def test_each_keys_work_is_done_in_order_while_workers_die_and_join(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORKDIR", str(tmp_path)), ("LEASE_S", "1.2"), ("BEAT_S", "0.4")):
        monkeypatch.setenv(f"PHASEBUS_{name}", value)
    book = tmp_path / "book"
    book.touch()
    file = Path(__file__).parent / "booker.py"
    async with supervised(server), connect(server.url) as client:
        with agent_processes(server, file, 3) as workers:
            await agents_there(client, 3)
            runs = []
            for number in range(EACH):
                runs += [(await client.send("book", (key, number), key=key)).run for key in KEYS]
            for share in (0.2, 0.4, 0.6):
                await until(lambda share=share: _lines(book) >= share * EACH * len(KEYS), 60)
                workers[0].kill()
                workers.pop(0).wait()
                workers.append(agent_process(server, file))
            states = await asyncio.gather(*(client.result(run, timeout_s=90) for run in runs))
    assert {state.status for state in states} == {"completed"}
    done = [line.split() for line in book.read_text().splitlines()]
    for key in KEYS:
        numbers = [int(number) for each, number in done if each == key]
        assert numbers == sorted(numbers)
        assert set(numbers) == set(range(EACH))


async def test_parked_keys_keep_their_order_while_workers_die_and_letters_are_redriven(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("WORKDIR", str(tmp_path)), ("LEASE_S", "1.2"), ("BEAT_S", "0.4")):
        monkeypatch.setenv(f"PHASEBUS_{name}", value)
    book = tmp_path / "book"
    book.touch()
    file = Path(__file__).parent / "booker.py"
    numbers = list(range(12))

    def replace(workers: list[subprocess.Popen[bytes]]) -> None:
        workers[0].kill()
        workers.pop(0).wait()
        workers.append(agent_process(server, file))

    async with supervised(server), connect(server.url) as client:
        with agent_processes(server, file, 2) as workers:
            await agents_there(client, 2)
            runs = [(await client.send("keep", (key, number), key=key)).run for number in numbers for key in KEYS]
            await until(lambda: _lines(book) >= 40, 60)
            replace(workers)
            # All that is not parked is done: 4 keys have done 5 each, the others all.
            await until(lambda: len(_done(book)) >= 4 * 5 + 6 * len(numbers), 60)
            (tmp_path / "mended").touch()
            letters = [each.number async for each in client.dead_letters()]
            for number, letter in enumerate(letters):
                await client.redrive_letter(letter, by="ann")
                if number % 2:
                    replace(workers)
            states = await asyncio.gather(*(client.result(run, timeout_s=90) for run in runs))
    assert {state.status for state in states} == {"completed"}
    assert len(letters) == 4
    for key in KEYS:
        done = [int(number) for each, number in map(str.split, book.read_text().splitlines()) if each == key]
        assert done == sorted(done)
        assert set(done) == set(numbers)


async def test_a_sender_killed_at_any_step_leaves_no_work_without_its_place(server: Server, tmp_path: Path) -> None:
    chance = random.Random(SEED)
    whole = await _senders(server, tmp_path / "whole", ["0:0"])
    count = next(each["count"] for each in whole if each["what"] == "steps")
    points = sorted(chance.sample(range(1, count + 1), POINTS))
    told = await _senders(server, tmp_path / "points", [f"{last}:{chance.choice(BEATS)}" for last in points])
    assert sum(each.get("code") == 137 for each in told) >= POINTS * 9 // 10
    agent, done = Agent("keeper"), []

    @agent.capability("keep", ordered=True, on_dead="park", concurrency=8)
    async def keep(order: tuple[str, int, str]) -> None:
        done.append(order[:2])

    async with connect(server.url) as client, serving(server, agent):
        # Whoever sends again what he has no receipt for finds it, or sends it: it is done once.
        for key in [f"step{last}-{key}" for last in points for key in KEY]:
            await client.send("keep", (key, 9, ""), key=key)
        runs = [*await client.ledger.names()]
        states = await asyncio.gather(*(client.result(run, timeout_s=60) for run in runs))
    assert {state.status for state in states} == {"completed"}
    assert {each["run"] for each in told if each["what"] == "Sent"} <= set(runs)
    assert len(done) == len(set(done))
    for key in {key for key, _ in done}:
        numbers = [number for each, number in done if each == key]
        assert numbers == sorted(numbers)


async def _senders(server: Server, results: Path, points: list[str]) -> list[dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(Path(__file__).with_name("sender.py")),
        server.url,
        str(results),
        *points,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.DEVNULL,
    )
    async with asyncio.timeout(120):
        assert await process.wait() == 0
    return _read(results)


def _read(results: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in results.read_text().splitlines()]


def _done(book: Path) -> set[str]:
    return set(book.read_text().splitlines())


def _lines(book: Path) -> int:
    return len(book.read_text().splitlines())
