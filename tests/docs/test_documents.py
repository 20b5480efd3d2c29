"""What the documents show is executed: agents serve, scripts run, plans load, commands exist."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from bus.broker.server import Server
from bus.runs.planfile import read_plan
from bus.settings import Settings
from console.main import main
from tests.harness import supervised

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "docs" / "guide.md"]
RELIABILITY = ROOT / "docs" / "reliability.md"
_BLOCK = re.compile(r"```(?:python|toml)\n# (\S+)\n(.*?)```", re.DOTALL)
_COMMAND = re.compile(r"phasebus((?: [a-z]+)+)")


def blocks(document: Path) -> dict[str, str]:
    """The files a document shows, by the name in their first line."""
    return {name: f"# {name}\n{body}" for name, body in _BLOCK.findall(document.read_text())}


def commands(text: str) -> Iterator[list[str]]:
    """Every command that is shown as code."""
    for code in re.findall(r"`(phasebus [^`]*)`|^ +\$ (phasebus .*)$", text, re.MULTILINE):
        for found in _COMMAND.findall(" ".join(code)):
            yield found.split()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
async def test_what_a_document_shows_works(document: Path, server: Server, tmp_path: Path) -> None:
    files = blocks(document)
    assert files, f"{document.name} shows no code"
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        if name.endswith(".toml"):
            read_plan(tmp_path / name)
    environment = {**os.environ, "NATS_URL": server.url}
    agents = [name for name, text in files.items() if "agent = Agent(" in text]
    serving = [
        subprocess.Popen(
            [Path(sys.executable).with_name("phasebus"), "agent", "run", "--no-supervisor", f"{name}:agent"],
            cwd=tmp_path,
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        for name in agents
    ]
    try:
        async with supervised(server):
            for name in files:
                if name.endswith(".py") and name not in agents:
                    await _succeeds(tmp_path, name, environment, len(agents))
    finally:
        for process in serving:
            process.terminate()
        for process in serving:
            process.wait()


def test_every_command_shown_exists() -> None:
    others = [ROOT / "docs" / "reference.md", RELIABILITY]
    shown = [line for path in [*DOCUMENTS, *others] for line in commands(path.read_text())]
    assert len(shown) > 20
    for words in shown:
        command: click.Command = main
        for word in words:
            if not isinstance(command, click.Group):
                break
            found = command.get_command(click.Context(command), word)
            assert found is not None, f"phasebus {' '.join(words)}: there is no {word!r}"
            command = found


def test_every_benchmark_shown_takes_the_arguments_it_is_shown_with() -> None:
    from benchmarks import recovery
    from benchmarks.chaos import __main__ as chaos

    takes = {"benchmarks.chaos": chaos.options, "benchmarks.recovery": recovery.options}
    shown = re.findall(r"^ +\$ python -m (benchmarks\.\w+)(.*)$", RELIABILITY.read_text(), re.MULTILINE)
    assert {module for module, _ in shown} == set(takes)
    for module, arguments in shown:
        takes[module](arguments.split())


def test_every_file_the_reliability_page_names_is_there() -> None:
    named = re.findall(r"`((?:tests|benchmarks)/\S+\.py)`", RELIABILITY.read_text())
    assert named
    assert all((ROOT / name).is_file() for name in named)


def test_the_reference_names_every_setting() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text()
    for field in Settings.__struct_fields__:
        name = {"url": "NATS_URL", "context": "NATS_CONTEXT"}.get(field, f"PHASEBUS_{field.upper()}")
        assert f"`{name}`" in reference


def test_the_reference_names_every_event() -> None:
    from bus.coordination import barrier, decision, lease
    from bus.rules import events

    reference = (ROOT / "docs" / "reference.md").read_text()
    known = {*events.TYPES, *barrier.EVENTS.types, *decision.EVENTS.types, *lease.EVENTS.types}
    missing = [tag for tag in sorted(known) if f"`{tag}`" not in reference]
    assert not missing


async def _succeeds(folder: Path, name: str, environment: dict[str, str], agents: int) -> None:
    from bus import connect
    from tests.harness import agents_there

    async with connect(environment["NATS_URL"]) as client:
        await agents_there(client, agents)
    script = await asyncio.create_subprocess_exec(
        sys.executable, name, cwd=folder, env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await asyncio.wait_for(script.communicate(), 60)
    assert script.returncode == 0, f"{name}: {errors.decode()}"
