"""What a handler asks now against what it asked then: matched by what it is, then by the order of the log."""

from __future__ import annotations

import msgspec

from bus.replay.asked import Asked, Departure, Interview, Place, Transcript

ONE: Place = ("a", 0, 1)
OTHER: Place = ("a", 1, 1)


def asked(what: str, value: object, position: int = 1) -> Asked:
    return Asked("work", what, raw(value), position, f"run-{position}")


def raw(value: object) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(value))


def said(found: list[Departure]) -> list[tuple[str, str]]:
    return [(each.change, each.what) for each in found]


def test_the_same_questions_in_any_order_are_the_same() -> None:
    interview = Interview(Transcript([asked("price", "tea", 1), asked("price", "milk", 2)], [ONE]), ONE)
    second, first = interview.ask("work", "price", raw("milk")), interview.ask("work", "price", raw("tea"))
    assert first is not None and second is not None
    assert (first.run, second.run) == ("run-1", "run-2")
    assert interview.departures() == []


def test_just_the_same_question_twice_gets_both_answers_in_order() -> None:
    interview = Interview(Transcript([asked("price", "tea", 1), asked("price", "tea", 2)], [ONE]), ONE)
    found = [interview.ask("work", "price", raw("tea")) for _ in range(3)]
    assert [each and each.run for each in found] == ["run-1", "run-2", None]
    assert said(interview.departures()) == [("more", "price")]


def test_a_new_question_does_not_take_the_answer_of_one_that_is_still_to_come() -> None:
    interview = Interview(Transcript([asked("price", "tea", 1), asked("price", "milk", 2)], [ONE]), ONE)
    assert interview.ask("work", "price", raw("salt")) is None
    assert interview.ask("work", "price", raw("tea")) is not None
    [changed] = interview.departures()
    assert changed.change == "changed" and changed.given is not None
    assert (changed.given.one, changed.given.other) == ("milk", "salt")


def test_what_is_missing_is_told_once_all_that_the_commit_began_were_made_again() -> None:
    transcript = Transcript(
        [asked("price", "tea", 1), asked("price", "milk", 2), asked("stock", "milk", 3)], [ONE, OTHER]
    )
    first, second = Interview(transcript, ONE), Interview(transcript, OTHER)
    assert first.ask("work", "price", raw("tea")) is not None
    assert first.departures() == []
    assert second.ask("work", "price", raw("milk")) is not None
    assert said(second.departures()) == [("fewer", "stock")]


def test_in_questions_true_is_not_one_and_one_point_zero_is() -> None:
    interview = Interview(Transcript([asked("price", {"n": 1})], [ONE]), ONE)
    assert interview.ask("work", "price", raw({"n": True})) is None
    assert interview.ask("work", "price", raw({"n": 1.0})) is not None
