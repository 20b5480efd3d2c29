"""`phasebus projection`: built, looked at, asked as of now and before, and an author's own in a few lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from bus import connect
from bus.broker.server import Server
from bus.errors import SettingsError
from projections.catalogue import BUILT_IN
from projections.catchup import build
from projections.runs import RUNS, glance
from projections.shelf import encoded, schema
from tests.harness import ROOT, serving
from tests.integration.test_runner import completed, echo

OWN = """
from msgspec import Struct
from bus import Happening
from projections.projection import Projection, Rows


class Outcome(Struct, frozen=True):
    completed: int = 0
    failed: int = 0


def fold(rows: Rows[Outcome], happening: Happening) -> None:
    if happening.type in ("run.completed.v1", "run.failed.v1"):
        row = rows.get("all") or Outcome()
        good = happening.type == "run.completed.v1"
        rows["all"] = Outcome(row.completed + good, row.failed + (not good))


OUTCOMES = Projection(name="outcomes", version=1, row=Outcome, fold=fold, subjects=["run.*"])
"""


@pytest.fixture
async def began(server: Server) -> int:
    """Two runs, and the position at which the first began."""
    async with serving(server, echo()), connect(server.url) as client:
        await completed(client, "one", "two")
        return min([record.position async for record in client.log.read(client.subjects.run("one"))])


def phasebus(server: Server, folder: Path, *words: str, code: int = 0) -> list[dict[str, object]]:
    environment = {"NATS_URL": server.url, "PHASEBUS_PROJECTIONS": f"sqlite:///{folder}/rows.db"}
    ended = subprocess.run(
        [sys.executable, "-m", "bus", "projection", *words, "--json"],
        check=False,
        capture_output=True,
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), "PATH": ""},
        timeout=60,
    )
    assert ended.returncode == code, ended.stderr.decode()
    return [json.loads(line) for line in ended.stdout.splitlines()]


async def test_what_ships_and_one_s_own_is_built_listed_and_asked(server: Server, began: int, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    assert [each["projection"] for each in phasebus(server, tmp_path, "rebuild", "own.py:OUTCOMES", "runs")] == [
        "outcomes",
        "runs",
    ]
    assert phasebus(server, tmp_path, "query", "own.py:OUTCOMES") == [
        {"key": "all", "row": {"completed": 2, "failed": 0}}
    ]
    listed = {each["projection"]: each for each in phasebus(server, tmp_path, "ls")}
    assert listed["runs"]["lag"] == 0 and listed["runs"]["served"]
    assert phasebus(server, tmp_path, "lag") == [{"projection": "outcomes", "lag": 0}, {"projection": "runs", "lag": 0}]
    async with serving(server, echo()), connect(server.url) as again:
        await completed(again, "three")
    assert [each["lag"] for each in phasebus(server, tmp_path, "lag", code=1)] != [0, 0]
    [before] = phasebus(server, tmp_path, "query", "runs", "one", "--at", str(began))
    assert before["row"]["status"] == "in_progress"  # type: ignore[index]
    [said] = phasebus(server, tmp_path, "query", "runs", "nobody", code=3)
    assert said["code"] == "not_found"


async def test_a_projection_that_is_not_there_is_said_with_those_that_are(
    server: Server, began: int, tmp_path: Path
) -> None:
    [said] = phasebus(server, tmp_path, "rebuild", "sales", code=2)
    assert "no projection 'sales'" in str(said["title"]) and "runs" in str(said["next_step"])


def test_the_rows_of_every_projection_that_ships_are_described_as_they_are_sent(tmp_path: Path) -> None:
    for name, projection in BUILT_IN.items():
        described = schema(projection)
        Draft202012Validator.check_schema(described)
        assert described["$ref"].startswith("#/$defs/"), name
    command = [sys.executable, "-m", "bus", "projection", "schema", "runs", "--glances"]
    done = subprocess.run(
        command, capture_output=True, check=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": ""}, timeout=60
    )
    glances = json.loads(done.stdout)
    properties = glances["$defs"]["Glance"]["properties"]
    assert properties["status"]["enum"] and "started_at" in properties
    with pytest.raises(SettingsError, match="does not say what a glance"):
        schema(BUILT_IN["traffic"], glances=True)


async def test_rows_that_are_sent_have_the_schema_that_is_printed(server: Server, began: int, tmp_path: Path) -> None:
    async with connect(server.url) as client:
        rows = (await build(client, RUNS)).rows
    for state in rows.values():
        Draft202012Validator(schema(RUNS)).validate(json.loads(encoded(state)))
        Draft202012Validator(schema(RUNS, glances=True)).validate(json.loads(encoded(glance(state))))
