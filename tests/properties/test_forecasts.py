"""Forecasts are scored on seeded synthetic runs: intervals hold what they promise, limits tell a hang from bad luck."""

from __future__ import annotations

from datetime import timedelta
from random import Random
from statistics import median

import pytest

from benchmarks.forecasts import START, Work, World, limits, played, scores
from projections.scoring import rewound, score
from projections.scoring import scores as scored


@pytest.mark.parametrize("pace", [0.0, 0.15, 0.3])
def test_the_interval_holds_what_happened_whether_or_not_whole_runs_differ_in_pace(pace: float) -> None:
    found = list(scores(Random(3), World(pace=pace), plans=5, past=30, runs=20))
    assert 0.72 <= sum(each.held for each in found) / len(found) <= 0.88
    assert median(each.error for each in found) < median(each.naive for each in found) / 2


@pytest.mark.parametrize("past", [8, 24])
def test_a_learned_limit_is_rarely_passed_by_sound_work_and_soon_by_a_hang(past: int) -> None:
    found = limits(Random(5), World(), plans=6, past=past, attempts=200)
    assert found.false <= 0.005
    assert found.delays[-1] <= 4


def test_past_runs_are_scored_on_what_was_known_when_they_began() -> None:
    random = Random(7)
    work = Work.made(random, World(), "synthetic")
    runs = [played(work, random, f"run-{number}", at_s=number * 100_000.0)[-1][1] for number in range(30)]
    [found] = scored(runs)
    assert (found.plan, found.runs, found.forecasts, found.calculating) == ("synthetic", 20, 60, 0)
    assert 0.6 <= found.held / found.forecasts <= 1
    assert found.error is not None and found.naive is not None
    assert found.error < found.naive
    # The first knows of nobody before it: only what it has seen of itself.
    first = score(runs[:1], "synthetic")
    assert first.forecasts + first.calculating == 3
    assert score([], "synthetic").error is None


def test_a_run_rewound_is_forecast_as_it_was_then() -> None:
    random = Random(11)
    story = played(Work.made(random, World(fails=0.2), "synthetic"), random, "run")
    last = story[-1][1]
    for at_s, state in story[1:-1]:
        then = rewound(last, START + timedelta(seconds=at_s))
        for key, phase in state.phases.items():
            again = then.phases[key]
            assert (again.status, again.opened_at, again.ended_at) == (phase.status, phase.opened_at, phase.ended_at)
            assert [(item.status, len(item.attempts)) for item in again.items] == [
                (item.status, len(item.attempts)) for item in phase.items
            ]
