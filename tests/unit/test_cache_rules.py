"""What the cache means for a run: an output that was computed before ends an attempt like any other result."""

from __future__ import annotations

import msgspec
import pytest

from bus import Agent, Cache, PlanError, SettingsError
from bus.cache.cache import is_over
from bus.history.diff import diff
from bus.replay.plancheck import check
from bus.rules.commands import Reuse
from bus.rules.events import PhaseCompleted, PhaseReady, PhaseStarted, RunCompleted, Source
from bus.rules.plan import Approval, Phase, Plan
from bus.rules.references import ref
from bus.rules.verify import violations
from projections.history import learn
from tests.driver import BEGAN_AT, Driver
from tests.unit.test_timeline import drawn

SOURCE = Source("run-0", "a", 2, BEGAN_AT, 3)


def reuse(run: Driver, phase: str, output: object = None, item: int | None = None) -> list[type]:
    taking = msgspec.structs.replace(
        run.taking(phase, item), reuse=Reuse(msgspec.Raw(msgspec.json.encode(output)), SOURCE)
    )
    return [type(event) for event in run.do(taking)]


def test_a_hit_is_one_commit_from_the_taking_to_what_follows() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", input=ref("a")))
    assert reuse(run, "a", {"n": 1}) == [PhaseStarted, PhaseCompleted, PhaseReady]
    assert run.given("b") == {"n": 1}
    assert reuse(run, "b") == [PhaseStarted, PhaseCompleted, RunCompleted]
    assert run.item("a").attempts[-1].cached == SOURCE
    assert not list(violations(run.commits, run.now))


def test_a_hit_is_fenced_like_any_other_attempt() -> None:
    run = Driver(Phase("a", "do"))
    taking = run.taking("a")
    run.take("a")
    refused = msgspec.structs.replace(taking, reuse=Reuse(msgspec.Raw(b"1"), SOURCE))
    assert "can't be taken: attempt 1 is in_progress" in run.refusal(refused)


def test_items_are_taken_over_one_by_one() -> None:
    run = Driver(Phase("a", "do", each=ref("input")), input=[1, 2, 3])
    reuse(run, "a", "x", 1)
    run.complete("a", "y", 0)
    run.complete("a", "z", 2)
    assert run.output("a") == ["y", "x", "z"]
    assert "1 of 3 cached from run-0, 0 ms ago" in [line.strip() for line in drawn(run)]


def test_why_an_attempt_runs_is_kept_and_shown() -> None:
    run = Driver(Phase("a", "do"))
    run.do(msgspec.structs.replace(run.taking("a"), because="input.config changed"))
    assert run.item("a").attempts[-1].because == "input.config changed"
    assert "ran because input.config changed" in [line.strip() for line in drawn(run)]


def test_a_changed_plan_is_checked_with_what_was_cached() -> None:
    phases = [Phase("a", "do"), Phase("b", "do", after=["a"])]
    run = Driver(*phases)
    reuse(run, "a", {"n": 1})
    run.complete("b")
    assert check(run.commits, Plan("plan", phases=phases, timeout_s=3600)).outcome == "unaffected"


def test_what_was_taken_over_is_no_difference_between_two_runs() -> None:
    computed, cached = Driver(Phase("a", "do")), Driver(Phase("a", "do"))
    computed.complete("a", {"n": 1})
    reuse(cached, "a", {"n": 1})
    assert diff(computed.commits, cached.commits).is_same


def test_how_long_a_hit_took_teaches_nothing_about_the_work() -> None:
    computed, cached = Driver(Phase("a", "do")), Driver(Phase("a", "do"))
    computed.complete("a")
    reuse(cached, "a")
    assert learn([computed.state]).of(computed.state.plan, "a") is not None
    assert learn([cached.state]).of(cached.state.plan, "a") is None


def test_an_answer_is_too_old_when_its_time_has_passed() -> None:
    run = Driver(Phase("a", "do"))
    run.wait(60)
    assert not is_over(BEGAN_AT, None, run.now)
    assert not is_over(BEGAN_AT, 61, run.now)
    assert is_over(BEGAN_AT, 60, run.now)


def test_only_work_can_be_left_out_of_the_cache() -> None:
    with pytest.raises(PlanError, match="phase 'a': cache goes with a capability"):
        Plan("p", phases=[Phase("a", approval=Approval(), cache=False)])


@pytest.mark.parametrize("wrong", [{"ttl_s": 0}, {"ttl_s": -1}, {"ttl_s": float("nan")}, {"version": ""}])
def test_a_cache_that_can_t_work_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError, match="cache: "):
        Cache(**wrong)  # type: ignore[arg-type]


class Greeter:
    """A handler that is an object."""

    def __call__(self, query: str) -> str:
        return query


def test_a_handler_with_a_state_of_its_own_needs_a_version_to_be_cached() -> None:
    agent = Agent("greeter")
    with pytest.raises(SettingsError, match=r"give it cache=Cache\(version='1'\)"):
        agent.capability("greet", cache=True)(Greeter())
    agent.capability("greet", cache=Cache(version="1"))(Greeter())
    assert agent.capabilities["greet"].cache == Cache(version="1")
