"""A phase over each item of a list."""

from __future__ import annotations

import msgspec
import pytest

from bus.rules.commands import Cancel, Take
from bus.rules.events import PhaseCompleted, PhaseExpanded, PhaseFailed, PhaseReady
from bus.rules.inputs import input_of, order
from bus.rules.plan import Phase
from bus.rules.references import ref
from bus.rules.retry import Retry
from tests.driver import LOST, PERMANENT, TRANSIENT, Driver


def each(values: object, **changes: object) -> Driver:
    return Driver(
        msgspec.structs.replace(Phase("measure", "do", each=ref("input.files")), **changes),
        Phase("sum", "do", input=ref("measure")),
        input={"files": values},
    )


def test_every_element_is_an_item_of_its_own() -> None:
    run = each(["a", "b", "c"])
    assert run.items("measure") == ["ready"] * 3
    assert [input_of(run.state, "measure", index) for index in range(3)] == ["a", "b", "c"]
    assert PhaseExpanded(phase="measure", items=3) in run.commits[0].events


def test_an_input_may_use_the_item_and_the_rest_of_the_run() -> None:
    run = each([{"name": "a"}], input={"n": ref("item.name"), "all": ref("input.files")})
    assert input_of(run.state, "measure", 0) == {"n": "a", "all": [{"name": "a"}]}


def test_outputs_are_joined_in_the_order_of_the_list_whoever_came_first() -> None:
    run = each(["a", "b", "c"])
    for index in (2, 0, 1):
        assert run.statuses["sum"] == "pending"
        run.complete("measure", f"out-{index}", index)
    assert run.output("measure") == ["out-0", "out-1", "out-2"]
    assert input_of(run.state, "sum", None) == ["out-0", "out-1", "out-2"]


def test_no_more_items_than_the_width_are_under_way() -> None:
    run = each(list(range(5)), width=2)
    assert run.items("measure") == ["ready", "ready", "pending", "pending", "pending"]
    run.take("measure", 0)
    assert run.items("measure") == ["in_progress", "ready", "pending", "pending", "pending"]
    happened = run.complete("measure", None, 0)
    assert [event for event in happened if isinstance(event, PhaseReady)] == [
        PhaseReady(phase="measure", item=2, attempt=1)
    ]
    for index in (1, 2, 3, 4):
        run.complete("measure", None, index)
    assert run.statuses == {"measure": "completed", "sum": "ready"}


def test_an_item_beyond_the_width_can_not_be_taken() -> None:
    run = each([1, 2], width=1)
    assert "attempt 0 is pending" in run.refusal(Take("measure", 1, 1, "do", "agent", "one", 5.0))


def test_a_retry_keeps_its_place_in_the_width() -> None:
    run = each([1, 2, 3], width=1)
    run.fail("measure", LOST, 0, cause="crashed")
    assert run.items("measure") == ["ready", "pending", "pending"]
    assert run.item("measure", 0).attempt == 2


def test_an_empty_list_completes_at_once_with_an_empty_output() -> None:
    run = each([])
    assert run.statuses == {"measure": "completed", "sum": "ready"}
    assert run.output("measure") == []
    assert len(run.commits) == 1


def test_a_run_of_nothing_but_an_empty_list_ends_when_it_begins() -> None:
    run = Driver(Phase("a", "do", each=ref("input")), input=[])
    assert run.state.status == "completed"


@pytest.mark.parametrize("value", [None, "abc", 3, {"0": "a"}, True])
def test_what_is_not_a_list_fails_as_unresolved_and_ends_the_run(value: object) -> None:
    run = each(value)
    assert run.statuses == {"measure": "failed", "sum": "skipped"}
    assert run.state.status == "failed"
    problem = run.state.phases["measure"].problem
    assert problem is not None
    assert problem.code == "unresolved"
    assert "'input.files' is not a list" in problem.title


def test_a_list_that_is_not_there_fails_as_unresolved() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", each=ref("a.files")))
    run.complete("a", {"file": []})
    problem = run.state.phases["b"].problem
    assert problem is not None
    assert (problem.code, run.state.status) == ("unresolved", "failed")


def test_an_item_whose_input_leads_nowhere_fails_as_unresolved() -> None:
    """It can't be dispatched, so if it were ready it would wait for ever."""
    run = each([{"name": "a"}, {}], input={"n": ref("item.name")})
    for index, status in enumerate(run.items("measure")):
        if status == "ready":
            order(run.state, "measure", index)
    assert run.items("measure")[1] == "failed"
    problem = run.item("measure", 1).problem
    assert problem is not None
    assert problem.code == "unresolved"


def test_an_each_input_that_leads_nowhere_for_every_item_ends_the_run() -> None:
    run = each(["a", "b"], input={"n": ref("input.missing")})
    assert run.state.status == "failed"


def test_a_failed_item_lets_the_others_finish_and_then_fails_the_phase() -> None:
    run = each([1, 2, 3], width=1)
    happened = run.fail("measure", PERMANENT, 0)
    assert PhaseFailed(phase="measure", item=0, problem=PERMANENT.at("agent", "run-1", "measure", 0, 1)) in happened
    assert run.statuses["measure"] == "in_progress"
    run.complete("measure", None, 1)
    run.complete("measure", None, 2)
    assert run.statuses == {"measure": "failed", "sum": "skipped"}
    problem = run.state.phases["measure"].problem
    assert problem is not None
    assert (problem.code, problem.title) == ("items_failed", "1 of 3 items failed")
    assert problem.detail == "the first, item 0: no such sku"


def test_items_are_retried_each_on_its_own() -> None:
    run = each([1, 2], retry=Retry(transient=1))
    run.fail("measure", TRANSIENT, 0)
    run.fail("measure", TRANSIENT, 1)
    assert [run.item("measure", index).attempt for index in (0, 1)] == [2, 2]
    run.fail("measure", TRANSIENT, 0)
    assert run.items("measure") == ["failed", "ready"]


def test_the_last_item_completes_the_phase_in_its_own_commit() -> None:
    run = each([1])
    run.take("measure", 0)
    happened = run.complete("measure", "x", 0)
    assert [type(event) for event in happened] == [PhaseCompleted, PhaseCompleted, PhaseReady]
    assert happened[1] == PhaseCompleted(phase="measure")


@pytest.mark.parametrize("index", [None, -1, 3, 99])
def test_an_item_that_does_not_exist_is_refused(index: int | None) -> None:
    run = each([1, 2, 3])
    assert "no open phase" in run.refusal(Take("measure", index, 1, "do", "agent", "one", 5.0))


def test_cancelling_keeps_the_items_that_were_done() -> None:
    run = each([1, 2, 3], width=1)
    run.complete("measure", "x", 0)
    run.take("measure", 1)
    run.do(Cancel("ann"))
    assert run.items("measure") == ["completed", "cancelled", "cancelled"]


def test_an_each_phase_over_the_output_of_an_each_phase() -> None:
    run = Driver(
        Phase("a", "do", each=ref("input")), Phase("b", "do", each=ref("a")), Phase("c", "do", each="b"), input=[1, 2]
    )
    for key in ("a", "b", "c"):
        for index in (0, 1):
            run.complete(key, [key, index], index)
    assert run.output("c") == [["c", 0], ["c", 1]]
    assert run.state.status == "completed"
