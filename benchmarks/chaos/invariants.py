"""The invariants: what must be so when chaos has ended, each checked from the log alone.

They share no code with what decides or recovers, and none with `bus.rules.verify`, which is run beside them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from bus import Client
from bus.clock import utc_now
from bus.log.streams import info
from bus.rules.events import (
    Commit,
    PhaseAttemptFailed,
    PhaseCompleted,
    PhaseFailed,
    PhaseReady,
    PhaseStarted,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunRedriven,
    RunStarted,
)
from bus.rules.verify import violations

Place = tuple[str, int | None]


class Violation(NamedTuple):
    """What is not as it must be; `run` is empty if it is about none in particular."""

    run: str
    says: str


async def check(client: Client, acknowledged: Mapping[str, int], cancelled: Iterable[str]) -> list[Violation]:
    """Every violation. `acknowledged` are the starts, with the position each was told (0: it was not told one)."""
    found: list[Violation] = []
    stored = set(await client.ledger.names())
    dead = await _dead(client)
    for run, position in acknowledged.items():
        if run not in stored:
            found.append(Violation(run, "its start was acknowledged, and it is not in the log"))
            continue
        commits = [commit async for commit in client.ledger.commits(run)]
        found += [Violation(run, says) for says in of_run(commits, position)]
        given_up = sum(isinstance(event, PhaseFailed) for commit in commits for event in commit.events)
        if given_up != dead.get(run, 0):
            found.append(Violation(run, f"{given_up} failures and {dead.get(run, 0)} dead letters"))
        found += [
            Violation(run, f"verify: {each.promise}: {each.says} (position {each.position})")
            for each in violations(commits, utc_now())
        ]
    for run in cancelled:
        commits = [commit async for commit in client.ledger.commits(run)]
        if not any(isinstance(event, RunCancelled) for commit in commits for event in commit.events):
            found.append(Violation(run, "its cancellation was acknowledged, and it is not in the log"))
    left = await info(client.connection, client.subjects.work_stream, 5, subjects=">")
    if left.messages:
        found.append(Violation("", f"work left over: {', '.join(left.subjects)[:500]}"))
    return found


def of_run(commits: Iterable[Commit], position: int = 0) -> Iterator[str]:
    """What is wrong with one run, seen only through what was stored."""
    newest: dict[Place, int] = {}
    under_way: set[tuple[Place, int]] = set()
    accepted: defaultdict[tuple[Place, int], int] = defaultdict(int)
    starts, passes, has_ended = 0, 1, False
    for commit in commits:
        for event in commit.events:
            if has_ended and isinstance(event, RunCompleted | RunFailed | RunCancelled):
                yield f"it ends a second time at {commit.position}"
            match event:
                case RunStarted():
                    starts += 1
                    if position and commit.position != position:
                        yield f"its start was acknowledged at {position}, and is at {commit.position}"
                case RunRedriven():
                    passes, has_ended = passes + 1, False
                case RunCompleted() | RunFailed() | RunCancelled():
                    has_ended = True
                case PhaseReady(phase=phase, item=item, attempt=attempt):
                    if attempt <= newest.get((phase, item), 0):
                        yield f"attempt {attempt} of {phase}:{item} is made ready twice"
                    newest[phase, item] = attempt
                case PhaseStarted(phase=phase, item=item, attempt=attempt):
                    if ((phase, item), attempt) in under_way:
                        yield f"attempt {attempt} of {phase}:{item} is taken twice"
                    if attempt != newest.get((phase, item)):
                        yield f"attempt {attempt} of {phase}:{item} is taken, and is not the newest"
                    under_way.add(((phase, item), attempt))
                case PhaseAttemptFailed(phase=phase, item=item, attempt=attempt):
                    under_way.discard(((phase, item), attempt))
                case PhaseCompleted(phase=phase, item=item, attempt=int(attempt)):
                    place = (phase, item)
                    if attempt != newest.get(place) or (place, attempt) not in under_way:
                        yield f"a result of attempt {attempt} of {phase}:{item} is accepted, which was superseded"
                    accepted[place, passes] += 1
    yield from (
        f"{count} results of {phase}:{item} are accepted in pass {number}"
        for ((phase, item), number), count in accepted.items()
        if count > 1
    )
    if starts != 1:
        yield f"it has started {starts} times"
    if not has_ended:
        yield "it has not ended"


async def _dead(client: Client) -> dict[str, int]:
    """How many dead letters each run has."""
    found: defaultdict[str, int] = defaultdict(int)
    async for each in client.dead_letters():
        found[getattr(each.letter, "run", "")] += 1
    return found
