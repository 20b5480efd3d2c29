"""A log that is quickly made: the commits of runs of ten phases that complete, many runs side by side.

python -m benchmarks.story URL EVENTS_PER_S SECONDS     # at that pace; prints each position and when it was sent
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from uuid import uuid4

import msgspec

from bus import Client, Phase, Plan, connect
from bus.format.envelope import Envelope, envelope
from bus.log.log import Part
from bus.rules.commands import Begin, Command, Complete, Offer, Take
from bus.rules.decide import decide
from bus.rules.events import COMMIT, Commit, body
from bus.rules.folding import evolve
from bus.rules.run import RunState

PHASES = 10
SIDE_BY_SIDE = 64


class Chapter(msgspec.Struct, frozen=True):
    """A commit of a run, as it is stored but for its id and the run's, and how many events it has."""

    message: Envelope
    events: int


async def fill(client: Client, events: int) -> int:
    """Store so many events, or a few more, as fast as the log takes them; returns how many."""
    written = 0
    async with client.log.pipeline() as pipeline:
        for part, size in told(client, "r"):
            if written >= events:
                break
            await pipeline.append(part)
            written += size
    return written


async def pace(client: Client, events_per_s: float, seconds: float) -> list[tuple[int, float]]:
    """Store so many events a second; returns the position of each commit, and when it was sent (monotonic clock)."""
    sent: list[tuple[asyncio.Future[int], float]] = []
    written = 0
    async with client.log.pipeline() as pipeline:
        began = time.monotonic()
        for part, size in told(client, "live-"):
            due = began + written / events_per_s
            if due - began >= seconds:
                break
            await asyncio.sleep(max(due - time.monotonic(), 0))
            sent.append((await pipeline.append(part), time.monotonic()))
            written += size
    return [(position.result(), at) for position, at in sent]


def told(client: Client, prefix: str) -> Iterator[tuple[Part, int]]:
    """Commits of runs `prefix0000001` and on, for ever, and how many events each has."""
    chapters = _chapters()
    for first in count(1, SIDE_BY_SIDE):
        runs = [f"{prefix}{number:07}" for number in range(first, first + SIDE_BY_SIDE)]
        for chapter in chapters:
            for run in runs:
                message = msgspec.structs.replace(chapter.message, id=uuid4().hex, runid=run, correlationid=run)
                yield Part(client.subjects.run(run), message), chapter.events


def _chapters() -> list[Chapter]:
    """What happens to a run, from its start to its end."""
    phases = [Phase(f"p{n}", "noop", after=[f"p{n - 1}"] if n else []) for n in range(PHASES)]
    state: RunState | None = None
    chapters: list[Chapter] = []
    now = datetime.now(UTC)
    offer = Offer("noop", "bench", 60.0)
    commands: list[Command] = [
        Begin(Plan("ten", phases=phases), msgspec.Raw(b"{}")),
        Take("p0", None, 1, "noop", "bench", "bench-1", 60.0),
    ]
    commands += [Complete(f"p{n}", None, 1, "bench-1", msgspec.Raw(b'{"ok":true}'), offer) for n in range(PHASES)]
    for command in commands:
        happened = decide(state, command, run="r", now=now)
        commit = Commit("r", uuid4().hex, now, len(chapters) + 1, happened)
        state = evolve(state, commit)
        message = envelope(COMMIT, body(happened), id=commit.id, source="/bench", time=now)
        chapters.append(Chapter(message, len(happened)))
    assert state is not None and state.status == "completed"
    return chapters


async def _main(url: str, events_per_s: float, seconds: float) -> None:
    async with connect(url) as client:
        sent = await pace(client, events_per_s, seconds)
    sys.stdout.write("".join(f"{position} {at}\n" for position, at in sent))


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
