from __future__ import annotations

from datetime import timedelta

import pytest

from bus.errors import PlanError
from bus.rules.commands import Answer, Take
from bus.rules.events import PhaseApproved, PhaseWaiting
from bus.rules.plan import Approval, Phase
from tests.driver import BEGAN_AT, Driver


def gated() -> Driver:
    return Driver(
        Phase("write", "do"),
        Phase("review", approval=Approval(expires_s=60.0, prompt="good?"), after=["write"]),
        Phase("publish", "do", after=["review"]),
    )


def test_a_gate_waits_until_it_is_answered_or_expires() -> None:
    run = gated()
    run.wait(5)
    happened = run.complete("write")
    waiting = PhaseWaiting(phase="review", expires_at=BEGAN_AT + timedelta(seconds=65), prompt="good?")
    assert waiting in happened
    assert run.statuses == {"write": "completed", "review": "waiting", "publish": "pending"}
    assert run.state.phases["review"].expires_at == waiting.expires_at


def test_an_approval_opens_what_waits_behind_the_gate() -> None:
    run = gated()
    run.complete("write")
    happened = run.answer("review")
    assert PhaseApproved(phase="review", by="ann", comment="I looked") in happened
    assert run.statuses == {"write": "completed", "review": "approved", "publish": "ready"}
    assert (run.state.phases["review"].answered_by, run.state.phases["review"].comment) == ("ann", "I looked")
    run.complete("publish")
    assert run.state.status == "completed"


def test_a_rejection_fails_the_gate_and_says_who_and_why() -> None:
    run = gated()
    run.complete("write")
    run.answer("review", approve=False)
    assert run.statuses == {"write": "completed", "review": "failed", "publish": "skipped"}
    problem = run.state.phases["review"].problem
    assert problem is not None
    assert (problem.code, str(problem)) == ("rejected", "rejected by ann: I looked")
    assert run.state.status == "failed"


@pytest.mark.parametrize(("approve", "status"), [(True, "approved"), (False, "failed")])
def test_past_its_time_the_rule_answers_the_gate(approve: bool, status: str) -> None:
    run = gated()
    run.complete("write")
    run.wait(60)
    run.answer("review", approve=approve, expired=True)
    assert run.statuses["review"] == status
    problem = run.state.phases["review"].problem
    assert (problem.code if problem else None) == (None if approve else "expired")


def test_a_gate_does_not_expire_before_its_time() -> None:
    """Somebody who still counts from before a redrive must not close the gate of the new pass."""
    run = gated()
    run.complete("write")
    run.wait(59)
    run.refusal(Answer("review", approve=False, by="expiry", expired=True))
    assert run.statuses["review"] == "waiting"


def test_a_gate_is_answered_once() -> None:
    run = gated()
    run.complete("write")
    run.answer("review")
    for approve in (True, False):
        assert "does not wait for an answer: it is approved" in run.refusal(Answer("review", approve, "ben"))


def test_a_gate_that_is_not_reached_can_not_be_answered() -> None:
    run = gated()
    assert "it is pending" in run.refusal(Answer("review", approve=True, by="ann"))


def test_work_is_not_a_gate_and_a_gate_is_not_work() -> None:
    run = gated()
    assert "it is ready" in run.refusal(Answer("write", approve=True, by="ann"))
    run.complete("write")
    assert "no open phase 'review'" in run.refusal(Take("review", None, 1, "do", "agent", "one", 5.0))


def test_a_gate_at_the_beginning_waits_from_the_first_commit() -> None:
    run = Driver(Phase("gate", approval=Approval()))
    assert run.statuses == {"gate": "waiting"}
    run.answer("gate")
    assert run.state.status == "completed"


def test_only_those_who_are_asked_may_answer() -> None:
    run = Driver(Phase("gate", approval=Approval(who=["ann", "ben"])))
    assert "for ann, ben to answer, not for dan" in run.refusal(Answer("gate", True, "dan"))
    run.do(Answer("gate", True, "ben"))
    assert run.state.phases["gate"].answered_by == "ben"


def test_an_answer_to_a_gate_of_an_earlier_pass_is_refused() -> None:
    run = Driver(Phase("gate", approval=Approval()))
    seen = run.state.phases["gate"].gate
    run.do(Answer("gate", False, "ann"))
    run.redrive()
    assert "opened again since" in run.refusal(Answer("gate", True, "ann", gate=seen))
    run.do(Answer("gate", True, "ann", gate=run.state.phases["gate"].gate))


def test_a_gate_nobody_answers_is_put_to_others_once_and_then_rejected() -> None:
    asked = Approval(expires_s=60, who=["ann"], on_expiry="escalate", escalate_to=["carol"])
    run = Driver(Phase("gate", approval=asked))
    run.wait(61)
    assert run.fire_due() == ["expiry"]
    assert (run.statuses["gate"], run.state.phases["gate"].asked) == ("waiting", ("ann", "carol"))
    run.wait(61)
    assert run.fire_due() == ["expiry"]
    assert run.statuses["gate"] == "failed"


def test_a_gate_may_wait_as_long_as_the_run() -> None:
    run = Driver(Phase("gate", approval=Approval(expires_s=60, on_expiry="wait")), timeout_s=3600)
    run.wait(3599)
    assert run.fire_due() == []
    run.do(Answer("gate", True, "ann"))
    assert run.state.status == "completed"


def test_escalating_to_nobody_is_refused_when_the_plan_is_made() -> None:
    with pytest.raises(PlanError, match="escalate_to go together"):
        Driver(Phase("gate", approval=Approval(on_expiry="escalate")))
