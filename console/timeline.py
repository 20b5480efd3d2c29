"""A run as a table: each phase with its bar on one axis of time, how long it took, who did it, what went wrong.

Pure: a state and a time come in, text goes out.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

import msgspec

from bus.rules.events import Arm
from bus.rules.run import SUCCEEDED, Attempt, Item, PhaseState, RunState
from console.text import duration, escaped

_WIDTH = 100
_LEAST_BAR = 12
_DETAILS = 8
_NAMED = 3
_NEVER_OPEN = frozenset({"pending", "skipped"})


class Glyphs(msgspec.Struct, frozen=True):
    """What marks are drawn with. `marks` is by a phase's status."""

    marks: dict[str, str]
    work: str
    wait: str
    broken: str


UNICODE = Glyphs(
    {
        "pending": "·",
        "ready": "○",
        "in_progress": "●",
        "waiting": "?",
        "completed": "✓",
        "approved": "✓",
        "failed": "✗",
        "skipped": "⊘",
        "cancelled": "⊘",
        "rolled_back": "↶",
    },
    work="█",
    wait="░",
    broken="✗",
)
ASCII = Glyphs(
    {
        "pending": ".",
        "ready": "o",
        "in_progress": "*",
        "waiting": "?",
        "completed": "+",
        "approved": "+",
        "failed": "x",
        "skipped": "-",
        "cancelled": "-",
        "rolled_back": "<",
    },
    work="#",
    wait=".",
    broken="x",
)


def glyphs(encoding: str | None) -> Glyphs:
    """Those that a stream of this encoding can take."""
    drawn = "".join(UNICODE.marks.values()) + UNICODE.work + UNICODE.wait
    try:
        drawn.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def timeline(state: RunState, now: datetime, *, width: int = _WIDTH, drawn: Glyphs | None = None) -> str:
    """The run's phases in the plan's order; below each what broke off, and of many items the slowest.

    `now` is where the bars of what is still open end. Drawn for standard output unless `drawn` says otherwise.
    """
    drawn = drawn or glyphs(sys.stdout.encoding)
    end = state.ended_at or now
    rows = [_row(phase, now, drawn) for phase in state.phases.values()]
    columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = max(width - sum(columns[:4]) - 2 * 5 - min(columns[4], 34), _LEAST_BAR)
    lines = [f"{state.run}  {state.status.replace('_', ' ')}, {duration((end - state.started_at).total_seconds())}", ""]
    for phase, (*left, lasted, who) in zip(state.phases.values(), rows, strict=True):
        named = "  ".join(text.ljust(size) for text, size in zip(left, columns, strict=False))
        bar = _bar(phase, state.started_at, end, cells, drawn)
        lines.append(f"{named}  {lasted.rjust(columns[3])}  {bar}  {who}".rstrip())
        lines += [f"    {detail}" for detail in _details(phase, now, drawn)]
    return "\n".join(lines)


def done(phase: PhaseState) -> str:
    """Of an `each` phase, how many items succeeded, such as 3/12; nothing for a plain phase."""
    if not phase.items or phase.items[0].index is None:
        return ""
    return f"{sum(map(SUCCEEDED.__contains__, [item.status for item in phase.items]))}/{len(phase.items)}"


def took(phase: PhaseState, now: datetime) -> str:
    """How long a phase was open, or has been so far; nothing for one that was not."""
    if phase.opened_at is None or phase.status in _NEVER_OPEN:
        return ""
    return duration(((phase.ended_at or now) - phase.opened_at).total_seconds())


def label(phase: str, item: int | None) -> str:
    """A unit of work as logs call it: `write`, or with its item `write:3`."""
    return phase if item is None else f"{phase}:{item}"


def outcome(attempt: Attempt) -> str:
    """How an attempt ended, in a word."""
    if attempt.ended_at is None:
        return "under way"
    if attempt.problem is None:
        return "completed"
    return attempt.problem.code if attempt.cause == "error" else attempt.cause.replace("_", " ")


def _row(phase: PhaseState, now: datetime, drawn: Glyphs) -> tuple[str, str, str, str, str]:
    return (
        f"{drawn.marks[phase.status]} {phase.key}",
        phase.status.replace("_", " "),
        done(phase),
        took(phase, now),
        escaped(phase.answered_by or phase.reason) or _who(phase),
    )


def _who(phase: PhaseState) -> str:
    """The instances whose attempts count, those with the most items first."""
    counts = Counter(item.attempts[-1].instance for item in phase.items if item.attempts)
    if len(phase.items) == 1:
        return next(iter(counts), "")
    named = [f"{instance} {count}" for instance, count in counts.most_common(_NAMED)]
    left_out = len(counts) - len(named)
    return ", ".join(named) + (f" and {left_out} more" if left_out else "")


def _bar(phase: PhaseState, start: datetime, end: datetime, cells: int, drawn: Glyphs) -> str:
    """Where on the axis the phase was open, where somebody worked on it, and where an attempt broke off."""
    total_s = max((end - start).total_seconds(), 0.001)

    def cell(at: datetime) -> int:
        return min(max(int((at - start).total_seconds() / total_s * cells), 0), cells - 1)

    bar = [" "] * cells
    if phase.opened_at is None or phase.status in _NEVER_OPEN:
        return "".join(bar)
    last = cell(phase.ended_at or end)
    bar[cell(phase.opened_at) : last + 1] = drawn.wait * (last + 1 - cell(phase.opened_at))
    attempts = [attempt for item in phase.items for attempt in item.attempts]
    for attempt in attempts:
        first, final = cell(attempt.started_at), cell(attempt.ended_at or end)
        bar[first : final + 1] = drawn.work * (final + 1 - first)
    for attempt in attempts:
        if attempt.problem is not None and attempt.ended_at is not None:
            bar[cell(attempt.ended_at)] = drawn.broken
    return "".join(bar)


def _details(phase: PhaseState, now: datetime, drawn: Glyphs) -> Iterator[str]:
    broke_off = [item for item in phase.items if any(attempt.problem for attempt in item.attempts)]
    for item in broke_off[:_DETAILS]:
        yield f"{label(phase.key, item.index)}: {_story(item, now)}"
    if len(broke_off) > _DETAILS:
        yield f"{len(broke_off) - _DETAILS} more whose attempts broke off"
    if phase.problem is not None and not broke_off:
        yield f"{drawn.broken} {escaped(str(phase.problem))}"
    yield from _provenance(phase, now)
    yield from _ways(phase)
    worked = [item for item in phase.items if item.index is not None and item.attempts]
    if len(worked) > 1:
        slowest = max(worked, key=lambda item: _spent_s(item, now))
        yield f"slowest {label(phase.key, slowest.index)}, {duration(_spent_s(slowest, now))}"


def _provenance(phase: PhaseState, now: datetime) -> Iterator[str]:
    """What was taken from the cache, and why the rest was not, where it could have been."""
    latest = [item.attempts[-1] for item in phase.items if item.attempts]
    is_plain = len(phase.items) == 1 and phase.items[0].index is None
    sources = [attempt.cached for attempt in latest if attempt.cached is not None]
    if sources:
        runs = list(dict.fromkeys(source.run for source in sources))
        where = runs[0] if len(runs) == 1 else f"{len(runs)} runs"
        since = duration((now - min(source.at for source in sources)).total_seconds())
        many = "" if is_plain else f"{len(sources)} of {len(phase.items)} "
        yield f"{many}cached from {escaped(where)}, {since} ago"
    for because, count in Counter(attempt.because for attempt in latest if attempt.because).most_common(_NAMED):
        yield f"{'' if is_plain else f'{count} '}ran because {escaped(because)}"


def _ways(phase: PhaseState) -> Iterator[str]:
    """To whom a route gave it; of many items, how many to whom."""
    is_plain = len(phase.items) == 1 and phase.items[0].index is None
    for arm, count in Counter(item.arm for item in phase.items if item.arm is not None).most_common(_NAMED):
        many = "" if is_plain else f"{count} of {len(phase.items)} "
        yield f"{many}{way(arm)}"


def way(arm: Arm) -> str:
    """Whom a route gave work to, in words."""
    instead = f", because nobody of {arm.instead_of} was there" if arm.instead_of else ""
    return escaped(f"for {arm.versions} by revision {arm.route} of the route{instead}")


def _story(item: Item, now: datetime) -> str:
    """Every attempt of an item: by whom, how long, how it ended, and how soon somebody else had it."""
    parts: list[str] = []
    before: datetime | None = None
    for attempt in item.attempts:
        taken = f" {duration((attempt.started_at - before).total_seconds())} later" if before else ""
        spent = duration(((attempt.ended_at or now) - attempt.started_at).total_seconds())
        parts.append(f"attempt {attempt.number}{taken} by {attempt.instance}, {outcome(attempt)} after {spent}")
        before = attempt.ended_at
    if item.problem is not None:
        parts.append(f"given up: {escaped(str(item.problem))}")
    return "; ".join(parts)


def _spent_s(item: Item, now: datetime) -> float:
    return ((item.ended_at or now) - item.attempts[0].started_at).total_seconds()
