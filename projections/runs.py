"""Every run there is: its state, and as one row of a list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

import msgspec

from bus.errors import NotFound
from bus.history.happening import Happening
from bus.rules.events import RunStarted, archived
from bus.rules.folding import Folding
from bus.rules.plan import TASK
from bus.rules.run import RunState, RunStatus
from projections.projection import Projection, Rows, each_of


class Glance(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A run at a glance. `phases_done` counts those that are done with; `current` are ready, in progress or waiting.

    `problem` is the run's own, or while it is open that of the first phase that failed.
    """

    run: str
    plan: str
    version: str
    status: RunStatus
    phases_done: int
    phases_total: int
    started_at: datetime
    ended_at: datetime | None
    current: tuple[str, ...]
    problem: str | None


class RunRow(Glance, frozen=True, kw_only=True, gc=False):
    """A run as one row of a list. `elapsed_s` runs from the start to the end, or to now."""

    elapsed_s: float


class Ambiguous(NotFound):
    """Several runs begin like this. Type more of the id; `runs` are the candidates, newest first."""

    def __init__(self, prefix: str, runs: list[str]) -> None:
        shown = ", ".join(runs[:5]) + (", ..." if len(runs) > 5 else "")
        super().__init__(f"{len(runs)} runs begin with {prefix!r}: {shown}")
        self.prefix = prefix
        self.runs = runs


def _stretch(runs: Rows[RunState], happenings: Sequence[Happening]) -> None:
    """Of a run that says more than one thing in it, each part of the state is copied once."""
    foldings: dict[str, Folding] = {}
    for each in happenings:
        commit = each.commit
        if commit is None:
            continue
        folding = foldings.get(commit.run)
        if folding is None:
            before = runs.get(commit.run)
            if before is None:
                if archived(commit):
                    continue  # its past is in an archive that is not read here
                if not (commit.events and isinstance(commit.events[0], RunStarted)):
                    raise ValueError("the run has not started")
            folding = foldings[commit.run] = Folding(before)
        folding.add(commit)
    for run, folding in foldings.items():
        assert folding.state is not None, "a commit folds to a state"
        runs[run] = folding.state


def glance(state: RunState) -> Glance:
    """The run at a glance."""
    phases = state.phases.values()
    problems = [state.problem, *(phase.problem for phase in phases)]
    return Glance(
        run=state.run,
        plan=state.plan.name,
        version=state.plan.version,
        status=state.status,
        phases_done=sum(1 for phase in phases if phase.lets_pass),
        phases_total=len(state.phases),
        started_at=state.started_at,
        ended_at=state.ended_at,
        current=tuple(phase.key for phase in phases if phase.status in {"ready", "in_progress", "waiting"}),
        problem=next((str(problem) for problem in problems if problem is not None), None),
    )


RUNS: Projection[RunState] = Projection(
    name="runs",
    version=2,
    row=RunState,
    fold=each_of(_stretch),
    stretch=_stretch,
    subjects=["run.*"],
    whole=True,
    glance=glance,
    subject_of="run.{}".format,
)
"""The state of every run and phase."""


def is_task(state: RunState) -> bool:
    """Whether this is work outside a run, not a run somebody planned."""
    return state.plan.name == TASK


def row(state: RunState, now: datetime) -> RunRow:
    """The run as one row of a list."""
    return _row(glance(state), now)


def rows(runs: Mapping[str, RunState], now: datetime, *, tasks: bool = False) -> list[RunRow]:
    """The runs as a list, newest first; with `tasks`, work outside a run is among them."""
    return listed((glance(state) for state in runs.values()), now, tasks=tasks)


def listed(glances: Iterable[Glance], now: datetime, *, tasks: bool = False) -> list[RunRow]:
    """The same of glances, as they are kept."""
    chosen = [each for each in glances if tasks or each.plan != TASK]
    return [_row(each, now) for each in sorted(chosen, key=_age, reverse=True)]


def _row(seen: Glance, now: datetime) -> RunRow:
    elapsed_s = ((seen.ended_at or now) - seen.started_at).total_seconds()
    return RunRow(
        run=seen.run,
        plan=seen.plan,
        version=seen.version,
        status=seen.status,
        phases_done=seen.phases_done,
        phases_total=seen.phases_total,
        started_at=seen.started_at,
        ended_at=seen.ended_at,
        current=seen.current,
        problem=seen.problem,
        elapsed_s=elapsed_s,
    )


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


def _age(state: RunState | Glance) -> tuple[datetime, str]:
    return state.started_at, state.run
