"""The stepper: what each command of the debugger shows, without a terminal or a server."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from bus.history.change import changes
from bus.history.trail import Trail
from bus.rules.plan import Phase
from bus.rules.references import ref
from console.loglines import around, read
from console.printer import to_json
from console.stepper import Stepper, Unknown, key, split
from tests.driver import BEGAN_AT, RUN, TRANSIENT, Driver
from tests.unit.test_projections_runs import told


@pytest.fixture
def stepper() -> Stepper:
    run = Driver(Phase("a", "do"), Phase("b", "do", each=ref("a"), after=["a"]))
    run.take("a")
    run.wait(1)
    run.fail("a", TRANSIENT)
    run.wait(60)
    run.complete("a", [1, 2])
    run.complete("b", "x", 1)
    logs = [
        {"timestamp": BEGAN_AT.isoformat(), "level": "info", "event": "started", "run": RUN, "phase": "a"},
        {"timestamp": (BEGAN_AT + timedelta(seconds=99)).isoformat(), "event": "late", "run": RUN, "phase": "b:1"},
        {"timestamp": BEGAN_AT.isoformat(), "event": "of somebody else", "run": "other"},
    ]
    lines = [*(json.dumps(each) for each in logs), "no json", "[]"]
    return Stepper(Trail(RUN, told(run.commits)), read(lines, RUN, RUN))


def text(stepper: Stepper, script: str) -> list[str]:
    return [line for command in split(script) for line in stepper.obey(*command).lines]


def test_steps_go_forth_and_back_and_stop_at_both_ends(stepper: Stepper) -> None:
    first = stepper.view().lines
    assert first[0].startswith("event 1 of ")
    assert text(stepper, "p") == ["this is the first event"]
    there = text(stepper, "n")
    assert there[0].startswith("event 2 of ")
    assert text(stepper, "n p")[-len(there) :] == there
    text(stepper, "g end")
    assert text(stepper, "n") == ["this is the last event"]


def test_an_event_is_shown_with_what_caused_it_what_it_caused_and_what_changed(stepper: Stepper) -> None:
    shown = "\n".join(text(stepper, "b phase.attempt_failed"))
    assert "phase.attempt_failed  a #1 error: the line is down" in shown
    assert "because   2.0 phase.started a" in shown
    assert "led to    3.1 phase.ready a" in shown
    assert "changed   a: in_progress to pending" in shown


def test_places_are_gone_to_by_position_time_type_and_status(stepper: Stepper) -> None:
    assert "at 3.1" in text(stepper, "g 3")[0]
    assert "at 3.0" in text(stepper, "g 3.0")[0]
    assert "at 3.1" in text(stepper, "g 2026-01-01T00:00:30")[0]
    assert "phase.completed" in text(stepper, "g start b a=completed")[-4]
    text(stepper, "g start")
    assert text(stepper, "b nothing")[0] == "it ended without nothing"
    assert text(stepper, "g start / b:1")[-1] != ""
    assert text(stepper, "g start / nothing")[-1] == "no nothing behind this"
    assert "phase.attempt_failed" in "".join(text(stepper, "g end ? phase.attempt_failed"))


def test_the_state_is_that_of_the_moment(stepper: Stepper) -> None:
    assert "in progress" in "\n".join(text(stepper, "g 2 s"))
    assert '"status": "ready",' in "\n".join(text(stepper, "g 3 S a"))
    [record] = [stepper.obey("S", "b:1").record] if text(stepper, "g end") else []
    assert json.loads(to_json(record))["state"]["output"] == "x"
    with pytest.raises(Unknown, match="there are: a, b"):
        stepper.obey("S", "c")


def test_a_difference_names_each_value_that_changed(stepper: Stepper) -> None:
    shown = text(stepper, "g 2.0 d")
    assert "phases.a.status: ready -> in_progress" in shown
    assert "phases.a.work.status: ready -> in_progress" in shown
    assert text(stepper, "g start d")[-2:] == ["run: nothing -> run-1", "status: nothing -> in_progress"]


def test_causes_lead_to_the_start_and_effects_are_a_tree(stepper: Stepper) -> None:
    text(stepper, "g end")
    causes = [line.split()[1] for line in stepper.obey("c").lines]
    assert (causes[0], causes[-1]) == ("run.started", "phase.started")
    text(stepper, "g start")
    effects = stepper.obey("e").lines
    assert len(effects) == len(stepper.trail) - 1
    assert stepper.obey("c").lines == ["somebody's decision: nothing in the log led to it"]


def test_log_lines_are_those_of_the_run_about_the_phase_at_hand(stepper: Stepper) -> None:
    assert text(stepper, "g 2 l")[-1].split()[1:] == ["info", "started", "a"]
    assert stepper.obey("g", "end").lines
    assert any("late" in line for line in stepper.obey("l").lines)
    assert Stepper(stepper.trail).obey("l").lines == ["no log was given: phasebus debug RUN --logs FILE"]
    lines = read([json.dumps({"timestamp": "2026-01-01T00:00:00", "event": "naive", "run": RUN})], RUN, RUN)
    assert around(lines, BEGAN_AT, "")[0].at == BEGAN_AT


def test_keys_of_a_terminal_are_commands() -> None:
    assert [key(each) for each in ("\x1b[C", "\x1b[D", "n", " ", "\x1b[F")] == [
        ("n", ""),
        ("p", ""),
        ("n", ""),
        ("n", ""),
        ("g", "end"),
    ]


@pytest.mark.parametrize("script", ["x", "nn", "g", "n ,"])
def test_what_is_no_command_is_refused_with_those_that_are(script: str) -> None:
    with pytest.raises(Unknown):
        split(script)


def test_a_wrong_place_moves_nothing(stepper: Stepper) -> None:
    with pytest.raises(Unknown, match="is no place"):
        stepper.obey("g", "yesterday")
    assert stepper.place == 0


def test_two_states_that_are_one_differ_in_nothing(stepper: Stepper) -> None:
    state = stepper.trail.after(3)
    assert changes(state, state) == []
