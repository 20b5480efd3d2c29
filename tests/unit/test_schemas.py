"""Names, versions and upcasters, without a server."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from bus import SettingsError, message
from bus.errors import InvalidName, MalformedMessage
from bus.format import messages
from bus.format.envelope import envelope
from bus.format.schemas import Catalogue, Version, version
from bus.handlers.context import Context
from bus.handlers.handling import perform
from bus.problem import Problem
from bus.rules import dead, events
from bus.rules.events import COMMIT, EventReader, PhaseReady, UnknownEvent
from tests.driver import BEGAN_AT


class Price(msgspec.Struct, tag_field="type", tag="price.v3", frozen=True):
    cents: int
    currency: str
    note: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Order(msgspec.Struct, frozen=True):
    prices: list[Price]


def catalogue() -> Catalogue:
    """Price has been renamed a member, and has got one."""
    found = Catalogue.of(Price)

    @found.upcaster("price.v1")
    def in_cents(old: dict[str, Any]) -> dict[str, Any]:
        return {"cents": round(old.pop("euros") * 100), **old}

    @found.upcaster("price.v2")
    def with_currency(old: dict[str, Any]) -> dict[str, Any]:
        old["currency"] = "EUR"
        return old

    return found


@pytest.mark.parametrize("wire", ["price.v1", "phase.attempt_failed.v12", "a-b.c9.v9999", "1.v1"])
def test_a_type_s_name_is_names_joined_by_dots_and_a_version(wire: str) -> None:
    assert str(version(wire)) == wire


@pytest.mark.parametrize(
    "wire", ["", "price", "price.v0", "price.v01", "price.V1", "Price.v1", ".v1", "a..b.v1", "price.v1 ", "é.v1", "x.v"]
)
def test_any_other_name_is_refused_and_says_how_to_write_one(wire: str) -> None:
    for register in (lambda: Catalogue().add(wire, int), lambda: Catalogue().upcaster(wire)):
        with pytest.raises(InvalidName, match=r"such as 'price\.v1'"):
            register()
    assert Catalogue.of(Price).standing(wire) == "unknown"


def test_a_version_has_a_next_one() -> None:
    assert version("price.v9").next == Version("price", 10)


def test_a_name_can_be_used_once_and_must_be_the_type_s_own_tag() -> None:
    found = catalogue()
    with pytest.raises(SettingsError, match="is there already, as Price"):
        found.add("price.v3", msgspec.defstruct("Other", []))
    with pytest.raises(SettingsError, match=r"tagged 'price\.v3'"):
        found.add("cost.v1", Price)
    with pytest.raises(SettingsError, match=r"has an upcaster, so it is read as price\.v2"):
        found.add("price.v1", int)
    with pytest.raises(SettingsError, match="is read as it is"):
        found.upcaster("price.v3")
    with pytest.raises(SettingsError, match="two upcasters"):
        found.upcaster("price.v1")(lambda old: old)


def test_a_definition_that_runs_twice_replaces_itself() -> None:
    found = Catalogue()
    for member in ("euros", "millions"):  # as a cell of a notebook that was changed and run again
        found.add("cost.v2", msgspec.defstruct("Cost", [(member, int)], tag="cost.v2", tag_field="type", module="cell"))
        found.upcaster("cost.v1")(lambda old, member=member: {member: 1})  # type: ignore[misc]
        assert getattr(found.read("cost.v1", b"{}"), member) == 1


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        ("price.v1", b'{"type": "price.v1", "euros": 1.25, "note": [1.0]}'),
        ("price.v2", b'{"type": "price.v2", "cents": 125, "note": [1.0]}'),
        ("price.v3", b'{"type": "price.v3", "cents": 125, "currency": "EUR", "note": [1.0]}'),
    ],
)
def test_every_version_is_read_as_the_newest(wire: str, body: bytes) -> None:
    price = catalogue().read(wire, body)
    assert (price.cents, price.currency) == (125, "EUR")
    assert json.loads(bytes(price.note)) == [1.0]


def test_a_catalogue_says_how_it_stands_to_a_type() -> None:
    found = catalogue()
    found.upcaster("cost.v1")(lambda old: old)
    known = {wire: found.standing(wire) for wire in ("price.v3", "price.v1", "price.v4", "cost.v1", "cost.v2", "x")}
    assert known == {
        "price.v3": "known",
        "price.v1": "older",
        "price.v4": "newer",
        "cost.v1": "unknown",  # its chain of upcasters ends nowhere
        "cost.v2": "unknown",
        "x": "unknown",
    }
    assert found.upcasters == {"price.v1": "price.v3", "price.v2": "price.v3"}


@pytest.mark.parametrize(
    ("wire", "body", "says"),
    [
        ("price.v1", b'{"type": "price.v1"}', "its upcaster raised KeyError: 'euros'"),
        ("price.v1", b'{"euros": "a"}', "its upcaster raised TypeError"),
        ("price.v1", b"[]", "list instead of an object"),
        ("price.v1", b"{", "not a price"),
        ("price.v1", b'{"euros": 1, "currency": 1, "note": 1', "not a price"),
        ("price.v2", b'{"cents": "many"}', "not what its upcasters make of it"),
        ("price.v4", b"{}", "there is no type"),
        ("price.v1", b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not a price"),
    ],
)
def test_what_is_not_what_it_says_is_malformed_after_its_upcasters_too(wire: str, body: bytes, says: str) -> None:
    with pytest.raises(MalformedMessage, match=says):
        catalogue().read(wire, body)


def test_an_upcaster_that_returns_something_else_is_said() -> None:
    found = Catalogue.of(Price)
    found.upcaster("price.v2")(lambda old: None)  # type: ignore[arg-type,return-value]
    with pytest.raises(MalformedMessage, match="returned NoneType and not an object"):
        found.read("price.v2", b"{}")


OLD = {"type": "price.v1", "euros": 2.0}
NEWEST = Price(200, "EUR")


def test_values_are_found_wherever_they_are_inside_others() -> None:
    given = {"prices": [OLD, {"type": "price.v3", "cents": 5, "currency": "EUR"}]}
    before = json.dumps(given)
    order = catalogue().convert(given, Order)
    assert [price.cents for price in order.prices] == [200, 5]
    assert catalogue().decode(before.encode(), Order) == order
    assert json.dumps(given) == before


def test_a_value_of_another_type_raises_what_it_raised_before() -> None:
    for value in ({"type": "price.v9"}, {"type": 1}, {"type": "price.v3"}, [], 1, {"prices": [{"type": "x"}]}):
        with pytest.raises(msgspec.ValidationError):
            catalogue().convert(value, Order)
        with pytest.raises(msgspec.ValidationError):
            catalogue().decode(json.dumps(value).encode(), Order)


def test_a_message_type_says_in_its_data_what_it_is() -> None:
    with pytest.raises(SettingsError, match="does not say in its data what it is: declare it like `class Order"):
        message(Order)
    with pytest.raises(SettingsError, match="does not say"):
        message(msgspec.defstruct("Other", [], tag="price.v1", tag_field="kind"))
    with pytest.raises(InvalidName):
        message(msgspec.defstruct("Other", [], tag="price", tag_field="type"))


async def test_a_handler_gets_the_newest_version_of_what_was_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    from bus import Agent
    from bus.handlers import handling

    agent = Agent("pricing")

    @agent.capability("price")
    def price(query: Price) -> int:
        return query.cents

    capability = agent.capabilities["price"]
    refused = await perform(capability, OLD, Context(), timeout_s=5)
    assert isinstance(refused, Problem)
    assert refused.code == "undecodable"
    monkeypatch.setattr(handling, "MESSAGES", catalogue())
    assert await perform(capability, OLD, Context(), timeout_s=5) == b"200"
    broken = await perform(capability, {"type": "price.v1"}, Context(), timeout_s=5)
    assert isinstance(broken, Problem)
    assert "KeyError: 'euros'" in broken.detail


def test_the_decorators_of_the_library_are_those_of_its_own_catalogue() -> None:
    assert messages.upcaster == messages.MESSAGES.upcaster
    assert not messages.MESSAGES.types


class ReadyNow(PhaseReady, tag="phase.ready.v2", frozen=True, kw_only=True):
    """As of the next version: there is a reason for it."""

    why: str


def next_version() -> Catalogue:
    """The events of a version to come."""
    found = Catalogue.of(*[type for type in events.Known.__args__ if type is not PhaseReady], ReadyNow)
    found.upcaster("phase.ready.v1")(lambda old: {**old, "why": "because"})
    return found


def test_events_of_all_versions_in_one_commit_are_read_in_their_order() -> None:
    written = [
        {"type": "phase.ready.v1", "phase": "a", "attempt": 1},
        {"type": "phase.ready.v2", "phase": "b", "attempt": 1, "why": "new"},
        {"type": "phase.ready.v3", "phase": "c"},
        {"type": "run.completed.v1"},
        {"type": "phase.dreamt.v1"},
    ]
    stored = envelope(COMMIT, {"events": written}, id="1", source="test", time=BEGAN_AT, runid="run-1")
    unknown: list[str] = []
    first, second, *rest = EventReader(next_version()).read(stored, unknown.append)
    assert first == ReadyNow(phase="a", attempt=1, why="because")
    assert second == ReadyNow(phase="b", attempt=1, why="new")
    assert [events.type_of(event) for event in rest] == ["phase.ready.v3", "run.completed.v1", "phase.dreamt.v1"]
    assert isinstance(rest[0], UnknownEvent)
    assert unknown == ["phase.ready.v3", "phase.dreamt.v1"]


def test_an_old_event_that_is_malformed_stays_so() -> None:
    stored = envelope(COMMIT, {"events": [{"type": "phase.ready.v1"}]}, id="1", source="x", time=BEGAN_AT, runid="r")
    with pytest.raises(MalformedMessage, match="missing required field `phase`"):
        EventReader(next_version()).read(stored, lambda _type: None)


def test_a_dead_letter_of_a_newer_version_is_not_taken_for_one_of_this() -> None:
    letter = envelope("dead.letter.v2", {}, id="1", source="x", time=BEGAN_AT)
    with pytest.raises(MalformedMessage, match=r"there is no type 'dead\.letter\.v2'"):
        dead.read(letter)
