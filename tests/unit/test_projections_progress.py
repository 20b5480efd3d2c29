"""Progress, its forecast, and the history both rest on."""

from __future__ import annotations

from datetime import timedelta

import pytest

from bus.rules.commands import Redrive
from bus.rules.plan import Approval, Phase, Plan
from bus.rules.references import ref
from projections.durations import Durations
from projections.eta import eta
from projections.history import History, Kind, learn
from projections.progress import fraction, progress
from tests.unit.test_projections_runs import CHAIN, FANNED, GATED, START, Driver, simulate

NONE = History()


def past(plan: Plan, seconds: dict[str, float], *, runs: int = 10, value: object = None, workers: int = 100) -> History:
    return learn(
        simulate(plan, lambda key, _: seconds[key], run=f"past-{run}", value=value, workers=workers)[-1][1]
        for run in range(runs)
    )


def test_durations_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="no past durations"):
        Durations.of([])


def test_clocks_that_disagree_do_not_break_the_logarithm() -> None:
    assert Durations.of([-3.0, 0.0]).mean_s == pytest.approx(0.001)


def test_a_limit_is_wider_the_fewer_there_are() -> None:
    few, many = Durations.of([5.0, 10.0, 20.0] * 3), Durations.of([5.0, 10.0, 20.0] * 30)
    assert few.upper_s(0.99) > many.upper_s(0.99) > 20


def test_history_is_learned_from_runs_that_completed_at_once() -> None:
    completed = simulate(CHAIN, lambda key, _: {"a": 2.0, "b": 5.0}[key])[-1][1]
    failed = Driver(CHAIN).take("a").fail("a", at_s=50)
    redriven = Driver(CHAIN).take("a").fail("a", at_s=50)
    redriven.do(Redrive("ann"), at_s=60).take("a").complete("a").take("b").complete("b")
    history = learn([completed, failed.state, redriven.state, Driver(CHAIN).state])
    assert {kind: one.item.mean_s for kind, one in history.phases.items()} == {
        Kind("chain", "a", "work"): pytest.approx(2.0),
        Kind("chain", "b", "work"): pytest.approx(5.0),
    }


def test_history_keeps_capabilities_apart() -> None:
    history = past(CHAIN, {"a": 1.0, "b": 1.0})
    moved = Plan("chain", phases=[Phase("a", "other"), Phase("b", "work", after=["a"])])
    assert history.of(moved, "a") is None
    assert history.of(moved, "b") is not None


def test_retries_are_part_of_what_a_unit_takes_but_not_of_an_attempt() -> None:
    driver = Driver(CHAIN).take("a").fail("a", at_s=10, error_class="transient")
    driver.take("a", at_s=20).complete("a", at_s=23).take("b").complete("b", at_s=24)
    learned = learn([driver.state]).phases[Kind("chain", "a", "work")]
    assert (learned.item.mean_s, learned.attempt.mean_s) == (pytest.approx(23.0), pytest.approx(3.0))


def test_a_phase_over_a_list_remembers_how_many_went_at_a_time() -> None:
    wide = Plan("wide", phases=[Phase("each", "work", each=ref("input.list"))])
    history = past(wide, {"each": 6.0}, value={"list": list(range(12))}, workers=3)
    learned = history.phases[Kind("wide", "each", "work")]
    assert (learned.items, learned.lanes, learned.work_s) == (12, pytest.approx(3.0), pytest.approx(72.0))


def test_without_history_every_phase_weighs_the_same() -> None:
    driver = Driver(CHAIN)
    assert fraction(driver.state, NONE) == 0
    assert fraction(driver.take("a").say("a", 0.5).state, NONE) == pytest.approx(0.25, abs=0.01)
    assert fraction(driver.complete("a").state, NONE) == 0.5


def test_with_history_a_phase_weighs_what_it_usually_takes() -> None:
    history = past(CHAIN, {"a": 1.0, "b": 9.0})
    assert fraction(Driver(CHAIN).take("a").complete("a").state, history) == pytest.approx(0.1)


def test_only_a_completed_run_is_all_done() -> None:
    driver = Driver(GATED).take("a").complete("a")
    history = past(GATED_WORK, {"a": 1.0})
    for known in (NONE, history):
        assert fraction(driver.state, known) < 1
    assert fraction(driver.approve("ok").state, history) == 1


GATED_WORK = Plan("gated", phases=[Phase("a", "work")])


def test_a_retry_does_not_move_the_bar_back() -> None:
    driver = Driver(CHAIN).take("a").say("a", 0.8)
    before = fraction(driver.state, NONE)
    assert fraction(driver.fail("a", error_class="transient").state, NONE) == before
    assert fraction(driver.take("a", at_s=9).say("a", 0.1).state, NONE) == before


def test_what_was_done_stays_done_when_a_run_fails() -> None:
    driver = Driver(CHAIN).take("a").complete("a").take("b").say("b", 0.5)
    before = fraction(driver.state, NONE)
    failed = progress(driver.fail("b").state, NONE, driver.now)
    assert (failed.fraction, failed.eta) == (before, None)


def test_progress_counts_phases_items_and_gates() -> None:
    plan = Plan(
        "p", phases=[Phase("each", "work", each=ref("input.list")), Phase("ok", approval=Approval(), after=["each"])]
    )
    driver = Driver(plan, value={"list": [1, 2, 3]}).take("each", 0).complete("each", 0).take("each", 1)
    found = progress(driver.state, NONE, START + timedelta(seconds=7))
    assert (found.phases_done, found.phases_total, found.items_done, found.items_total) == (0, 2, 1, 3)
    assert (found.elapsed_s, found.gates_left) == (7.0, 1)
    assert found.fraction == pytest.approx(1 / 6)


def test_without_anything_to_go_by_there_is_no_forecast() -> None:
    assert eta(Driver(CHAIN).state, NONE, START) is None


def test_a_run_without_history_is_forecast_from_its_own_finished_items() -> None:
    driver = Driver(FANNED, value={"list": list(range(10))})
    for index in range(4):
        driver.take("each", index).complete("each", index, at_s=driver.now_s + 10)
        assert (eta(driver.state, NONE, driver.now) is None) == (index < 2)
    found = eta(driver.state, NONE, driver.now)
    assert found is not None
    assert 20 < found.p10_s < found.p50_s < found.p90_s < 60


def test_a_forecast_follows_the_longest_way_through_the_plan() -> None:
    plan = Plan("fork", phases=[Phase("a", "w"), Phase("b", "w", after=["a"]), Phase("c", "w", after=["a"])])
    history = past(plan, {"a": 10.0, "b": 100.0, "c": 20.0}, runs=50)
    found = eta(Driver(plan).state, history, START)
    assert found is not None
    assert found.p50_s == pytest.approx(110, rel=0.15)


def test_lanes_bound_how_fast_a_list_is_done() -> None:
    history = past(FANNED, {"each": 10.0}, runs=50, value={"list": list(range(100))}, workers=2)
    found = eta(Driver(FANNED, value={"list": list(range(100))}).state, history, START)
    assert found is not None
    assert found.p50_s == pytest.approx(500, rel=0.2)


def test_a_slow_run_is_forecast_slower_but_not_as_slow_as_it_was() -> None:
    plan = Plan("long", phases=[Phase(key, "w", after=[key - 1] if key else []) for key in range(10)])
    history = past(plan, {str(key): 10.0 for key in range(10)}, runs=30)
    even, slow = Driver(plan), Driver(plan)
    for key in range(5):
        even.take(str(key)).complete(str(key), at_s=(key + 1) * 10)
        slow.take(str(key)).complete(str(key), at_s=(key + 1) * 20)
    usual, slower = eta(even.state, history, even.now), eta(slow.state, history, slow.now)
    assert usual is not None and slower is not None
    assert usual.p50_s == pytest.approx(50, rel=0.1)
    assert 70 < slower.p50_s < 100


def test_a_handlers_own_word_counts_more_the_further_it_is() -> None:
    history = past(CHAIN, {"a": 100.0, "b": 1.0}, runs=50)
    driver = Driver(CHAIN).take("a").say("a", 0.9, at_s=9)
    found = eta(driver.state, history, driver.now)
    assert found is not None
    assert found.p50_s < 20


def test_a_word_of_almost_nothing_does_not_put_the_end_infinitely_far_away() -> None:
    history = past(CHAIN, {"a": 100.0, "b": 1.0}, runs=50)
    driver = Driver(CHAIN).take("a").say("a", 5e-324, at_s=9)
    found = eta(driver.state, history, driver.now)
    assert found is not None
    assert found.p90_s < 200


def test_work_far_beyond_experience_is_not_said_to_be_about_to_end() -> None:
    history = past(CHAIN, {"a": 10.0, "b": 10.0}, runs=50)
    found = eta(Driver(CHAIN).take("a").state, history, START + timedelta(hours=1))
    assert found is not None
    assert 60 < found.p10_s < found.p50_s < 3600 < found.p90_s


def test_waiting_for_people_is_not_forecast() -> None:
    driver = Driver(GATED).take("a").complete("a")
    found = eta(driver.state, past(GATED_WORK, {"a": 10.0}), START + timedelta(days=1))
    assert found is not None
    assert (found.p10_s, found.p90_s) == (0.0, 0.0)


def test_the_same_state_and_time_give_the_same_forecast() -> None:
    history = past(CHAIN, {"a": 10.0, "b": 20.0})
    state = Driver(CHAIN).state
    assert eta(state, history, START) == eta(state, history, START)
