from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from bus.errors import BusError, PlanError
from bus.problem import ErrorClass, Problem
from bus.rules.plan import Phase
from bus.rules.retry import NAMED, Retry, RetryLater, RetryPolicy, delay_s

POLICY = RetryPolicy(
    transient=5, dependency=3, unknown=2, lost=4, transient_s=1.0, dependency_s=2.0, unknown_s=4.0, lost_s=8.0
)


def problem(kind: ErrorClass, **changes: float) -> Problem:
    return Problem("handler_error", "it broke", kind, **changes)  # type: ignore[arg-type]


LOST = Problem("lost", "the process is gone", "unknown")
LATE = Problem("timed_out", "no result within 1 s", "transient")
HANDED_BACK = Problem("handed_back", "the process was stopped", "transient")


def history(failed: Problem, policy: RetryPolicy = POLICY) -> list[float]:
    """The delays until the policy gives up, if it fails the same way every time."""
    earlier: list[Problem] = []
    delays: list[float] = []
    while (delay := delay_s(policy, failed, earlier, seed="r/p/None")) is not None:
        delays.append(delay)
        earlier.append(failed)
        assert len(delays) < 100, "a policy gives up one day"
    return delays


@pytest.mark.parametrize(
    ("failed", "retries"),
    [
        (problem("transient"), 5),
        (problem("dependency"), 3),
        (problem("unknown"), 2),
        (problem("configuration"), 0),
        (problem("permanent"), 0),
        (LOST, 4),
        (LATE, 4),
    ],
)
def test_each_class_is_tried_again_as_often_as_the_policy_says(failed: Problem, retries: int) -> None:
    assert len(history(failed)) == retries


@pytest.mark.parametrize(("kind", "first_s"), [("transient", 1.0), ("dependency", 2.0), ("unknown", 4.0)])
def test_the_delay_doubles_with_a_jitter_of_half(kind: ErrorClass, first_s: float) -> None:
    for tries, delay in enumerate(history(problem(kind))):
        assert 0.5 * first_s * 2**tries <= delay <= first_s * 2**tries


def test_a_delay_stays_below_the_longest_one() -> None:
    policy = RetryPolicy(transient=90, transient_s=1.0, max_s=10.0)
    delays = history(problem("transient"), policy)
    assert len(delays) == 90
    assert max(delays) <= 10.0
    assert all(delay >= 5.0 for delay in delays[4:])


@pytest.mark.parametrize("failed", [LOST, LATE])
def test_the_first_lost_attempt_is_tried_again_at_once_and_later_ones_after_a_delay(failed: Problem) -> None:
    first, *later = history(failed)
    assert first == 0.0
    assert all(delay > 0 for delay in later)


def test_lost_and_late_attempts_are_counted_together() -> None:
    assert delay_s(POLICY, LATE, [LOST, LATE, LOST], seed="s") is not None
    assert delay_s(POLICY, LATE, [LOST, LATE, LOST, LOST], seed="s") is None


def test_failures_of_another_class_do_not_count() -> None:
    others = [problem("dependency")] * 50 + [LOST] * 50
    assert delay_s(POLICY, problem("transient"), others, seed="s") == delay_s(
        POLICY, problem("transient"), [], seed="s"
    )


def test_what_a_stopping_process_hands_back_is_tried_again_at_once_for_ever() -> None:
    assert delay_s(RetryPolicy(transient=0, lost=0), HANDED_BACK, [HANDED_BACK] * 1000, seed="s") == 0.0


def test_attempts_handed_back_do_not_use_up_the_retries_of_a_failure() -> None:
    """A deployment stops many processes; the work is not at fault."""
    assert delay_s(RetryPolicy(transient=1), problem("transient"), [HANDED_BACK] * 5, seed="s") is not None


def test_a_delay_that_was_asked_for_is_kept() -> None:
    assert delay_s(POLICY, problem("transient", retry_after_s=2.5), [], seed="s") == 2.5
    assert delay_s(POLICY, problem("dependency", retry_after_s=0.0), [problem("dependency")], seed="s") == 0.0


def test_a_delay_that_was_asked_for_is_between_nothing_and_an_hour() -> None:
    assert delay_s(POLICY, problem("transient", retry_after_s=-1.0), [], seed="s") == 0.0
    assert delay_s(POLICY, problem("transient", retry_after_s=1e9), [], seed="s") == 3600.0
    assert delay_s(POLICY, problem("transient", retry_after_s=float("inf")), [], seed="s") == 3600.0


def test_a_delay_that_is_no_number_is_not_waited_for() -> None:
    delay = delay_s(POLICY, problem("transient", retry_after_s=float("nan")), [], seed="s")
    assert delay is not None
    assert 0.0 <= delay <= 3600.0


def test_asking_for_a_delay_does_not_add_retries() -> None:
    asked = problem("transient", retry_after_s=1.0)
    assert history(asked) == [1.0] * 5
    assert delay_s(POLICY, problem("permanent", retry_after_s=1.0), [], seed="s") is None


def test_the_same_history_gives_the_same_delay_and_another_run_another_one() -> None:
    delays = [delay_s(POLICY, problem("transient"), [], seed=f"run-{number}") for number in range(50)]
    assert delays == [delay_s(POLICY, problem("transient"), [], seed=f"run-{number}") for number in range(50)]
    assert len(set(delays)) > 40


def test_a_policy_without_retries_gives_up_at_once() -> None:
    never = RetryPolicy(transient=0, dependency=0, unknown=0, lost=0)
    assert not any(history(failed, never) for failed in (problem("transient"), problem("unknown"), LOST))


def test_retry_with_a_delay_can_be_raised() -> None:
    with pytest.raises(RetryLater, match="the shop is closed") as caught:
        raise Retry(2.5, "the shop is closed")
    assert caught.value.delay_s == 2.5
    assert isinstance(caught.value, BusError)
    assert str(Retry(0)) == "again in 0 s"


def test_retry_with_counts_is_a_policy() -> None:
    assert Retry(transient=5, max_s=10.0) == RetryPolicy(transient=5, max_s=10.0)


@pytest.mark.parametrize(
    ("kind", "minutes"),
    [("transient", [1, 2, 4]), ("dependency", [5, 10, 20]), ("unknown", [1]), ("configuration", []), ("permanent", [])],
)
def test_the_source_s_policy_waits_in_minutes(kind: ErrorClass, minutes: list[int]) -> None:
    delays = history(problem(kind), NAMED["source"])
    assert len(delays) == len(minutes)
    assert all(30 * each <= delay <= 60 * each for delay, each in zip(delays, minutes, strict=True))


def test_a_policy_can_be_named() -> None:
    assert Retry("source") == NAMED["source"]
    assert Phase("a", "do", retry="source") == Phase("a", "do", retry=Retry("source"))
    assert Phase("a", "do").policy == NAMED["default"] == RetryPolicy()


def test_a_plan_keeps_what_the_name_meant() -> None:
    stored = msgspec.json.encode(Phase("a", "do", retry="source"))
    assert b"source" not in stored
    assert msgspec.json.decode(stored, type=Phase).policy == NAMED["source"]


def test_a_name_nobody_gave_is_refused_where_it_is_written() -> None:
    with pytest.raises(PlanError, match="'sauce': use default, source"):
        Retry("sauce")
    with pytest.raises(PlanError, match=r"phase 'a'.*'sauce'"):
        Phase("a", "do", retry="sauce")


@pytest.mark.parametrize("delay", [float("nan"), float("inf"), -1.0, "2"])
def test_a_delay_nobody_can_wait_is_refused_where_it_is_written(delay: float) -> None:
    with pytest.raises((ValueError, TypeError)):
        Retry(delay)


@pytest.mark.parametrize("field", [field for field in RetryPolicy.__struct_fields__ if field != "max_s"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_a_policy_refuses_what_can_not_be_counted_or_waited(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        RetryPolicy(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", [{"transinet": 5}, {"transient": 2.5}, {"transient": "5"}, {"max_s": -1.0}])
def test_retry_refuses_a_policy_with_a_mistake(policy: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"transinet|transient|max_s"):
        Retry(**policy)  # type: ignore[call-overload]


def test_no_policy_waits_longer_than_a_clock_can_count() -> None:
    with pytest.raises(ValueError, match="max_s"):
        RetryPolicy(max_s=1e300)


def test_delays_never_shrink_by_more_than_the_jitter() -> None:
    delays = history(problem("transient"), RetryPolicy(transient=30, transient_s=0.5, max_s=300.0))
    assert all(later >= earlier / 2 for earlier, later in pairwise(delays))
