from __future__ import annotations

from datetime import timedelta

import pytest

from bus.archives.retention import CLASSES, Policy, age, class_of, letter_stays, run_stays
from bus.errors import Refused, SettingsError
from bus.format.subjects import Subjects
from bus.rules import dead
from bus.rules.commands import Begin, Cancel, Redrive
from bus.rules.dead import DeadLetter
from bus.rules.decide import decide
from bus.rules.events import Commit, RunArchived
from bus.rules.folding import evolve, fold
from bus.rules.plan import Approval, Phase
from bus.rules.run import RunState
from tests.driver import BEGAN_AT, PERMANENT, RUN, Driver

DAY = timedelta(days=1)


def failed() -> tuple[Driver, list[DeadLetter]]:
    """A run whose work was given up, and its dead letter."""
    run = Driver(Phase("a", "do"))
    run.fail("a", PERMANENT)
    return run, dead.letters(fold(run.commits[:-1]), run.commits[-1])


def archived(state: RunState) -> RunState:
    event = RunArchived(by="ann", upto=state.position, archive="1a2b")
    return evolve(state, Commit(RUN, "c", BEGAN_AT + DAY, state.position + 1, [event]))


def test_what_no_rule_names_stays_for_ever() -> None:
    policy = Policy.of(["run=30d"])
    assert policy.before("run", BEGAN_AT + 30 * DAY) == BEGAN_AT
    assert all(policy.before(name, BEGAN_AT) is None for name in CLASSES if name != "run")


@pytest.mark.parametrize(
    ("text", "length"),
    [("0s", 0 * DAY), ("90s", timedelta(seconds=90)), ("5m", timedelta(minutes=5)), ("12h", DAY / 2), ("2w", 14 * DAY)],
)
def test_an_age_is_a_number_and_a_unit(text: str, length: timedelta) -> None:
    assert age(text) == length
    assert age(Policy.of([f"run={text}"]).rules()[0].removeprefix("run=")) == length


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1.5d", "1y", "1d1h", "999999999w", "٣d"])
def test_anything_else_is_refused_with_what_was_written(text: str) -> None:
    with pytest.raises(SettingsError, match="is not an age"):
        age(text)


@pytest.mark.parametrize("rules", [["runs=1d"], ["work=1d"], ["run"], ["run=1d", "run=2d"], ["=1d"]])
def test_a_rule_that_means_nothing_or_is_there_twice_is_refused(rules: list[str]) -> None:
    with pytest.raises(SettingsError):
        Policy.of(rules)


def test_every_class_of_the_log_can_be_named() -> None:
    subjects = Subjects("shop")
    assert [class_of(subject) for subject in subjects.logged()] == list(CLASSES)


def test_an_open_run_stays_however_old_it_is() -> None:
    run = Driver(Phase("gate", approval=Approval()))
    assert run_stays(run.state, [], BEGAN_AT + 1_000 * DAY) == "is open"


def test_a_run_goes_when_it_ended_long_enough_ago_not_when_it_began() -> None:
    run = Driver(Phase("gate", approval=Approval()))
    run.wait(3600)
    run.answer("gate")
    ended = BEGAN_AT + timedelta(hours=1)
    assert run_stays(run.state, [], ended - timedelta(seconds=1)) == "ended too recently"
    assert run_stays(run.state, [], ended) is None


def test_a_run_with_dead_work_stays_until_it_is_redriven_or_given_up() -> None:
    run, letters = failed()
    assert run_stays(run.state, letters, BEGAN_AT + DAY) == "has dead work"
    assert letter_stays(letters[0], run.state) == "is still dead"
    run.redrive("a")
    assert run_stays(run.state, letters, BEGAN_AT + DAY) == "is open"
    assert letter_stays(letters[0], run.state) is None
    run.do(Cancel("ann"))
    assert run_stays(run.state, letters, BEGAN_AT + DAY) is None


def test_a_letter_without_its_run_goes() -> None:
    _, letters = failed()
    assert letter_stays(letters[0], None) is None


def test_an_archived_run_is_what_it_was_and_does_not_go_on() -> None:
    run, letters = failed()
    state = archived(run.state)
    assert state.archived and (state.status, state.ended_at) == ("failed", run.state.ended_at)
    assert run_stays(state, letters, BEGAN_AT + DAY) == "is archived already"
    for command in (Redrive("ann", ("a",)), Cancel("ann")):
        with pytest.raises(Refused, match="archived"):
            decide(state, command, run=RUN, now=BEGAN_AT + DAY)
    with pytest.raises(Refused, match="already started"):
        decide(state, Begin(state.plan, state.input.raw), run=RUN, now=BEGAN_AT + DAY)
