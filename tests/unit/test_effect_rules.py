"""What a handler does outside, each thing once: the intention is recorded before, the outcome after."""

from __future__ import annotations

import msgspec

from bus.rules.commands import Intend, Redrive, Save, Settle, Vouch
from bus.rules.plan import Phase
from bus.rules.references import ref
from bus.rules.retry import Retry
from bus.rules.verify import violations
from tests.driver import LOST, Driver

DONE = msgspec.Raw(b'{"id":7}')


def begun() -> Driver:
    run = Driver(Phase("pay", "do", retry=Retry(lost=3)))
    run.take("pay")
    run.do(Intend("pay", None, 1, "one", "charge"))
    return run


def test_an_outcome_is_kept_for_later_attempts() -> None:
    run = begun()
    run.do(Settle("pay", None, 1, "one", "charge", DONE))
    run.fail("pay", LOST, cause="crashed")
    run.take("pay", instance="two")
    assert run.item("pay").effects["charge"] is not None
    assert "begun before" in run.refusal(Intend("pay", None, 2, "two", "charge"))
    assert "not under way" in run.refusal(Settle("pay", None, 2, "two", "charge", DONE))


def test_what_was_begun_and_not_settled_is_unknown_to_the_next_attempt() -> None:
    run = begun()
    run.fail("pay", LOST, cause="crashed")
    run.take("pay", instance="two")
    assert run.item("pay").effects == {"charge": None}
    run.do(Settle("pay", None, 2, "two", "charge", DONE))
    assert run.item("pay").effects["charge"] is not None


def test_a_zombie_neither_begins_nor_settles_anything() -> None:
    run = begun()
    run.fail("pay", LOST, cause="crashed")
    run.take("pay", instance="two")
    assert "not under way there" in run.refusal(Settle("pay", None, 1, "one", "charge", DONE))
    assert "not under way there" in run.refusal(Intend("pay", None, 1, "one", "refund"))


def test_what_was_done_stays_done_when_a_phase_is_redriven_and_not_when_it_is_done_again() -> None:
    run = begun()
    run.do(Settle("pay", None, 1, "one", "charge", DONE))
    run.fail("pay")
    run.redrive()
    assert "charge" in run.item("pay").effects
    run.complete("pay")
    run.do(Redrive("ann", ("pay",), afresh=True))
    assert run.item("pay").effects == {}


def test_what_was_not_done_after_all_may_be_begun_anew() -> None:
    run = begun()
    run.do(Settle("pay", None, 1, "one", "charge", reason="declined"))
    assert run.item("pay").effects == {}
    run.do(Intend("pay", None, 1, "one", "charge"))


def test_a_person_vouches_for_what_nobody_knows_also_when_the_run_has_ended() -> None:
    run = begun()
    assert "under way" in run.refusal(Vouch("pay", None, "charge", "ann", DONE))
    run.fail("pay")
    assert run.state.status == "failed"
    assert "'refund'" in run.refusal(Vouch("pay", None, "refund", "ann", DONE))
    run.do(Vouch("pay", None, "charge", "ann", DONE, "it is in the books"))
    assert "not an effect of unknown outcome: none" in run.refusal(Vouch("pay", None, "charge", "ann"))
    run.redrive()
    assert run.item("pay").effects["charge"] is not None
    assert not list(violations(run.commits, run.now))


def test_a_person_may_say_that_it_did_not_happen() -> None:
    run = begun()
    run.fail("pay")
    run.do(Vouch("pay", None, "charge", "ann"))
    run.redrive()
    assert run.item("pay").effects == {}


def test_what_was_saved_is_there_for_the_next_attempt_and_gone_when_the_work_is_begun_again() -> None:
    run = begun()
    for state in (b"1", b"2"):
        run.do(Save("pay", None, 1, "one", msgspec.Raw(state)))
    run.fail("pay", LOST, cause="crashed")
    run.take("pay", instance="two")
    assert "not under way there" in run.refusal(Save("pay", None, 1, "one", msgspec.Raw(b"3")))
    run.fail("pay", instance="two")
    run.redrive()
    saved = run.item("pay").saved
    assert saved is not None and saved.value == 2
    run.complete("pay")
    run.do(Redrive("ann", ("pay",), afresh=True))
    assert (run.item("pay").saved, run.state.phases["pay"].begun) == (None, 3)


def test_each_item_has_effects_of_its_own() -> None:
    run = Driver(Phase("pay", "do", each=ref("input")), input=[1, 2])
    for item in (0, 1):
        run.take("pay", item)
    run.do(Intend("pay", 1, 1, "one", "charge"))
    assert [item.unknown for item in run.state.phases["pay"].items] == [[], ["charge"]]
