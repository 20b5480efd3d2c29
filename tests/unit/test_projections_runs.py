"""The runs projection: what is true of every run, folded from commits. And the driver that makes such commits."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from bus.errors import NotFound
from bus.history.happening import Happening
from bus.problem import ErrorClass, Problem
from bus.rules.commands import Answer, Begin, Command, Complete, Fail, Progress, Take
from bus.rules.decide import decide
from bus.rules.events import Commit, Event, PhaseCompleted, PhaseReady, RunRedriven
from bus.rules.folding import evolve
from bus.rules.folding import fold as fold_run
from bus.rules.plan import TASK, Approval, Phase, Plan
from bus.rules.references import ref
from bus.rules.run import RunState
from projections.projection import View, fold
from projections.runs import RUNS, Ambiguous, find, is_task, row, rows
from tests.driver import due

START = datetime(2026, 1, 1, tzinfo=UTC)


class Driver:
    """A run moved on by commands at times of the test's choosing (seconds after `START`), with the commits it makes."""

    def __init__(self, plan: Plan, run: str = "r", *, at_s: float = 0.0, value: object = None) -> None:
        self.run = run
        self.commits: list[Commit] = []
        self.now_s = at_s
        self._state: RunState | None = None
        self.do(Begin(plan, msgspec.Raw(msgspec.json.encode(value if value is not None else {}))))

    @property
    def state(self) -> RunState:
        assert self._state is not None
        return self._state

    @property
    def now(self) -> datetime:
        return START + timedelta(seconds=self.now_s)

    def do(self, command: Command, *, at_s: float | None = None) -> Driver:
        self.now_s = self.now_s if at_s is None else at_s
        events = decide(self._state, command, run=self.run, now=self.now)
        commit = Commit(self.run, f"c{len(self.commits)}", self.now, len(self.commits) + 1, events)
        self.commits.append(commit)
        self._state = evolve(self._state, commit)
        return self

    def take(
        self, phase: str, item: int | None = None, *, at_s: float | None = None, timeout_s: float = 3600
    ) -> Driver:
        capability = self.state.plan.graph[phase].phase.capability or ""
        taking = Take(phase, item, self._attempt(phase, item), capability, "agent", "agent-1", timeout_s)
        return self.do(taking, at_s=at_s)

    def complete(
        self, phase: str, item: int | None = None, *, at_s: float | None = None, output: object = None
    ) -> Driver:
        raw = msgspec.Raw(msgspec.json.encode(output))
        return self.do(Complete(phase, item, self._attempt(phase, item), "agent-1", raw), at_s=at_s)

    def say(self, phase: str, fraction: float, item: int | None = None, *, at_s: float | None = None) -> Driver:
        return self.do(Progress(phase, item, self._attempt(phase, item), "agent-1", fraction, ""), at_s=at_s)

    def fail(
        self,
        phase: str,
        item: int | None = None,
        *,
        at_s: float | None = None,
        error_class: ErrorClass = "permanent",
    ) -> Driver:
        problem = Problem("handler_error", "it broke", error_class)
        return self.do(Fail(phase, item, self._attempt(phase, item), "agent-1", problem), at_s=at_s)

    def approve(self, phase: str, *, at_s: float | None = None) -> Driver:
        return self.do(Answer(phase, True, "ann"), at_s=at_s)

    def _attempt(self, phase: str, item: int | None) -> int:
        found = self.state.phases[phase].item(item)
        assert found is not None
        return found.attempt


def simulate(
    plan: Plan,
    seconds: Callable[[str, int | None], float],
    *,
    run: str = "r",
    at_s: float = 0.0,
    value: object = None,
    workers: int = 1_000,
) -> list[tuple[float, RunState]]:
    """A run carried out by that many workers: the state after each completion, with its time after `START`."""
    driver = Driver(plan, run, at_s=at_s, value=value)
    story = [(at_s, driver.state)]
    ends: list[tuple[float, str, int | None]] = []
    while True:
        for key, index in due(driver.state, driver.now)[: workers - len(ends)]:
            driver.take(key, index)
            heapq.heappush(ends, (driver.now_s + seconds(key, index), key, index))
        if not ends:
            return story
        driver.now_s, key, index = heapq.heappop(ends)
        driver.complete(key, index)
        story.append((driver.now_s, driver.state))


CHAIN = Plan("chain", version="2", phases=[Phase("a", "work"), Phase("b", "work", after=["a"])])
GATED = Plan("gated", phases=[Phase("a", "work"), Phase("ok", approval=Approval(prompt="Fine?"), after=["a"])])
FANNED = Plan("fanned", phases=[Phase("each", "work", each=ref("input.list"), width=2)])


def everything(*drivers: Driver) -> list[Commit]:
    """Several runs' commits as one log: in order of time, at positions from 1."""
    commits = sorted((commit for driver in drivers for commit in driver.commits), key=lambda commit: commit.at)
    return [msgspec.structs.replace(commit, position=place) for place, commit in enumerate(commits, 1)]


def told(commits: Iterable[Commit]) -> list[Happening]:
    """The commits as the log tells of them, event by event."""
    return [
        Happening(
            position=commit.position,
            subject=f"bus.run.{commit.run}",
            stored_at=commit.at,
            index=index,
            commit=commit,
            event=event,
        )
        for commit in commits
        for index, event in enumerate(commit.events)
    ]


def folded(*commits: Commit, before: View[RunState] | None = None) -> View[RunState]:
    return fold(RUNS, before or View(), told(commits))


def test_every_run_has_the_state_its_own_commits_make() -> None:
    one = Driver(CHAIN, "one").take("a", at_s=1).complete("a", at_s=2)
    two = Driver(GATED, "two", at_s=0.5).take("a", at_s=1.5)
    log = everything(one, two)
    runs = folded(*log)
    for name in ("one", "two"):
        own = fold_run(commit for commit in log if commit.run == name)
        assert own is not None
        assert runs.rows[name].phases == own.phases
    assert (runs.position, runs.asides) == (5, ())


def test_a_fold_leaves_the_state_it_was_given_untouched() -> None:
    driver = Driver(CHAIN)
    before = folded(*driver.commits)
    driver.take("a")
    after = folded(*driver.commits, before=before)
    assert before.rows["r"].phases["a"].status == "ready"
    assert after.rows["r"].phases["a"].status == "in_progress"


def test_commits_that_were_folded_before_change_nothing() -> None:
    commits = Driver(CHAIN).take("a").commits
    once = folded(*commits)
    assert folded(*commits, before=once) == once


@pytest.mark.parametrize(
    "foreign",
    [
        PhaseReady(phase="nowhere", attempt=1),
        PhaseCompleted(phase="b", attempt=1),
        RunRedriven(by="ann", phases=["nowhere"], deadline_at=START),
    ],
)
def test_a_commit_that_does_not_follow_is_set_aside_whole_and_the_run_goes_on(foreign: Event) -> None:
    driver = Driver(CHAIN).take("a", at_s=1)
    good = driver.commits[-1]
    # Its first event would fit; none of it may count.
    bad = Commit("r", "bad", driver.now, 3, [PhaseCompleted(phase="a", attempt=1), foreign])
    after = msgspec.structs.replace(driver.complete("a", at_s=2).commits[-1], position=4)
    runs = folded(driver.commits[0], good, bad, after)
    own = fold_run([driver.commits[0], good, after])
    assert own is not None
    assert runs.rows["r"].phases == own.phases
    assert [(aside.position, aside.index) for aside in runs.asides] == [(3, 0)]
    assert runs.asides[0].reason and runs.position == 4


def test_commits_of_a_run_that_never_started_are_set_aside() -> None:
    stray = [Commit("ghost", f"{place}", START, place, [PhaseReady(phase="a", attempt=1)]) for place in (1, 2)]
    runs = folded(*stray)
    assert runs.rows == {}
    assert [aside.position for aside in runs.asides] == [1, 2]


def test_rows_say_what_a_list_needs_newest_first() -> None:
    old = Driver(CHAIN, "old").take("a", at_s=1).complete("a", at_s=2).take("b", at_s=3)
    new = Driver(GATED, "new", at_s=5).take("a", at_s=6).fail("a", at_s=7)
    first, second = rows(folded(*everything(old, new)).rows, START + timedelta(seconds=10))
    assert (first.run, first.status, first.phases_done, first.phases_total) == ("new", "failed", 0, 2)
    assert (first.elapsed_s, first.current) == (2.0, ())
    assert first.problem is not None and "it broke" in first.problem
    assert (second.run, second.plan, second.version) == ("old", "chain", "2")
    assert (second.phases_done, second.current, second.elapsed_s, second.problem) == (1, ("b",), 10.0, None)


def test_an_open_run_shows_the_problem_of_a_phase_that_failed() -> None:
    plan = Plan("p", phases=[Phase("a", "work"), Phase("b", "work")])
    driver = Driver(plan).take("a").take("b").fail("a")
    assert row(driver.state, driver.now).problem == "it broke"


def test_tasks_are_told_apart() -> None:
    task = Driver(Plan(TASK, phases=[Phase("work", "work")]), "t")
    runs = folded(*everything(task, Driver(CHAIN))).rows
    assert is_task(runs["t"]) and not is_task(runs["r"])
    assert [each.run for each in rows(runs, START)] == ["r"]
    assert len(rows(runs, START, tasks=True)) == 2


def test_a_run_is_found_by_what_only_its_id_begins_with() -> None:
    runs = folded(*everything(Driver(CHAIN, "chain-1"), Driver(CHAIN, "chain-12", at_s=1))).rows
    assert find(runs, "chain-12").run == "chain-12"
    assert find(runs, "chain-1").run == "chain-1"
    with pytest.raises(Ambiguous) as ambiguous:
        find(runs, "ch")
    assert ambiguous.value.runs == ["chain-12", "chain-1"]
    with pytest.raises(NotFound):
        find(runs, "x")
