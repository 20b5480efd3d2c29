"""What a handler does once, and what it saves: the notebook of its attempt, on its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from bus import Context, Done, MalformedMessage, NotDone, OutcomeUnknown, Refused, SettingsError, TooLarge
from bus.clock import utc_now
from bus.diagnosis import problem_of
from bus.errors import InvalidName, Unavailable
from bus.handlers.context import Pulse
from bus.handlers.notebook import Intended, Note, Notebook, Saved, Settled, Withdrawn


class Charged(msgspec.Struct, frozen=True):
    id: int


class Page:
    """Keeps what is written; raises the next of `failures` instead, if there is one that is not None."""

    def __init__(self, *failures: Exception | None) -> None:
        self.notes: list[Note] = []
        self.failures = list(failures)

    async def write(self, note: Note) -> None:
        await asyncio.sleep(0)
        self.write_now(note)

    def write_now(self, note: Note) -> None:
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure
        self.notes.append(note)

    @property
    def kinds(self) -> list[str]:
        return [type(note).__name__ for note in self.notes]


class Till:
    """Something outside: counts how often it was asked for money, and with which keys."""

    def __init__(self, *failures: Exception) -> None:
        self.keys: list[str] = []
        self.failures = list(failures)

    async def charge(self, key: str) -> Charged:
        return self.charge_now(key)

    def charge_now(self, key: str) -> Charged:
        self.keys.append(key)
        if self.failures:
            raise self.failures.pop(0)
        return Charged(7)


def at(page: Page, effects: dict[str, msgspec.Raw | None] | None = None, pulse: Pulse | None = None) -> Context:
    """The context of an attempt that finds these effects."""
    return Context(run="r", phase="pay", pulse=pulse or Pulse(), notebook=Notebook(effects, None, page))


async def test_an_effect_is_written_down_before_and_after() -> None:
    page, till = Page(), Till()

    async def charge(key: str) -> Charged:
        assert page.kinds == ["Intended"]
        return await till.charge(key)

    assert await at(page).once("charge", charge, gives=Charged) == Charged(7)
    assert page.notes[0] == Intended("charge")
    assert page.kinds == ["Intended", "Settled"]
    assert till.keys == ["r/pay/charge"]


async def test_what_was_done_before_is_not_done_again() -> None:
    page, till = Page(), Till()
    context = at(page, {"mail": msgspec.Raw(b'{"id":1}')})
    assert await context.once("mail", till.charge, gives=Charged) == Charged(1)
    assert [await context.once("charge", till.charge) for _ in range(3)] == [{"id": 7}] * 3
    assert (len(till.keys), page.kinds) == (1, ["Intended", "Settled"])


async def test_the_outcome_is_the_same_value_the_first_time_and_later() -> None:
    context = Context()
    first = await context.once("pair", lambda _: (1, "two"))
    assert first == await context.once("pair", lambda _: None) == [1, "two"]


async def test_a_plain_act_and_a_plain_reconcile_will_do() -> None:
    page, till = Page(), Till()
    assert await at(page, {"charge": None}).once("charge", till.charge_now, lambda _: NotDone()) == {"id": 7}
    assert page.kinds == ["Withdrawn", "Intended", "Settled"]


async def test_what_was_begun_and_not_settled_is_unknown() -> None:
    page, till = Page(), Till()
    with pytest.raises(OutcomeUnknown, match="r/pay/charge") as raised:
        await at(page, {"charge": None}).once("charge", till.charge)
    assert (till.keys, page.notes) == ([], [])
    problem = problem_of(raised.value, utc_now())
    assert (problem.code, problem.error_class) == ("outcome_unknown", "permanent")


async def test_who_finds_out_that_it_happened_says_what_came_of_it() -> None:
    page, till = Page(), Till()
    asked: list[str] = []

    async def look(key: str) -> Done:
        asked.append(key)
        return Done(Charged(3))

    context = at(page, {"charge": None})
    assert await context.once("charge", till.charge, look, gives=Charged) == Charged(3)
    assert await context.once("charge", till.charge, look, gives=Charged) == Charged(3)
    assert (asked, till.keys, page.kinds) == (["r/pay/charge"], [], ["Settled"])


@pytest.mark.parametrize("how", ["returned", "raised", "the class"])
async def test_who_finds_out_that_it_did_not_happen_has_it_done(how: str) -> None:
    def look(_: str) -> Any:
        if how == "raised":
            raise NotDone("no such charge")
        return NotDone("no such charge") if how == "returned" else NotDone

    page, till = Page(), Till()
    await at(page, {"charge": None}).once("charge", till.charge, look)
    assert page.notes[0] == Withdrawn("charge", "" if how == "the class" else "no such charge")
    assert (page.kinds, len(till.keys)) == (["Withdrawn", "Intended", "Settled"], 1)


async def test_who_can_not_find_out_is_asked_again() -> None:
    page, till = Page(), Till()
    context = at(page, {"charge": None})

    def look(_: str) -> Done:
        raise ConnectionError

    for _ in range(2):
        with pytest.raises(ConnectionError):
            await context.once("charge", till.charge, look)
    assert (till.keys, page.notes) == ([], [])


async def test_an_answer_that_is_neither_is_a_mistake_of_the_author() -> None:
    with pytest.raises(SettingsError, match="return Done"):
        await at(Page(), {"charge": None}).once("charge", Till().charge, lambda _: True)


async def test_an_act_that_says_it_had_no_effect_may_be_tried_again() -> None:
    page, till = Page(), Till(NotDone("declined"))
    context = at(page)
    with pytest.raises(NotDone):
        await context.once("charge", till.charge)
    await context.once("charge", till.charge)
    assert page.notes[1] == Withdrawn("charge", "declined")
    assert page.kinds == ["Intended", "Withdrawn", "Intended", "Settled"]


async def test_after_any_other_failure_nobody_knows() -> None:
    page, till = Page(), Till(TimeoutError())
    context = at(page)
    with pytest.raises(TimeoutError):
        await context.once("charge", till.charge)
    with pytest.raises(OutcomeUnknown):
        await context.once("charge", till.charge)
    assert (len(till.keys), page.kinds) == (1, ["Intended"])


async def test_an_attempt_that_lost_its_place_does_not_act() -> None:
    page, till = Page(Refused("attempt 1 is over"), Refused("attempt 1 is over")), Till()
    with pytest.raises(asyncio.CancelledError):
        await at(page).once("charge", till.charge)
    assert till.keys == []


async def test_a_handler_nobody_waits_for_does_not_act_and_leaves_nothing_unknown() -> None:
    page, till, pulse = Page(), Till(), Pulse()
    pulse.end("no result within 5 s")
    with pytest.raises(asyncio.CancelledError):
        await at(page, pulse=pulse).once("charge", till.charge)
    assert (till.keys, page.kinds) == ([], ["Intended", "Withdrawn"])


async def test_a_handler_that_is_cancelled_before_it_acts_leaves_nothing_unknown() -> None:
    page, till = Page(), Till()
    task = asyncio.ensure_future(at(page).once("charge", till.charge))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (till.keys, page.kinds) == ([], ["Withdrawn"])


async def test_an_outcome_that_could_not_be_stored_is_not_lost_while_the_attempt_lasts() -> None:
    page, till = Page(None, Unavailable("gone")), Till()
    context = at(page)
    with pytest.raises(Unavailable):
        await context.once("charge", till.charge)
    assert await context.once("charge", till.charge) == {"id": 7}
    assert (len(till.keys), page.kinds) == (1, ["Intended", "Settled"])


async def test_an_act_that_returns_what_is_not_json_has_happened_all_the_same() -> None:
    page = Page()
    context = at(page)
    with pytest.raises(MalformedMessage, match="has happened, but what its act returned can't be written"):
        await context.once("charge", lambda _: object())
    assert page.kinds == ["Intended"]


async def test_an_outcome_of_another_type_is_kept_and_refused() -> None:
    page = Page()
    with pytest.raises(MalformedMessage, match="Charged"):
        await at(page).once("charge", lambda _: {"no": "id"}, gives=Charged)
    assert page.kinds == ["Intended", "Settled"]


async def test_two_with_one_key_at_the_same_time_are_one_too_many() -> None:
    page, till = Page(), Till()
    context = at(page)
    answers = await asyncio.gather(*(context.once("charge", till.charge) for _ in range(2)), return_exceptions=True)
    assert answers[0] == {"id": 7}
    assert isinstance(answers[1], Refused)
    assert len(till.keys) == 1


@pytest.mark.parametrize("key", ["", "x" * 201, "two\nlines", "\ud800"])
def test_a_key_that_can_not_be_one_is_refused(key: str) -> None:
    with pytest.raises(InvalidName):
        Context().once(key, lambda _: None)


def in_a_thread(call: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(call()))
    thread.start()
    thread.join()
    return found[0]


def test_a_plain_function_just_calls_it() -> None:
    page, till = Page(), Till()
    context = at(page, {"mail": None})
    assert in_a_thread(lambda: context.once("charge", till.charge_now, gives=Charged)) == Charged(7)
    # Whatever is there to be awaited, is.
    assert in_a_thread(lambda: context.once("second", till.charge)) == {"id": 7}
    assert in_a_thread(lambda: context.once("mail", till.charge_now, lambda _: Done(1))) == 1
    in_a_thread(lambda: context.save([1]))
    assert page.kinds == ["Intended", "Settled"] * 2 + ["Settled", "Saved"]


def test_an_act_of_a_plain_function_may_run_an_event_loop_of_its_own() -> None:
    async def outside() -> int:
        return 3

    assert Context().once("charge", lambda _: asyncio.run(outside())) == 3


async def test_what_is_saved_is_there_for_who_goes_on() -> None:
    page = Page()
    context = at(page)
    assert context.saved() is None
    await context.save(Charged(1))
    await context.save(Charged(2))
    assert context.saved() == {"id": 2}
    assert context.saved(Charged) == Charged(2)
    assert page.notes[-1] == Saved(msgspec.Raw(b'{"id":2}'))
    with pytest.raises(MalformedMessage):
        context.saved(int)


async def test_what_is_saved_is_small_and_json() -> None:
    with pytest.raises(TooLarge):
        await Context().save("x" * 65_536)
    with pytest.raises(MalformedMessage):
        await Context().save(object())


def test_work_that_is_begun_again_and_what_undoes_it_have_keys_of_their_own() -> None:
    keys = [
        Context(run="r", phase="p").effect_key,
        Context(run="r", phase="p", item=3).effect_key,
        Context(run="r", phase="p", begun=2).effect_key,
        Context(run="r", phase="p", item=3, begun=2).effect_key,
        Context(run="r", phase="p", begun=2, undoes=True).effect_key,
    ]
    assert keys == ["r/p", "r/p:3", "r/p@2", "r/p:3@2", "r/p@2~undo"]


def test_settled_notes_carry_the_outcome() -> None:
    page = Page()
    at(page).once("charge", lambda _: 7)
    assert page.notes[1] == Settled("charge", msgspec.Raw(b"7"))
