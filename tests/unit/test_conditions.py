"""Conditions of phases: what they say, and what happens when they can't be told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import PlanError
from bus.rules.conditions import holds, parse
from bus.rules.plan import Phase, Plan
from bus.rules.references import ABSENT, Unresolved

DATA = {"scan": {"count": 3, "files": ["a"], "none": [], "kind": "x and y", "ok": True}, "skipped": ABSENT}


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("scan.count", True),
        ("scan.none", False),
        ("not scan.none", True),
        ("scan.count > 2", True),
        ("scan.count>=4", False),
        ("not scan.count == 3", False),
        ('scan.kind == "x and y"', True),
        ('scan.kind == "x and y" and scan.count < 3', False),
        ('scan.kind in ["a", "x and y"]', True),
        ("scan.ok == true and scan.files.0 != null", True),
        ("skipped", False),
        ("skipped.anything.at.all == null", True),
    ],
)
def test_a_condition_holds_or_does_not(condition: str, expected: bool) -> None:
    assert holds(condition, DATA.__getitem__) is expected


@pytest.mark.parametrize("condition", ["scan.missing", "scan.kind > 3", "scan.none < {}"])
def test_what_can_not_be_told_is_said(condition: str) -> None:
    with pytest.raises(Unresolved, match="scan"):
        holds(condition, DATA.__getitem__)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ("", "no condition"),
        ("scan.count >", "no condition"),
        ("scan.kind == x", "double quotes"),
        ("scan.kind in 3", "is a list"),
        ("other.count", "leads to no phase"),
        ("item.count", "needs an each"),
    ],
)
def test_a_condition_that_can_not_be_read_is_refused_when_the_plan_is_made(condition: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        Plan("p", phases=[Phase("scan", "do"), Phase("fix", "do", when=condition)])


@given(st.text(max_size=60))
def test_any_text_is_a_condition_or_a_value_error(text: str) -> None:
    try:
        parse(text)
    except ValueError as error:
        assert str(error)


def test_a_condition_makes_its_phase_wait_for_what_it_asks_about() -> None:
    plan = Plan("p", phases=[Phase("scan", "do"), Phase("fix", "do", when="scan.count > 0")])
    assert plan.graph["fix"].needs == ("scan",)
