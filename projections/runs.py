"""Every run there is: its state, and as one row of a list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

import msgspec

from bus.errors import NotFound
from bus.events import Commit, RunStarted, archived
from bus.folding import Folding, fold
from bus.plan import TASK
from bus.run import RunState, RunStatus
from projections.projection import Projection

# What folding raises at a commit that can't follow the ones before it: only forged or foreign ones do that.
_DOES_NOT_FOLLOW = (AssertionError, LookupError, ValueError, TypeError, AttributeError)


class SetAside(msgspec.Struct, frozen=True):
    """Commits of one run that don't follow from what came before: how many, and the newest with its reason."""

    commits: int
    position: int
    reason: str


class AllRuns(msgspec.Struct, frozen=True):
    """Every run by id, as of `position` (0: nothing has been folded).

    A commit in `set_aside` has changed nothing: its run stands as the commits that do follow leave it.
    """

    by_id: dict[str, RunState] = msgspec.field(default_factory=dict)
    set_aside: dict[str, SetAside] = msgspec.field(default_factory=dict)
    position: int = 0


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """A run at a glance. `phases_done` counts those that are done with; `current` are ready, in progress or waiting.

    `elapsed_s` runs from the start to the end, or to now. `problem` is the run's own, or while it is open that of
    the first phase that failed.
    """

    run: str
    plan: str
    version: str
    status: RunStatus
    phases_done: int
    phases_total: int
    started_at: datetime
    ended_at: datetime | None
    elapsed_s: float
    current: tuple[str, ...]
    problem: str | None


class Ambiguous(NotFound):
    """Several runs begin like this. Type more of the id; `runs` are the candidates, newest first."""

    def __init__(self, prefix: str, runs: list[str]) -> None:
        shown = ", ".join(runs[:5]) + (", ..." if len(runs) > 5 else "")
        super().__init__(f"{len(runs)} runs begin with {prefix!r}: {shown}")
        self.prefix = prefix
        self.runs = runs


def _fold(before: AllRuns, commits: Iterable[Commit]) -> AllRuns:
    fresh: dict[str, list[Commit]] = {}
    position = before.position
    for commit in commits:
        if commit.position > position:
            position = commit.position
            if archived(commit) and commit.run not in fresh and commit.run not in before.by_id:
                # Its past is in an archive that is not read here.
                continue
            fresh.setdefault(commit.run, []).append(commit)
    by_id, set_aside = dict(before.by_id), dict(before.set_aside)
    for run, new in fresh.items():
        state = _extend(by_id.get(run), new, set_aside)
        if state is not None:
            by_id[run] = state
    return AllRuns(by_id, set_aside, position)


def _extend(state: RunState | None, commits: list[Commit], set_aside: dict[str, SetAside]) -> RunState | None:
    """The run after its new commits; what does not follow is noted in `set_aside`."""
    try:
        folding = Folding(state)
        for commit in commits:
            _check_start(folding.state, commit)
            folding.add(commit)
    except _DOES_NOT_FOLLOW:
        # Half of the bad commit may be in that fold, so again, each commit on a state that survives its failure.
        return _extend_one_by_one(state, commits, set_aside)
    return folding.state


def _extend_one_by_one(
    state: RunState | None, commits: list[Commit], set_aside: dict[str, SetAside]
) -> RunState | None:
    for commit in commits:
        try:
            _check_start(state, commit)
            state = fold([commit], state)
        except _DOES_NOT_FOLLOW as error:
            earlier = set_aside.get(commit.run)
            count = earlier.commits + 1 if earlier is not None else 1
            set_aside[commit.run] = SetAside(count, commit.position, f"{type(error).__name__}: {error}")
    return state


def _check_start(state: RunState | None, commit: Commit) -> None:
    """Raises ValueError for a commit before the run's start: with asserts off, `fold` would not notice."""
    if state is None and not (commit.events and isinstance(commit.events[0], RunStarted)):
        raise ValueError("the run has not started")


RUNS: Projection[AllRuns] = Projection(name="runs", version=1, initial=AllRuns, fold=_fold)
"""The state of every run and phase."""


def is_task(state: RunState) -> bool:
    """Whether this is work outside a run, not a run somebody planned."""
    return state.plan.name == TASK


def row(state: RunState, now: datetime) -> RunRow:
    """The run as one row of a list."""
    phases = state.phases.values()
    problems = [state.problem, *(phase.problem for phase in phases)]
    return RunRow(
        run=state.run,
        plan=state.plan.name,
        version=state.plan.version,
        status=state.status,
        phases_done=sum(1 for phase in phases if phase.lets_pass),
        phases_total=len(state.phases),
        started_at=state.started_at,
        ended_at=state.ended_at,
        elapsed_s=((state.ended_at or now) - state.started_at).total_seconds(),
        current=tuple(phase.key for phase in phases if phase.status in {"ready", "in_progress", "waiting"}),
        problem=next((str(problem) for problem in problems if problem is not None), None),
    )


def rows(runs: Mapping[str, RunState], now: datetime, *, tasks: bool = False) -> list[RunRow]:
    """The runs as a list, newest first; with `tasks`, work outside a run is among them."""
    chosen = [state for state in runs.values() if tasks or not is_task(state)]
    return [row(state, now) for state in sorted(chosen, key=_age, reverse=True)]


def find(runs: Mapping[str, RunState], prefix: str) -> RunState:
    """The run with this id, or the only one whose id begins like this. Raises NotFound, Ambiguous."""
    if prefix in runs:
        return runs[prefix]
    found = [state for run, state in runs.items() if run.startswith(prefix)]
    if not found:
        raise NotFound(f"there is no run {prefix!r} in this log")
    if len(found) > 1:
        raise Ambiguous(prefix, [state.run for state in sorted(found, key=_age, reverse=True)])
    return found[0]


def _age(state: RunState) -> tuple[datetime, str]:
    return state.started_at, state.run
