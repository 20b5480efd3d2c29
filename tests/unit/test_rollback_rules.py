"""Going back: to before a phase or to a checkpoint, what was done undone in reverse order, the history kept."""

from __future__ import annotations

import msgspec
import pytest

from bus.errors import Refused
from bus.rules.commands import Begin, Cancel, Checkpoint, Intend, Pause, Redrive, Rollback, Skip
from bus.rules.decide import decide
from bus.rules.events import Commit, PhaseReady, RunCancelled, RunRollingBack
from bus.rules.folding import fold
from bus.rules.plan import Approval, Phase, Plan
from bus.rules.references import ref
from bus.rules.verify import violations
from tests.driver import BEGAN_AT, RUN, Driver


def saga() -> Driver:
    """Three steps done one after the other, the fourth under way; the first and the third can be undone."""
    run = Driver(
        Phase("book", "do", input={"seat": ref("input.seat")}, compensate="cancel.booking"),
        Phase("notify", "do", after=["book"]),
        Phase("pay", "do", each=ref("notify"), compensate="refund"),
        Phase("ship", "do", after=["pay"]),
        input={"seat": 7},
    )
    run.complete("book", {"id": 1})
    run.complete("notify", ["a", "b"])
    run.wait(1)
    run.complete("pay", 10, item=0)
    run.complete("pay", 20, item=1)
    run.take("ship")
    return run


def test_what_was_done_is_undone_in_reverse_order_and_then_done_again() -> None:
    run = saga()
    run.do(Rollback("ann", "book", reason="wrong seat"))
    assert run.statuses == {"book": "completed", "notify": "completed", "pay": "ready", "ship": "cancelled"}
    assert run.state.capability("pay") == "refund"
    assert run.given("pay") == {"input": ["a", "b"], "output": [10, 20]}
    run.complete("pay")
    assert run.statuses == {"book": "ready", "notify": "completed", "pay": "rolled_back", "ship": "cancelled"}
    assert run.given("book") == {"input": {"seat": 7}, "output": {"id": 1}}
    run.complete("book")
    assert run.statuses == {"book": "ready", "notify": "pending", "pay": "pending", "ship": "pending"}
    assert (run.state.passes, run.state.capability("book"), run.given("book")) == (2, "do", {"seat": 7})
    run.complete("book", {"id": 2})
    run.complete("notify", ["c"])
    run.complete("pay", item=0)
    run.complete("ship")
    assert run.state.status == "completed"
    assert not list(violations(run.commits, run.now))


def test_a_result_of_what_was_rolled_back_is_refused() -> None:
    run = saga()
    attempt = run.item("ship").attempt
    run.do(Rollback("ann", "ship"))
    assert run.statuses["ship"] == "ready"
    assert run.item("ship").attempt == attempt + 1


def test_going_back_without_anything_to_undo_begins_the_new_pass_at_once() -> None:
    run = saga()
    happened = run.do(Rollback("ann", "ship"))
    assert PhaseReady(phase="ship", attempt=2) in happened
    assert (run.state.rollback, run.state.passes) == (None, 2)


def test_a_checkpoint_is_gone_back_to_by_its_name() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", after=["a"]), Phase("c", "do", after=["b"]))
    run.complete("a")
    run.do(Checkpoint("before-b", "ann"))
    assert "already" in run.refusal(Checkpoint("before-b", "ann"))
    run.complete("b")
    run.complete("c")
    assert run.state.status == "completed"
    run.do(Rollback("ann", checkpoint="before-b"))
    assert run.statuses == {"a": "completed", "b": "ready", "c": "pending"}
    assert "there are: before-b" in run.refusal(Rollback("ann", checkpoint="other"))


@pytest.mark.parametrize("command", [Rollback("ann"), Rollback("ann", "a", "b"), Rollback("ann", "nowhere")])
def test_a_rollback_to_nowhere_is_refused(command: Rollback) -> None:
    assert saga().refusal(command)


def test_nothing_else_begins_or_is_done_again_while_something_is_undone() -> None:
    run = Driver(Phase("a", "do", compensate="undo"), Phase("x", "do"), Phase("b", "do", after=["a", "x"]))
    run.complete("a")
    run.take("x")
    run.do(Rollback("ann", "a"))
    run.complete("x")
    assert run.statuses == {"a": "ready", "x": "completed", "b": "pending"}
    for command in (Rollback("ann", "x"), Checkpoint("now", "ann")):
        assert "being rolled back" in run.refusal(command)
    run.complete("a")
    run.complete("a")
    assert run.statuses == {"a": "completed", "x": "completed", "b": "ready"}


def test_what_can_not_be_undone_ends_the_run_and_can_be_tried_again_or_skipped() -> None:
    run = saga()
    run.do(Rollback("ann", "book"))
    run.fail("pay")
    assert run.state.status == "failed"
    assert run.state.problem is not None and run.state.problem.code == "rollback_failed"
    assert "only pay, book can be redriven" in run.refusal(Redrive("ann", ("ship",)))
    assert "being rolled back" in run.refusal(Redrive("ann", afresh=True))
    run.redrive("pay")
    assert run.given("pay") == {"input": ["a", "b"], "output": [10, 20]}
    run.fail("pay")
    run.do(Rollback("ann", "book"))
    assert run.given("pay") == {"input": ["a", "b"], "output": [10, 20]}
    run.do(Skip("pay", "ann", "refunded by hand"))
    assert (run.statuses["pay"], run.statuses["book"]) == ("rolled_back", "ready")
    assert not list(violations(run.commits, run.now))


def test_what_could_not_be_undone_is_redriven_and_the_new_pass_follows() -> None:
    run = saga()
    run.do(Rollback("ann", "book"))
    run.fail("pay")
    run.redrive()
    run.complete("pay")
    run.complete("book")
    assert (run.statuses["book"], run.state.capability("book"), run.state.rollback) == ("ready", "do", None)
    assert not list(violations(run.commits, run.now))


def test_what_needs_a_phase_is_undone_before_it_even_if_that_was_done_again_later() -> None:
    run = Driver(
        Phase("a", "do", optional=True, compensate="undo"),
        Phase("b", "do", ref("a"), compensate="undo"),
    )
    run.fail("a")
    run.complete("b")
    run.wait(1)
    run.redrive("a")
    run.complete("a")
    happened = run.do(Rollback("ann", "a"))
    assert next(event.undo for event in happened if isinstance(event, RunRollingBack)) == ("b", "a")


def test_a_failed_phase_that_did_something_is_undone_as_well() -> None:
    run = Driver(
        Phase("pay", "do", each=ref("input.of"), compensate="refund"),
        Phase("ship", "do", compensate="fetch"),
        input={"of": [1, 2]},
    )
    run.complete("pay", "paid", item=0)
    run.fail("pay", item=1)
    run.take("ship")
    run.do(Intend("ship", None, 1, "one", "send"))
    run.fail("ship")
    run.do(Rollback("ann", "pay"))
    assert run.given("pay") == {"input": [1, 2], "output": ["paid", None]}
    run.complete("pay")
    run.do(Rollback("ann", "ship"))
    assert run.given("ship") == {"input": {}, "output": None, "effects": {"send": {}}}


def test_a_rollback_that_was_cancelled_can_be_begun_anew() -> None:
    run = saga()
    run.do(Rollback("ann", "book"))
    run.do(Cancel("ann"))
    run.do(Rollback("ann", "book"))
    run.complete("pay")
    run.complete("book")
    assert run.statuses["book"] == "ready"


def test_a_run_can_begin_with_what_another_has_done() -> None:
    plan = Plan(
        "p",
        phases=[
            Phase("a", "do"),
            Phase("gate", approval=Approval(), after=["a"]),
            Phase("b", "do", ref("a"), after=["gate"]),
        ],
    )
    begin = Begin(
        plan, msgspec.Raw(b"{}"), adopted={"a": msgspec.Raw(b"5"), "gate": msgspec.Raw(b"null")}, origin="r-1@7"
    )
    happened = decide(None, begin, run=RUN, now=BEGAN_AT)
    state = fold([Commit(RUN, "1", BEGAN_AT, 1, happened)])
    assert state is not None
    assert {key: phase.status for key, phase in state.phases.items()} == {
        "a": "completed",
        "gate": "approved",
        "b": "ready",
    }
    assert state.phases["a"].answered_by == "r-1@7"


def test_a_run_that_is_cancelled_with_a_rollback_undoes_what_it_did_and_then_is_cancelled() -> None:
    run = pair()
    run.complete("book", {"id": 1})
    run.take("pay")
    before = len(run.commits)
    run.do(Cancel("ann", "enough", rollback=True))
    assert len(run.commits) == before + 1, "one decision"
    assert (run.state.status, run.statuses["pay"], run.statuses["book"]) == ("in_progress", "cancelled", "ready")
    assert run.state.rollback is not None and run.state.rollback.cancels
    with pytest.raises(Refused, match="being rolled back"):
        run.do(Cancel("ben", rollback=True))
    happened = run.complete("book")
    assert happened[-1] == RunCancelled(by="ann", reason="enough")
    assert (run.state.status, run.statuses["book"], run.state.rollback) == ("cancelled", "rolled_back", None)
    assert not list(violations(run.commits, run.now))


def test_a_cancelled_run_whose_compensation_fails_has_failed_and_is_cancelled_when_that_was_redriven() -> None:
    run = pair()
    run.complete("book", {"id": 1})
    run.do(Pause("ann"))
    run.do(Cancel("ann", "enough", rollback=True))
    assert run.state.paused_at is None, "what is to be stopped is not held any more"
    run.fail("book")
    assert run.state.problem is not None
    assert (run.state.status, run.state.problem.code) == ("failed", "rollback_failed")
    run.do(Redrive("ben"))
    happened = run.complete("book")
    assert happened[-1] == RunCancelled(by="ben", reason="enough")


def test_with_nothing_to_undo_it_is_cancelled_at_once() -> None:
    run = pair()
    run.take("book")
    happened = run.do(Cancel("ann", rollback=True))
    assert isinstance(happened[-1], RunCancelled)


def pair() -> Driver:
    return Driver(Phase("book", "do", compensate="undo"), Phase("pay", "do", after=["book"]))
