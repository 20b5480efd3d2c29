"""The doctor's checks by themselves: what follows from facts that are hard to make, and the order of the findings."""

from __future__ import annotations

from datetime import timedelta

import pytest
from msgspec.structs import replace

from bus.rules.plan import Phase
from projections.doctor.checks import diagnose
from projections.doctor.facts import Facts, Ground, Lead, Letter, Member, Running
from projections.doctor.finding import Finding, Weight, ordered
from tests.driver import RUN, Driver

LED = Lead(leader="supervisor-1")
KNOWN = Ground(system="")


def held(*, life: str = "alive", process: Running = "", age_s: float = 10, holds: bool = True) -> Facts:
    """A run whose only attempt is under way on instance `one`."""
    run = Driver(Phase("a", "do"))
    run.take("a", timeout_s=60)
    run.wait(age_s)
    mine = frozenset({(RUN, "a", None, 1)}) if holds else frozenset()
    one = Member(instance="one", host="far", pid=7, life=life, process=process, capabilities={"do": 1}, held=mine)  # type: ignore[arg-type]
    return Facts(at=run.now, run=RUN, ground=KNOWN, lead=LED, members={"one": one}, runs=[run.state])


def codes(facts: Facts) -> list[str]:
    return [each.code for each in diagnose(facts)]


def test_nothing_follows_from_what_nobody_knows() -> None:
    assert codes(Facts(at=held().at)) == []
    assert codes(replace(held(), members=None)) == []
    assert codes(replace(held(life="gone"), members=None, lead=None)) == []


def test_an_attempt_in_good_hands_is_no_finding() -> None:
    assert codes(held()) == []


@pytest.mark.parametrize(
    ("facts", "code", "says"),
    [
        (held(life="gone"), "dead", "and nobody has taken it back"),
        (held(life="mute", process="stopped"), "frozen", "process 7 on far (instance one) is stopped"),
        (held(life="mute", process="running"), "loop_blocked", "a handler blocks it"),
        (held(life="mute"), "mute", "is frozen, or its event loop is blocked"),
        (held(holds=False), "forgotten", "does not hold attempt 1 of a on one any more"),
        (held(age_s=70), "overdue", "has run for 70.0 s, and nobody has ended it"),
    ],
)
def test_why_an_attempt_is_stuck_is_told_apart(facts: Facts, code: str, says: str) -> None:
    [found] = diagnose(facts)
    assert found.code == code
    assert says in found.cause
    assert (found.run, found.phase) == (RUN, "a")


def test_somebody_who_is_just_gone_is_given_time_if_a_supervisor_leads() -> None:
    facts = held(life="gone", age_s=1)
    assert codes(facts) == []
    assert codes(replace(facts, lead=Lead(leader=""))) == ["dead", "no_supervisor"]


def test_a_mute_instance_far_away_says_where_to_look() -> None:
    [found] = diagnose(held(life="mute"))
    assert found.next_step == "on far: ps -o stat= -p 7"


def test_work_that_is_offered_and_not_taken_is_starved_only_if_all_places_are_taken() -> None:
    run = Driver(Phase("a", "do"))
    run.wait(60)
    idle = Member(instance="one", capabilities={"do": 2})
    facts = Facts(at=run.now, ground=KNOWN, lead=LED, members={"one": idle}, runs=[run.state])
    assert codes(facts) == ["untaken"]
    assert codes(replace(facts, busy={"do": 1})) == ["untaken"]
    assert codes(replace(facts, busy={"do": 2})) == ["starved"]


def test_work_with_a_key_waits_for_its_turn_and_perhaps_behind_a_death() -> None:
    run = Driver(Phase("work", "do"))
    run.wait(8)
    state = replace(run.state, key="customer-7")
    one = Member(instance="one", capabilities={"do": 1})
    facts = Facts(at=run.now, run=RUN, ground=KNOWN, lead=LED, members={"one": one}, runs=[state])
    [found] = diagnose(facts)
    assert (found.code, found.weight) == ("in_line", "waiting")
    assert "8 s for its turn" in found.cause and "'customer-7'" in found.cause and "dead" not in found.cause
    behind = replace(facts, letters=[Letter(7, run.now, "do", "no")])
    found = next(each for each in diagnose(behind) if each.code == "in_line")
    assert "on_dead='park'" in found.cause and found.next_step == "phasebus dead ls --capability do"


def test_a_handler_that_keeps_talking_is_not_silent() -> None:
    facts = held(age_s=30)
    began = facts.at - timedelta(seconds=30)
    key = (RUN, "a", None, 1)
    talking = [began + timedelta(seconds=each) for each in (1, 2, 3)]
    assert codes(replace(facts, said={key: talking})) == ["silent"]
    assert codes(replace(facts, said={key: [*talking, facts.at - timedelta(seconds=1)]})) == []
    slowly = [began + timedelta(seconds=each) for each in (10, 20)]
    assert codes(replace(facts, said={key: slowly})) == []


def test_a_stopped_process_of_this_folder_is_named_as_the_frozen_supervisor() -> None:
    facts = Facts(at=held().at, ground=KNOWN, lead=Lead(leader="", standing_by=1, pid=42, process="stopped"))
    [found] = diagnose(facts)
    assert (found.code, found.next_step) == ("supervisor_frozen", "kill -CONT 42")


def test_a_store_that_is_nearly_full_is_named_before_it_is() -> None:
    facts = Facts(at=held().at, ground=Ground(system="", full=0.97))
    assert diagnose(facts)[0].cause == "store nearly full: 97% of max_file_store is used"
    assert codes(replace(facts, ground=Ground(system="", full=0.5))) == []


def test_old_dead_letters_do_not_grow() -> None:
    at = held().at
    facts = Facts(at=at, ground=KNOWN, letters=[Letter(5, at - timedelta(hours=3), "price", "no")])
    assert diagnose(facts)[0].cause == "dead letters: 1 in all, 1 of 'price': no"


def finding(code: str, weight: Weight, run: str = "") -> Finding:
    return Finding(code=code, weight=weight, cause=code, next_step="", run=run)


def test_what_weighs_most_comes_first_and_the_run_that_was_asked_about_before_the_rest() -> None:
    some = [
        finding("hint", "advice"),
        finding("mine", "waiting", "r"),
        finding("broken", "broken"),
        finding("mine too", "stuck", "r"),
    ]
    assert [each.code for each in ordered(some, None)] == ["broken", "mine too", "mine", "hint"]
    assert [each.code for each in ordered(some, "r")] == ["mine too", "mine", "broken", "hint"]
    fatal = finding("fatal", "fatal")
    assert ordered([*some, fatal], "r")[0] is fatal


def test_the_same_fault_in_several_places_is_named_once_and_counted() -> None:
    [found] = ordered([finding("dead", "stuck", f"r{each}") for each in range(4)], None)
    assert (found.run, found.others) == ("r0", 3)
