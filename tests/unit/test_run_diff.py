"""Two runs side by side: what differs is named with its place, and who did it and when is no difference."""

from __future__ import annotations

import msgspec
import pytest

from bus.history.diff import Difference, diff, first_difference
from bus.rules.plan import Phase
from bus.rules.references import ref
from tests.driver import TRANSIENT, Driver


def a_run(files: object = (1, 2), *, instance: str = "one", fails: bool = False) -> Driver:
    run = Driver(Phase("a", "do"), Phase("b", "do", each=ref("a.files")), Phase("c", "do", after=["a"]))
    if fails:
        run.fail("a", TRANSIENT)
        run.wait(10)
    run.complete("a", {"files": files}, instance=instance)
    run.wait(3 if instance == "one" else 7)
    run.complete("b", item=0, instance=instance)
    return run


def test_who_and_when_is_no_difference() -> None:
    found = diff(a_run().commits, a_run(instance="two").commits)
    assert found.is_same
    assert found.parting is None


def test_an_output_is_named_with_the_first_path_that_differs() -> None:
    found = diff(a_run().commits, a_run([1, 3]).commits)
    assert not found.is_same
    assert [each.output for each in found.phases if not each.is_same] == [Difference("files.1", 2, 3)]
    assert found.parting is not None and found.parting.one is not None
    assert (found.parting.one.type, found.parting.one.phase) == ("phase.completed.v1", "a")
    assert found.parting.difference == Difference("output.files.1", 2, 3)


def test_another_attempt_is_a_difference_in_the_order_of_events() -> None:
    found = diff(a_run().commits, a_run(fails=True).commits)
    assert [each.phase for each in found.phases if not each.is_same] == ["a"]
    assert [side.attempts for side in found.phases[0].sides if side] == [1, 2]
    assert found.parting is not None and found.parting.one is not None and found.parting.other is not None
    assert (found.parting.one.type, found.parting.other.type) == ("phase.completed.v1", "phase.attempt_failed.v1")


def test_a_run_that_is_not_as_far_has_nothing_more() -> None:
    behind, ahead = a_run(), a_run()
    ahead.complete("b", item=1)
    found = diff(behind.commits, ahead.commits)
    assert found.parting is not None
    assert found.parting.one is None
    assert found.parting.other is not None and found.parting.other.position == len(behind.commits) + 1


def test_a_phase_that_one_does_not_have_is_a_difference() -> None:
    one, other = Driver(Phase("a", "do")), Driver(Phase("b", "do"))
    found = diff(one.commits, other.commits)
    assert [(each.phase, each.one is None, each.other is None) for each in found.phases] == [
        ("a", False, True),
        ("b", True, False),
    ]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}, None),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, Difference("a.1.b", 2, 3)),
        ([1], [1, 2], Difference("1", msgspec.UNSET, 2)),
        ({"a": 1}, {}, Difference("a", 1, msgspec.UNSET)),
        (True, 1, Difference("", True, 1)),
        (1, 1.0, None),
        ([], {}, Difference("", [], {})),
    ],
)
def test_the_first_difference_of_two_values(one: object, other: object, expected: Difference | None) -> None:
    assert first_difference(one, other) == expected
