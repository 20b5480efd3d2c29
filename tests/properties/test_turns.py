"""Whose turn it is: whatever waits is served, the higher sooner; a sender's own work says how far back he stands."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.rules.priority import LEVELS, MAIN, QUEUES, ROWS, SHARE, Queue, Turns, checked, row_of

some = st.sets(st.sampled_from(QUEUES), min_size=1)


def _behind(queue: Queue) -> int:
    """How many steps may be in front of a queue: levels above it, and rows before it."""
    return LEVELS.index(queue.level) + queue.row


@given(st.lists(some, min_size=1, max_size=200))
def test_only_what_waits_has_a_turn(waiting: list[set[Queue]]) -> None:
    turns = Turns()
    for each in waiting:
        assert turns.next(each) in each


@given(st.sampled_from([queue for queue in QUEUES if _behind(queue) <= 3]), st.lists(some, min_size=1, max_size=20))
def test_what_waits_has_its_turn_whatever_else_comes_and_goes(queue: Queue, others: list[set[Queue]]) -> None:
    turns = Turns()
    # Each step in front leaves one of eight turns, and those behind take one of eight of what is left.
    bound = 4 * SHARE ** _behind(queue)
    for number in range(bound):
        if turns.next(others[number % len(others)] | {queue}) == queue:
            return
    pytest.fail(f"{queue} had no turn of {bound}")


@given(st.sets(st.sampled_from(QUEUES), min_size=2))
def test_the_first_has_nearly_all_turns_while_it_waits(waiting: set[Queue]) -> None:
    turns = Turns()
    first = next(queue for queue in QUEUES if queue in waiting)
    taken = Counter(turns.next(waiting) for _ in range(SHARE * SHARE * 4))
    assert taken.most_common(1)[0][0] == first
    # One of eight to lower levels, and one of eight of the rest to rows behind.
    assert taken[first] >= taken.total() * (1 - 1 / SHARE) ** 2 - 1


def test_nobody_behind_is_owed_turns_for_the_time_when_nothing_waited_there() -> None:
    turns = Turns()
    assert {turns.next([MAIN]) for _ in range(1_000)} == {MAIN}
    low = Queue("low")
    assert [turns.next([MAIN, low]) for _ in range(SHARE)].count(low) == 1


@given(st.integers(0, 10**7), st.integers(0, 10**7))
def test_who_has_more_waiting_stands_no_further_in_front(one: int, other: int) -> None:
    assert (row_of(min(one, other)) <= row_of(max(one, other))) and row_of(one) in range(len(ROWS) + 1)


@given(st.lists(st.integers(0, 50_000), min_size=2, max_size=6))
def test_before_a_piece_of_work_stand_at_most_a_hundred_or_ten_times_as_much_of_each_other_sender(
    floods: list[int],
) -> None:
    """Counted as if each row were emptied before the next: all but the last row is bounded by the sender's own work."""
    mine = floods[0] % ROWS[-1]
    row = row_of(mine)
    for other in floods[1:]:
        before = sum(1 for waiting in range(other) if row_of(waiting) <= row)
        assert before <= max(ROWS[0], 10 * mine)


@given(st.text().filter(lambda text: text not in LEVELS) | st.integers() | st.none())
def test_any_other_priority_is_refused_with_those_there_are(priority: object) -> None:
    with pytest.raises(ValueError, match="high, normal, low"):
        checked(priority)
