"""Figures: how long it took from a fault to what made up for it, told from the log."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec

from benchmarks.chaos.company import Done
from bus import Client
from bus.registry.card import AGENT_REGISTERED, Card
from bus.rules.events import Commit, Event, PhaseAttemptFailed, PhaseStarted, ResultRefused

_card = msgspec.json.Decoder(Card)
_TAKEN_BACK = frozenset({"crashed", "frozen", "blocked", "forgotten", "handed_back"})


class Recovery(NamedTuple):
    """One attempt that was taken from a process a fault was done to: seconds to its end, and to the next start."""

    kind: str
    cause: str
    noticed_s: float
    started_s: float | None


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]


async def processes(client: Client) -> Mapping[str, int]:
    """The process behind every instance there ever was."""
    found: dict[str, int] = {}
    async for record in client.log.read(f"{client.subjects.namespace}.agent.>"):
        message = record.envelope()
        if message.type == AGENT_REGISTERED:
            card = _card.decode(message.data)
            found[card.instance] = card.pid
    return found


def recoveries(commits: Iterable[Commit], done: Iterable[Done], pids: Mapping[str, int]) -> list[Recovery]:
    """What was recovered in one run because of a fault that hit the process which held it."""
    found: list[Recovery] = []
    hits: defaultdict[int, list[Done]] = defaultdict(list)
    for each in done:
        hits[each.pid].append(each)
    taken: dict[tuple[str, int | None, int], datetime] = {}
    open_: dict[tuple[str, int | None, int], tuple[Done, str, datetime]] = {}
    for commit in commits:
        for event in commit.events:
            if isinstance(event, PhaseStarted):
                attempt = (event.phase, event.item, event.attempt)
                taken[attempt] = commit.at
                if attempt in open_:
                    found.append(_recovery(*open_.pop(attempt), commit.at))
            elif isinstance(event, PhaseAttemptFailed) and event.cause in _TAKEN_BACK:
                began = taken.get((event.phase, event.item, event.attempt), commit.at)
                # What hit the process before it held the attempt is not why it lost it.
                why = [hit for hit in hits[pids.get(event.instance or "", -1)] if began <= hit.at <= commit.at]
                if why:
                    open_[event.phase, event.item, event.attempt + 1] = (why[0], event.cause, commit.at)
    return found + [_recovery(*each, None) for each in open_.values()]


def counted(events: Iterable[Event]) -> Counter[str]:
    """How attempts ended without a result, and how many late results were refused."""
    counts: Counter[str] = Counter()
    for event in events:
        if isinstance(event, PhaseAttemptFailed):
            counts[event.cause] += 1
        elif isinstance(event, ResultRefused):
            counts["refused results"] += 1
    return counts


def _recovery(fault: Done, cause: str, noticed: datetime, started: datetime | None) -> Recovery:
    after = None if started is None else (started - fault.at).total_seconds()
    return Recovery(fault.kind, cause, (noticed - fault.at).total_seconds(), after)
