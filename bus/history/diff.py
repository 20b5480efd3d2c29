"""Diff: two runs side by side, phase by phase, and the first event after which they are not the same run any more.

Whoever did the work, and when, is no difference between two runs; how long it took is told with the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import msgspec

from bus.rules.events import Commit, Event, PhaseProgressed, ResultRefused, RunArchived, type_of
from bus.rules.folding import fold
from bus.rules.run import PhaseState, RunState

# Who, when, and on what evidence; the plans are compared by themselves.
_INCIDENTAL = {"deadline_at", "due_at", "expires_at", "agent", "instance", "evidence", "by", "plan"}
# Whether a result was computed or taken over is no difference between what two runs did.
_INCIDENTAL |= {"force", "because", "key", "cached"}
_INCIDENTAL_OF_PROBLEM = {"trace", "causes", "detail"}


class Difference(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first place where two JSON values are not the same: a path such as `files.2.name`, and what is there.

    What one side does not have is left out.
    """

    path: str
    one: Any = msgspec.UNSET
    other: Any = msgspec.UNSET


class Side(msgspec.Struct, frozen=True):
    """A phase in one of the runs. `duration_s` is from its opening to its end, None while it is open."""

    status: str
    attempts: int
    items: int
    duration_s: float | None


class PhaseDiff(msgspec.Struct, frozen=True):
    """A phase in both; None where a run does not have it. `output` is where the outputs first part."""

    phase: str
    one: Side | None
    other: Side | None
    output: Difference | None

    @property
    def is_same(self) -> bool:
        """Apart from how long it took."""
        sides = [(side.status, side.attempts, side.items) if side is not None else None for side in self.sides]
        return sides[0] == sides[1] and self.output is None

    @property
    def sides(self) -> tuple[Side | None, Side | None]:
        return self.one, self.other


class Moment(msgspec.Struct, frozen=True):
    """An event of one of the runs, and where it stands."""

    position: int
    index: int
    type: str
    phase: str = ""
    item: int | None = None


class Parting(msgspec.Struct, frozen=True):
    """The first events that differ, after `common` that do not; None for a run that has no more.

    `difference` says how, where both are of one type about one phase.
    """

    common: int
    one: Moment | None
    other: Moment | None
    difference: Difference | None = None


class RunDiff(msgspec.Struct, frozen=True):
    """Two runs side by side; each pair is first the one, then the other."""

    runs: tuple[str, str]
    plans: tuple[str, str]
    status: tuple[str, str]
    input: Difference | None
    phases: Sequence[PhaseDiff]
    parting: Parting | None

    @property
    def is_same(self) -> bool:
        """Whether they did the same with the same outcome; their plans may differ all the same."""
        is_equal = self.status[0] == self.status[1] and self.input is None and self.parting is None
        return is_equal and all(phase.is_same for phase in self.phases)


def diff(one: Sequence[Commit], other: Sequence[Commit]) -> RunDiff:
    """Compare two runs by all of their commits."""
    mine, theirs = fold(one), fold(other)
    assert mine is not None and theirs is not None, "a run has a first commit"
    keys = dict.fromkeys([*mine.phases, *theirs.phases])
    return RunDiff(
        runs=(mine.run, theirs.run),
        plans=(f"{mine.plan.name} {mine.plan.version}", f"{theirs.plan.name} {theirs.plan.version}"),
        status=(mine.status, theirs.status),
        input=first_difference(mine.input.value, theirs.input.value),
        phases=[_phase(key, mine, theirs) for key in keys],
        parting=_parting(one, other),
    )


def first_difference(one: Any, other: Any) -> Difference | None:
    """None if the two JSON values are the same."""
    return _first(one, other, "")


def _first(one: Any, other: Any, path: str) -> Difference | None:
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = [(key, one.get(key, msgspec.UNSET), other.get(key, msgspec.UNSET)) for key in {**one, **other}]
    elif isinstance(one, list) and isinstance(other, list):
        longest = zip_longest(one, other, fillvalue=msgspec.UNSET)
        pairs = [(str(place), mine, theirs) for place, (mine, theirs) in enumerate(longest)]
    else:
        # In JSON, true is not 1.
        is_same = one == other and isinstance(one, bool) == isinstance(other, bool)
        return None if is_same else Difference(path, one, other)
    for step, mine, theirs in pairs:
        found = _first(mine, theirs, f"{path}.{step}" if path else step)
        if found is not None:
            return found
    return None


def _phase(key: str, one: RunState, other: RunState) -> PhaseDiff:
    mine, theirs = one.phases.get(key), other.phases.get(key)
    output = None
    if mine is not None and theirs is not None and mine.output != theirs.output:
        values = [phase.output.value if phase.output is not None else msgspec.UNSET for phase in (mine, theirs)]
        # The same value may be written in different bytes.
        output = first_difference(*values)
    return PhaseDiff(key, _side(mine), _side(theirs), output)


def _side(phase: PhaseState | None) -> Side | None:
    if phase is None:
        return None
    took_s = (phase.ended_at - phase.opened_at).total_seconds() if phase.opened_at and phase.ended_at else None
    attempts = sum(len(item.attempts) for item in phase.items)
    return Side(phase.status, attempts, len(phase.items), took_s)


def _parting(one: Sequence[Commit], other: Sequence[Commit]) -> Parting | None:
    for common, (mine, theirs) in enumerate(zip_longest(_moves(one), _moves(other))):
        if mine is None or theirs is None:
            return Parting(common, mine and _moment(*mine), theirs and _moment(*theirs))
        difference = first_difference(_plain(mine[2]), _plain(theirs[2]))
        if difference is not None:
            is_alike = difference.path not in {"type", "phase", "item"}
            return Parting(common, _moment(*mine), _moment(*theirs), difference if is_alike else None)
    return None


def _moves(commits: Sequence[Commit]) -> Iterator[tuple[int, int, Event]]:
    for commit in commits:
        for index, event in enumerate(commit.events):
            if not isinstance(event, PhaseProgressed | ResultRefused | RunArchived):
                yield commit.position, index, event


def _moment(position: int, index: int, event: Event) -> Moment:
    return Moment(position, index, type_of(event), getattr(event, "phase", ""), getattr(event, "item", None))


def _plain(event: Event) -> dict[str, Any]:
    """What happened, without who did it and when; first what kind of thing, then about what."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(event))
    ordered = {name: plain.get(name) for name in ("type", "phase", "item")} | plain
    if isinstance(problem := ordered.get("problem"), dict):
        ordered["problem"] = {name: said for name, said in problem.items() if name not in _INCIDENTAL_OF_PROBLEM}
    return {name: value for name, value in ordered.items() if name not in _INCIDENTAL}
