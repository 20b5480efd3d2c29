from __future__ import annotations

import json

import msgspec
import pytest

from bus.errors import MalformedMessage
from bus.format.envelope import decode as decode_envelope
from bus.format.envelope import encode, envelope
from bus.problem import Problem
from bus.rules import dead
from bus.rules.commands import Fail
from bus.rules.dead import DeadLetter, Unreadable
from bus.rules.events import Event
from bus.rules.folding import fold
from bus.rules.plan import Approval, Phase
from bus.rules.references import ref
from bus.rules.retry import Retry
from tests.driver import BEGAN_AT, LOST, PERMANENT, TRANSIENT, Driver

UNCLAIMED = Problem("unclaimed", "nobody took the work", "dependency")


def letters_of(run: Driver) -> list[DeadLetter]:
    """The dead letters of the newest commit."""
    return dead.letters(fold(run.commits[:-1]), run.commits[-1])


def the_letter(run: Driver) -> DeadLetter:
    (letter,) = letters_of(run)
    return letter


def unclaimed(run: Driver) -> list[Event]:
    return list(run.do(Fail("a", None, run.item("a").attempt, "", UNCLAIMED, "unclaimed")))


def test_work_that_is_given_up_leaves_a_letter_with_all_there_is_to_know() -> None:
    run = Driver(Phase("a", "price", input={"sku": ref("input.sku")}, retry=Retry(lost=1)), input={"sku": "A-7"})
    run.fail("a", LOST, cause="crashed", instance="one")
    run.fail("a", PERMANENT, instance="two")
    letter = the_letter(run)
    assert (letter.capability, letter.run, letter.plan, letter.phase, letter.item) == (
        "price",
        "run-1",
        "plan",
        "a",
        None,
    )
    assert json.loads(bytes(letter.payload)) == {"sku": "A-7"}
    lost, rejected = LOST.at("agent", "run-1", "a", None, 1), PERMANENT.at("agent", "run-1", "a", None, 2)
    assert letter.problem == rejected
    assert [(each.number, each.instance, each.cause, each.problem) for each in letter.attempts] == [
        (1, "one", "crashed", lost),
        (2, "two", "error", rejected),
    ]


def test_a_failure_that_is_tried_again_leaves_no_letter() -> None:
    run = Driver(Phase("a", "do"))
    run.fail("a", TRANSIENT)
    assert letters_of(run) == []


def test_each_item_that_is_given_up_leaves_its_own_letter_and_the_phase_none() -> None:
    run = Driver(Phase("a", "do", each="input"), input=["x", "y"])
    run.fail("a", PERMANENT, 1)
    assert [(letter.item, bytes(letter.payload)) for letter in letters_of(run)] == [(1, b'"y"')]
    run.fail("a", PERMANENT, 0)
    assert run.state.status == "failed"
    assert [letter.item for letter in letters_of(run)] == [0]


def test_a_rejected_gate_leaves_no_letter() -> None:
    run = Driver(Phase("gate", approval=Approval()), Phase("b", "do", after=["gate"]))
    run.answer("gate", approve=False)
    assert letters_of(run) == []


@pytest.mark.parametrize("phase", [Phase("a", "do", input=ref("input.x")), Phase("a", "do", each="input.x")])
def test_work_without_an_input_leaves_a_letter_without_a_payload(phase: Phase) -> None:
    letter = the_letter(Driver(phase, input={}))
    assert (letter.problem.code, bytes(letter.payload), letter.attempts) == ("unresolved", b"null", [])


def test_a_letter_is_open_until_its_work_is_on_its_way_again() -> None:
    run = Driver(Phase("a", "do"))
    run.fail("a")
    letter = the_letter(run)
    assert dead.is_open(letter, run.state)
    run.redrive()
    assert not dead.is_open(letter, run.state)
    run.complete("a")
    assert not dead.is_open(letter, run.state)


def test_work_that_dies_again_has_one_open_letter() -> None:
    run = Driver(Phase("a", "do"))
    run.fail("a")
    first = the_letter(run)
    run.redrive()
    run.fail("a")
    second = the_letter(run)
    assert (dead.is_open(first, run.state), dead.is_open(second, run.state)) == (False, True)


def test_work_that_nobody_took_twice_has_one_open_letter() -> None:
    run = Driver(Phase("a", "do"))
    unclaimed(run)
    first = the_letter(run)
    run.redrive()
    unclaimed(run)
    second = the_letter(run)
    assert (dead.is_open(first, run.state), dead.is_open(second, run.state)) == (False, True)


def test_a_letter_of_one_item_says_nothing_of_another() -> None:
    run = Driver(Phase("a", "do", each="input"), input=[1, 2])
    run.fail("a", PERMANENT, 0)
    letter = the_letter(run)
    run.complete("a", None, 1)
    assert dead.is_open(letter, run.state)
    run.redrive()
    run.complete("a", None, 0)
    assert not dead.is_open(letter, run.state)


def test_a_letter_survives_json() -> None:
    run = Driver(Phase("a", "do", each="input"), input=[{"x": 1}])
    run.fail("a", PERMANENT, 0)
    letter = the_letter(run)
    message = decode_envelope(encode(envelope(dead.LETTER, letter, id="1", source="test", time=BEGAN_AT)))
    assert dead.read(message) == letter


@pytest.mark.parametrize("body", [b"", b"\xff\x00\xfe", b"plain text", bytes(range(256))])
def test_an_unreadable_message_is_kept_byte_for_byte(body: bytes) -> None:
    unreadable = Unreadable("price", "bus.work.price.r.p.1", body, "not JSON", "pricing-1")
    message = decode_envelope(encode(envelope(dead.UNREADABLE, unreadable, id="1", source="test", time=BEGAN_AT)))
    assert dead.read(message) == unreadable


@pytest.mark.parametrize("kind", [dead.LETTER, dead.UNREADABLE])
@pytest.mark.parametrize("data", [b"{}", b"null", b"[]", b'{"capability": 1}'])
def test_any_other_record_is_malformed(kind: str, data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        dead.read(envelope(kind, msgspec.Raw(data), id="1", source="test", time=BEGAN_AT))
