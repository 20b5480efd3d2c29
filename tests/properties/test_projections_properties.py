"""What holds for every run: folds don't care how the log is cut, progress stays in bounds, forecasts are honest."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from random import Random
from statistics import median
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.rules.commands import Cancel, Redrive
from bus.rules.plan import Approval, Phase, Plan
from bus.rules.references import ref
from bus.rules.run import SUCCEEDED, RunState
from projections.eta import eta
from projections.history import History, learn
from projections.progress import progress
from projections.projection import View
from tests.unit.test_projections_runs import START, Driver, everything, folded, simulate

MIXED = Plan(
    "mixed",
    phases=[
        Phase("a", "work"),
        Phase("each", "work", each=ref("input.list"), width=2, after=["a"]),
        Phase("ok", approval=Approval(), after=["a"]),
        Phase("end", "work", after=["each", "ok"]),
    ],
)
KNOWN = learn(
    simulate(
        Plan("mixed", phases=[Phase("a", "work"), Phase("each", "work", each=ref("input.list"), width=2)]),
        lambda key, _, run=run: 10.0 + run + len(key),
        run=f"past-{run}",
        value={"list": [1, 2, 3, 4]},
    )[-1][1]
    for run in range(10)
)


@st.composite
def drivers(draw: st.DrawFn, run: str = "r") -> Driver:
    """A run of `MIXED`, moved on by up to 30 steps that its state allows."""
    driver = Driver(MIXED, run, value={"list": list(range(draw(st.integers(0, 4))))})
    for _ in range(draw(st.integers(0, 30))):
        driver.now_s += draw(st.sampled_from([0.0, 1.0, 15.0]))
        step(driver, draw)
    return driver


def step(driver: Driver, draw: st.DrawFn) -> None:
    if not driver.state.is_open:
        if driver.state.status != "completed":
            driver.do(Redrive("ann"))
        return
    if driver.state.phases["ok"].status == "waiting" and draw(st.booleans()):
        driver.approve("ok")
        return
    units = [(phase.key, item) for phase in driver.state.phases.values() for item in phase.items]
    ready = [(key, item.index) for key, item in units if item.status == "ready"]
    held = [(key, item.index, item.holder.fraction) for key, item in units if item.holder is not None]
    if ready and (not held or draw(st.booleans())):
        driver.take(*draw(st.sampled_from(ready)))
    elif held:
        key, index, said = draw(st.sampled_from(held))
        match draw(st.sampled_from(["complete", "complete", "say", "retry", "fail", "cancel"])):
            case "complete":
                driver.complete(key, index)
            case "say":
                driver.say(key, draw(st.floats(said, 1)), index)
            case "retry":
                driver.fail(key, index, error_class="transient")
            case "cancel":
                driver.do(Cancel("ann"))
            case _:
                driver.fail(key, index)


@settings(deadline=None)
@given(drivers("one"), drivers("two"), st.lists(st.integers(0, 80), max_size=4), st.booleans())
def test_a_fold_of_any_split_equals_the_fold_of_the_whole(
    one: Driver, two: Driver, cuts: list[int], again: bool
) -> None:
    log = everything(one, two)
    whole = folded(*log)
    places = [0, *sorted(min(cut, len(log)) for cut in cuts), len(log)]
    state: View[RunState] = View()
    for begin, end in pairwise(places):
        state = folded(*log[0 if again else begin : end], before=state)
    assert state == whole
    assert whole.asides == ()


@settings(deadline=None)
@given(drivers(), st.sampled_from([History(), KNOWN]), st.floats(0, 1e6))
def test_progress_stays_in_bounds_and_never_falls_within_a_pass(driver: Driver, known: History, later_s: float) -> None:
    before, passes = 0.0, 1
    for end in range(1, len(driver.commits) + 1):
        state = folded(*driver.commits[:end]).rows["r"]
        found = progress(state, known, state.started_at + timedelta(seconds=later_s))
        if state.passes == passes:
            assert found.fraction >= before
        assert 0 <= found.fraction <= 1
        assert (found.fraction == 1) == (state.status == "completed")
        assert found.phases_done == sum(phase.status in SUCCEEDED for phase in state.phases.values())
        if found.eta is not None:
            assert 0 <= found.eta.p10_s <= found.eta.p50_s <= found.eta.p90_s < math.inf
        before, passes = found.fraction, state.passes


class Score(NamedTuple):
    """One forecast against what happened: whether P10-P90 held it, and the relative errors of P50 and of the naive
    formula, elapsed / phases done x phases left."""

    held: bool
    error: float
    naive: float


def scores(random: Random, *, whole_run_spread: float) -> Iterator[Score]:
    """24 phases in a random graph, each lognormal around a usual time of its own: 30 runs to learn from, 25 to
    forecast after their 5th, 12th and 19th phase."""
    keys = [str(number) for number in range(24)]
    plan = Plan(
        "synthetic",
        phases=[
            Phase(key, "w", after=random.sample(keys[max(0, at - 4) : at], min(at, 1 + at % 2)))
            for at, key in enumerate(keys)
        ],
    )
    usual_log = {key: random.gauss(3, 0.7) for key in keys}

    def story(run: int) -> list[tuple[float, RunState]]:
        pace = random.gauss(0, whole_run_spread)
        return simulate(plan, lambda key, _: math.exp(usual_log[key] + pace + random.gauss(0, 0.4)), run=f"run-{run}")

    history = learn(story(run)[-1][1] for run in range(30))
    for run in range(25):
        told = story(100 + run)
        for done in (5, 12, 19):
            at_s, state = told[done]
            left_s = told[-1][0] - at_s
            found = eta(state, history, START + timedelta(seconds=at_s))
            assert found is not None
            naive_s = at_s / done * (len(keys) - done)
            yield Score(
                found.p10_s <= left_s <= found.p90_s, abs(found.p50_s - left_s) / left_s, abs(naive_s - left_s) / left_s
            )


# The naive formula knows nothing of a run's pace, so it loses nothing when whole runs differ: a laxer second bound.
@pytest.mark.parametrize(("whole_run_spread", "share"), [(0.0, 0.5), (0.25, 0.6)])
def test_the_interval_holds_what_it_says_and_the_error_is_a_share_of_the_naive_one(
    whole_run_spread: float, share: float
) -> None:
    random = Random(0)
    found = [score for _ in range(6) for score in scores(random, whole_run_spread=whole_run_spread)]
    assert 0.7 <= sum(score.held for score in found) / len(found) <= 0.9
    assert median(score.error for score in found) < share * median(score.naive for score in found)
