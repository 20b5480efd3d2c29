"""Redriving one dead letter: its work goes on, and nothing else; with another input, if one is given."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from bus.errors import Refused
from bus.replay.hindsight import asked
from bus.rules import dead
from bus.rules.commands import Cancel, Intend, Redrive, Revive, Rollback, Skip
from bus.rules.dead import DeadLetter
from bus.rules.events import Event, PhaseInputReplaced, PhaseReady, RunRedriven
from bus.rules.folding import Folding, fold
from bus.rules.plan import Phase
from bus.rules.references import ref
from tests.driver import PERMANENT, Driver


def died(run: Driver) -> DeadLetter:
    """The dead letter of the newest commit."""
    (letter,) = dead.letters(fold(run.commits[:-1]), run.commits[-1])
    return letter


def reviving(letter: DeadLetter, **more: object) -> Revive:
    place = (letter.phase, letter.item, letter.attempt, letter.passes)
    named = dict(zip(("phase", "item", "attempt", "passes"), place, strict=True))
    return Revive(by="ann", letter=dead.name_of(letter), **named, **more)  # type: ignore[arg-type]


def revive(run: Driver, letter: DeadLetter, **more: object) -> Sequence[Event]:
    return run.do(reviving(letter, **more))


def test_a_letter_is_redriven_once_whoever_asks_again() -> None:
    run = Driver(Phase("a", "do"))
    run.fail("a")
    letter = died(run)
    revive(run, letter)
    assert run.refusal(reviving(letter)) == "the dead letter was dealt with before: attempt 2 of phase a is ready"
    run.fail("a")
    # It has died once more: that is another letter.
    assert run.refusal(reviving(letter)) == "the dead letter was dealt with before: attempt 2 of phase a is failed"
    second = died(run)
    assert second.earlier == dead.name_of(letter)
    revive(run, second)
    run.complete("a")
    assert [dead.standing(each, run.state) for each in (letter, second)] == ["resolved", "resolved"]


def test_one_item_goes_on_alone() -> None:
    run = Driver(Phase("a", "do", each="input"), Phase("b", "do", input=ref("a"), after=["a"]), input=[1, 2, 3])
    run.fail("a", PERMANENT, 0)
    first = died(run)
    run.fail("a", PERMANENT, 1)
    second = died(run)
    run.complete("a", 30, 2)
    happened = revive(run, first)
    assert [each for each in happened if isinstance(each, PhaseReady)] == [PhaseReady(phase="a", item=0, attempt=2)]
    assert run.items("a") == ["ready", "failed", "completed"]
    run.complete("a", 10, 0)
    assert (run.items("a"), run.state.status) == (["completed", "failed", "completed"], "failed")
    assert dead.is_open(second, run.state)
    revive(run, second)
    run.complete("a", 20, 1)
    assert run.given("b") == [10, 20, 30]


def test_an_item_can_go_on_while_others_of_its_phase_are_under_way() -> None:
    run = Driver(Phase("a", "do", each="input"), input=[1, 2])
    run.take("a", 1)
    run.fail("a", PERMANENT, 0)
    letter = died(run)
    revive(run, letter)
    assert (run.items("a"), run.state.open_phases) == (["ready", "in_progress"], 1)
    assert dead.standing(letter, run.state) == "redriven"
    run.complete("a", 2, 1)
    assert run.state.is_open
    run.complete("a", 1, 0)
    assert (run.state.status, run.output("a")) == ("completed", [1, 2])


def test_what_was_stopped_because_of_an_item_goes_on_with_it() -> None:
    run = Driver(Phase("a", "do", each="input", fail_fast=True), input=[1, 2, 3])
    run.fail("a", PERMANENT, 1)
    assert run.items("a") == ["cancelled", "failed", "cancelled"]
    revive(run, died(run))
    for item in range(3):
        run.complete("a", item, item)
    assert (run.state.status, run.output("a")) == ("completed", [0, 1, 2])


def test_work_goes_on_with_another_input_and_keeps_it() -> None:
    run = Driver(Phase("a", "do", input={"sku": ref("input.sku")}), input={"sku": "A-7"})
    run.fail("a")
    letter = died(run)
    happened = revive(run, letter, input=msgspec.Raw(b'{"sku":"A-8"}'), reason="typo", transform="mend:sku")
    replaced = next(each for each in happened if isinstance(each, PhaseInputReplaced))
    assert (replaced.by, replaced.reason, replaced.transform) == ("ann", "typo", "mend:sku")
    assert run.given("a") == {"sku": "A-8"}
    run.fail("a")
    again = died(run)
    assert (bytes(letter.payload), bytes(again.payload)) == (b'{"sku":"A-7"}', b'{"sku":"A-8"}')
    revive(run, again)
    assert run.given("a") == {"sku": "A-8"}
    run.complete("a")
    run.do(Redrive("ann", afresh=True))
    # All of it again: as the plan has it.
    assert run.given("a") == {"sku": "A-7"}


def test_an_item_goes_on_with_another_input() -> None:
    run = Driver(Phase("a", "do", each="input"), input=[1, 2])
    run.fail("a", PERMANENT, 1)
    revive(run, died(run), input=msgspec.Raw(b"5"))
    assert (run.given("a", 0), run.given("a", 1)) == (1, 5)


def test_work_that_never_had_an_input_can_be_given_one() -> None:
    run = Driver(Phase("a", "do", input=ref("input.x")), input={})
    letter = died(run)
    revive(run, letter, input=msgspec.Raw(b'{"x":1}'))
    assert run.given("a") == {"x": 1}
    run.fail("a")
    assert died(run).earlier == dead.name_of(letter)


def test_work_without_an_input_that_stays_so_has_one_open_letter() -> None:
    run = Driver(Phase("a", "do", input=ref("input.x")), input={})
    first = died(run)
    run.wait(1)
    revive(run, first)
    second = died(run)
    assert [dead.standing(each, run.state) for each in (first, second)] == ["died_again", "open"]
    assert second.earlier == dead.name_of(first)


def test_a_list_that_could_not_be_had_can_not_be_given() -> None:
    run = Driver(Phase("a", "do", each="input.x"), input={})
    assert "goes over its list anew" in run.refusal(reviving(died(run), input=msgspec.Raw(b"[1]")))


@pytest.mark.parametrize("ending", [Cancel("ann"), Skip("a", "ann")])
def test_work_that_somebody_stops_after_it_was_redriven_is_discarded(ending: Cancel | Skip) -> None:
    run = Driver(Phase("a", "do"))
    run.fail("a")
    letter = died(run)
    revive(run, letter)
    run.do(ending)
    assert dead.standing(letter, run.state) == "discarded"


def test_what_was_discarded_is_open_again_for_whoever_redrives_it() -> None:
    run = Driver(Phase("a", "do"))
    run.fail("a")
    letter = died(run)
    assert dead.standing(letter, run.state, discarded=True) == "discarded"
    run.redrive()
    assert dead.standing(letter, run.state, discarded=True) == "redriven"


def test_a_compensation_that_died_goes_on_with_its_rollback() -> None:
    run = Driver(Phase("a", "do", compensate="undo"), Phase("b", "do", compensate="undo", after=["a"]))
    run.complete("a", 1)
    run.wait(1)
    run.complete("b", 2)
    run.do(Rollback("ann", "a"))
    run.fail("b")
    assert run.state.status == "failed"
    letter = died(run)
    assert (letter.capability, letter.undoes) == ("undo", True)
    with pytest.raises(Refused, match="can't be replaced"):
        revive(run, letter, input=msgspec.Raw(b"1"))
    revive(run, letter)
    assert dead.standing(letter, run.state) == "redriven"
    run.fail("b")
    again = died(run)
    assert again.earlier == dead.name_of(letter)
    revive(run, again)
    run.complete("b")
    run.complete("a")
    assert [dead.standing(each, run.state) for each in (letter, again)] == ["resolved", "resolved"]
    assert run.statuses == {"a": "ready", "b": "pending"}


def test_what_is_downstream_goes_on_with_it() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", after=["a"]), Phase("x", "do"))
    run.fail("a")
    letter = died(run)
    assert run.statuses == {"a": "failed", "b": "skipped", "x": "ready"}
    happened = revive(run, letter, reason="mended", operation="o1")
    redriven = next(each for each in happened if isinstance(each, RunRedriven))
    assert (redriven.phases, redriven.letter) == (("a", "b"), dead.name_of(letter))
    assert (redriven.reason, redriven.operation) == ("mended", "o1")
    for key in ("a", "b", "x"):
        run.complete(key)
    assert run.state.status == "completed"


def test_a_letter_says_where_its_work_began() -> None:
    run = Driver(Phase("a", "do"), Phase("b", "do", after=["a"]))
    run.complete("a")
    run.fail("b")
    letter = died(run)
    # The run began with the first commit, and what made `b` ready is the result of `a`: the third.
    assert (letter.began, letter.origin) == (1, 3)


def test_hindsight_knows_what_was_asked() -> None:
    run = Driver(Phase("a", "do", each="input"), input=[1, 2])
    run.fail("a", PERMANENT, 1)
    command = reviving(died(run), input=msgspec.Raw(b"5"), reason="why", transform="mend:it", operation="o1")
    run.do(command)
    folding = Folding(None)
    assert [each for commit in run.commits for each in asked(folding, commit)][-1] == command


def test_work_that_was_undone_after_it_died_can_be_done_again_when_its_run_has_ended() -> None:
    plan = [Phase("a", "do", compensate="undo"), Phase("b", "do", compensate="undo", after=["a"])]
    run = Driver(*plan, on_failure="rollback")
    run.complete("a", 1)
    run.take("b")
    run.do(Intend("b", None, 1, "one", "charge"))
    run.fail("b")
    letter = died(run)
    assert (dead.is_open(letter, run.state), dead.standing(letter, run.state)) == (False, "open")
    assert "dealt with before" in run.refusal(reviving(letter))
    run.complete("b")
    assert "has ended" in run.refusal(reviving(letter))
    run.complete("a")
    assert (run.state.status, dead.is_open(letter, run.state)) == ("failed", True)
    revive(run, letter, input=msgspec.Raw(b'"mended"'))
    assert dead.standing(letter, run.state) == "redriven"
    assert run.refusal(reviving(letter))
    # What it needs was undone too, and comes first.
    assert run.statuses == {"a": "ready", "b": "pending"}
    run.complete("a")
    assert run.given("b") == "mended"
    run.fail("b")
    assert died(run).earlier == dead.name_of(letter)
