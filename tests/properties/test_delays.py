from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from bus.problem import Problem
from bus.rules.retry import RetryPolicy, delay_s

problems = st.builds(
    Problem,
    st.sampled_from(
        [
            "handler_error",
            "retry_asked",
            "timed_out",
            "silent",
            "crashed",
            "lost",
            "handed_back",
            "rejected",
            "bad_output",
        ]
    ),
    st.just("it broke"),
    st.sampled_from(["dependency", "configuration", "transient", "permanent", "unknown"]),
    retry_after_s=st.none() | st.floats(),
)
counts = st.integers(0, 8)
seconds = st.floats(0, 3600)
policies = st.builds(
    RetryPolicy,
    transient=counts,
    dependency=counts,
    unknown=counts,
    lost=counts,
    transient_s=seconds,
    dependency_s=seconds,
    unknown_s=seconds,
    lost_s=seconds,
    max_s=seconds,
)
bounded = settings(deadline=None, max_examples=150)


@bounded
@given(policies, problems, st.lists(problems, max_size=40), st.text(max_size=10))
def test_a_delay_is_none_or_between_nothing_and_an_hour(
    policy: RetryPolicy, problem: Problem, earlier: list[Problem], seed: str
) -> None:
    delay = delay_s(policy, problem, earlier, seed=seed)
    assert delay is None or 0.0 <= delay <= 3600.0
    if delay is not None and problem.retry_after_s is None:
        assert delay <= policy.max_s
    assert delay == delay_s(policy, problem, earlier, seed=seed)


@bounded
@given(policies, problems.filter(lambda problem: problem.code != "handed_back"))
def test_every_policy_gives_up_one_day(policy: RetryPolicy, problem: Problem) -> None:
    assert delay_s(policy, problem, [problem] * 8, seed="s") is None


@bounded
@given(policies, problems, st.lists(problems, max_size=10), problems)
def test_one_failure_more_never_turns_giving_up_into_trying_again(
    policy: RetryPolicy, problem: Problem, earlier: list[Problem], another: Problem
) -> None:
    if delay_s(policy, problem, earlier, seed="s") is None:
        assert delay_s(policy, problem, [*earlier, another], seed="s") is None
