"""A process that dies at any step of the append path: another goes on, and the log keeps every promise.

Which steps, and how far the bytes of each had got, depends on the seed alone: change SEED or POINTS to look further.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from collections import Counter
from contextlib import suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from bus import Client, connect
from bus.broker.server import Server
from bus.clock import utc_now
from bus.errors import Refused
from bus.problem import Problem
from bus.rules import dead
from bus.rules.commands import Complete, Fail, Take
from bus.rules.events import Commit, PhaseCompleted, PhaseFailed, type_of
from bus.rules.run import RunState
from bus.rules.verify import violations
from tests.faults.victim import ITEMS, PLAN, REJECTED
from tests.harness import BOUND_S, ROOT

VICTIM = Path(__file__).with_name("victim.py")
SEED = 11
POINTS = 30
# Turns of the event loop between the step and the end: none, until the bytes were sent, until the answer is there.
BEATS = [0, 0, 1, 2, 3, 5]
# The first word of events that a command the victim was told about must have left in the log, at that position.
LEFT = {
    "Begin": "run.started",
    "Take": "phase.started",
    "Complete": "phase.completed",
    "Fail": "phase.failed",
    "Redrive": "run.redriven",
    "Cancel": "run.cancelled",
}
CRASHED = Problem("lost", "the process is gone", "unknown")


class Told(Struct):
    """A line that a victim wrote: what it was told is stored, how many steps there are, or how it ended."""

    what: str
    run: str = ""
    position: int = 0
    count: int = 0
    last: int = 0
    code: int = 0


async def test_a_process_killed_at_any_step_of_an_append_leaves_a_log_that_another_goes_on_with(
    server: Server, tmp_path: Path
) -> None:
    chance = random.Random(SEED)
    steps = await _victims(server, tmp_path / "whole", ["0:0"])
    count = next(each.count for each in steps if each.what == "steps")
    points = sorted(chance.sample(range(1, count + 1), POINTS))
    told = await _victims(server, tmp_path / "points", [f"{last}:{chance.choice(BEATS)}" for last in points])
    ended = {each.last: each.code for each in told if each.what == "exit"}
    # What runs at once may meet in fewer steps than when these were counted: then the last of them is not reached.
    assert {ended[last] for last in points[: POINTS * 9 // 10]} == {137} and set(ended.values()) <= {0, 137}
    async with connect(server.url, name="survivor") as client:
        names = [f"step{last}-{kind}" for last in points for kind in ("failed", "cancelled")]
        # Before anybody goes on: what the dead were told is there.
        await _must_have_kept(client, told)
        async with asyncio.TaskGroup() as tasks:
            for name in names:
                tasks.create_task(_go_on(client, name))
        for name in names:
            await _must_keep_every_promise(client, name)
        await _must_belong_to_commits(client, names)


async def _victims(server: Server, results: Path, points: list[str]) -> list[Told]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(VICTIM), server.url, str(results), *points),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await asyncio.wait_for(process.wait(), BOUND_S * 3) == 0
    return _read(results)


def _read(results: Path) -> list[Told]:
    return [msgspec.convert(json.loads(line), Told) for line in results.read_text().splitlines()]


async def _must_have_kept(client: Client, told: list[Told]) -> None:
    facts = [each for each in told if each.what in LEFT]
    assert {each.what for each in facts} == set(LEFT)
    for each in facts:
        left = [type_of(event) for commit in await _commits(client, each.run, each.position) for event in commit.events]
        assert any(type.startswith(LEFT[each.what]) for type in left), f"{each} was acknowledged, and is not there"


async def _go_on(client: Client, run: str) -> None:
    """What others would do: start it again if nobody said that it was, and bring it to its end."""
    # It is refused where the victim's own start is there.
    with suppress(Refused):
        await client.start(PLAN, {"items": list(range(ITEMS)), "blob": ""}, run=run)
    state = await client.runs.load(run)
    for held in [item for phase in state.phases.values() for item in phase.items if item.holder is not None]:
        holder = held.attempts[-1]
        await client.runs.submit(
            run, Fail("each", held.index, held.attempt, holder.instance, CRASHED, "crashed", "its connection is gone")
        )
    if state.status == "failed":
        await client.redrive(run, by="survivor")
    while (state := await client.runs.load(run)).is_open:
        ready = _ready(state)
        assert ready, f"{run} is open, and nothing of it can be taken: {state.phases}"
        for phase, item, attempt in ready:
            await client.runs.submit(run, Take(phase, item, attempt, "do", "survivor", "survivor-1", 60.0))
            done = Complete(phase, item, attempt, "survivor-1", msgspec.Raw(b"1"))
            await client.runs.submit(run, done)
    if state.status == "completed":
        await _come_back(client, run)


def _ready(state: RunState) -> list[tuple[str, int | None, int]]:
    return [
        (key, item.index, item.attempt)
        for key, phase in state.phases.items()
        for item in phase.items
        if item.status == "ready"
    ]


async def _come_back(client: Client, run: str) -> None:
    """The dead victim's results, sent once more: nothing of them counts."""
    victim = run.rpartition("-")[0]
    for item in range(ITEMS):
        late = Complete("each", item, 1, victim, msgspec.Raw(b'"late"'))
        decided = await client.runs.submit(run, late)
        assert [type_of(event) for event in decided.events] == ["phase.result_refused.v1"]


async def _must_keep_every_promise(client: Client, run: str) -> None:
    commits = await _commits(client, run)
    assert not list(violations(commits, utc_now()))
    assert len({commit.id for commit in commits}) == len(commits), "no commit is stored twice"
    accepted = Counter(
        (event.phase, event.item)
        for commit in commits
        for event in commit.events
        if isinstance(event, PhaseCompleted) and event.attempt is not None
    )
    assert set(accepted.values()) <= {1}, f"{run}: a result counted twice"


async def _must_belong_to_commits(client: Client, runs: list[str]) -> None:
    """Every dead letter is that of a commit that is there, and every commit that gave work up has its letters."""
    given_up: Counter[tuple[str, str, int | None]] = Counter()
    for run in runs:
        for commit in await _commits(client, run):
            given_up.update(
                (run, commit.id, event.item)
                for event in commit.events
                if isinstance(event, PhaseFailed) and event.item is not None
            )
    letters: Counter[tuple[str, str, int | None]] = Counter()
    async for record in client.log.read(client.subjects.dead_letters):
        message = record.envelope()
        letter = dead.read(message)
        assert isinstance(letter, dead.DeadLetter)
        if letter.run in runs:
            letters[letter.run, message.causationid or "", letter.item] += 1
            assert (letter.problem.code, letter.problem.title) == (REJECTED.code, REJECTED.title)
    assert letters == given_up
    assert letters, "some died after they had given work up"


async def _commits(client: Client, run: str, position: int | None = None) -> list[Commit]:
    commits = [commit async for commit in client.ledger.commits(run)]
    return [commit for commit in commits if position in (None, commit.position)]
