"""Whatever is asked for in whatever order: never more than the limit, in any stretch of time."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import example, given
from hypothesis import strategies as st

from bus.guards.quota import LEND_S, Amounts, Denied, Granted, Quota, Standing, Want, draw, hold

START = 20_000 * 86_400.0 - 30
steps = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "take", "lend", "lend", "hold"]),
        # Mostly at the same moment, or just before and after the end of a loan.
        st.sampled_from([0.0, 0.0, 0.0, 0.001, LEND_S - 0.001, LEND_S, 0.5, 3.0]),
        st.sampled_from([0, 1, 1, 8, 25, 60]),
        st.sampled_from([0, 1, 30, 400, 2_001]),
        st.floats(0, 20),
    ),
    max_size=60,
)
quotas = st.sampled_from(
    [
        Quota(calls_per_s=8),
        Quota(calls_per_s=40, burst=0.5),
        Quota(calls_per_min=30, tokens_per_min=2_000),
        Quota(calls_per_s=100, tokens_per_min=100_000, cost_per_day=40),
        Quota(cost_per_hour=10, calls_per_hour=20),
    ]
)


def charged(quota: Quota, moves: list[tuple[str, float, int, int, float]]) -> list[tuple[float, Amounts]]:
    """When how much may be used first: each grant at its moment, each loan at either end of its time."""
    standing: Standing | None = None
    now, found = START, []
    for move, pause, calls, tokens, patience in moves:
        now += pause
        if move == "hold":
            standing = hold(standing, quota, now + patience, now)
            continue
        amounts: Amounts = {"calls": calls, "tokens": tokens, "cost": calls / 2}
        if any(amounts[meter.unit] > meter.most for meter in quota.meters):
            continue
        wants = [Want(amounts, patience)] if move == "take" else []
        drawn = draw(standing, quota, wants, now=now, ahead=amounts if move == "lend" else None)
        standing = drawn.standing
        for answer in drawn.answers:
            if isinstance(answer, Granted):
                assert answer.wait_s <= patience
                found.append((now + answer.wait_s, amounts))
        if drawn.loan:
            # Whoever was lent something may use it as late as the loan lasts, short of its end.
            found.append((now + (LEND_S - 1e-6 if tokens % 4 else 0), drawn.loan))
    return sorted(found, key=lambda each: each[0])


# A loan used at its last moment, when what was lent has refilled; and loan upon loan.
LATE = [("lend", 0.0, 25, 1, 0.0), ("take", LEND_S - 1e-6, 60, 0, 0.0), *[("take", 0.0, 8, 0, 0.0)] * 5]
PILED = [*[("lend", 0.05, 25, 1, 0.0)] * 4, ("take", LEND_S - 1e-6, 8, 0, 0.0), *[("take", 0.0, 8, 0, 0.0)] * 5]


@given(quotas, steps)
@example(Quota(calls_per_s=100), LATE)
@example(Quota(calls_per_s=100), PILED)
def test_in_no_stretch_of_time_more_is_used_than_the_burst_and_what_the_rate_gives(
    quota: Quota, moves: list[tuple[str, float, int, int, float]]
) -> None:
    used = charged(quota, moves)
    for meter in quota.meters:
        if meter.is_budget:
            continue
        totals = [0.0, *accumulate(amounts.get(meter.unit, 0) for _, amounts in used)]
        for begin in range(len(used)):
            for end in range(begin, len(used)):
                stretch_s = used[end][0] - used[begin][0]
                most = meter.amount * meter.burst + meter.per_s * stretch_s
                assert totals[end + 1] - totals[begin] <= most + 1e-3


@given(quotas, steps)
def test_no_window_of_a_budget_spends_more_than_it_holds(
    quota: Quota, moves: list[tuple[str, float, int, int, float]]
) -> None:
    used = charged(quota, [(move, pause * 100, *rest) for move, pause, *rest in moves if move == "take"])  # type: ignore[misc]
    for meter in quota.meters:
        if not meter.is_budget:
            continue
        spent: dict[float, float] = {}
        for at, amounts in used:
            spent[meter.window(at)] = spent.get(meter.window(at), 0.0) + amounts.get(meter.unit, 0)
        assert max(spent.values(), default=0.0) <= meter.amount + 1e-6


@given(quotas, steps)
def test_nothing_is_used_during_a_hold_but_what_was_granted_before_it(
    quota: Quota, moves: list[tuple[str, float, int, int, float]]
) -> None:
    standing: Standing | None = None
    now, held_until = START, 0.0
    for move, pause, calls, _, patience in moves:
        now += pause
        if move == "hold":
            held_until = max(held_until, now + patience)
            standing = hold(standing, quota, now + patience, now)
            continue
        drawn = draw(standing, quota, [Want({"calls": min(calls, 4) or 1}, 100)], now=now, ahead={"calls": 5})
        standing = drawn.standing
        assert not (drawn.loan and now < held_until)
        for answer in drawn.answers:
            assert isinstance(answer, Denied) or now + answer.wait_s >= held_until - 1e-3
