"""What changed between two documents, and whom it breaks: rule by rule."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

import msgspec
import pytest
from msgspec import UNSET, Meta, Struct, UnsetType, defstruct

from bus.schema import document
from bus.schema.compatibility import changes
from bus.schema.document import Document, Entry, Offer

Fields = list[Any]
DATA, READERS = ("old_data",), ("old_readers",)
BOTH = ("old_data", "old_readers")
Aware = Annotated[datetime, Meta(tz=True)]


class Pair(Struct, array_like=True):
    first: int
    second: str


class Triple(Struct, array_like=True):
    first: int
    second: str
    third: Any


class Dog(Struct, tag="dog"):
    name: str


class Cat(Struct, tag="cat"):
    name: str


class Bird(Struct, tag="bird"):
    name: str


class Tree(Struct):
    leaf: str
    branches: list[Tree] = []


class Bush(Struct):
    leaf: int
    branches: list[Bush] = []


def written(type: Any, wire: str = "thing.v1", upcasters: dict[str, str] | None = None, **offers: Offer) -> Document:
    made = document.document({wire: Entry("data", type)}, upcasters or {}, offers)
    return document.decode(document.encode(made))


def thing(*fields: Any, forbid: bool = False) -> Any:
    return defstruct("Thing", list(fields), kw_only=True, forbid_unknown_fields=forbid)


def said(old: Document, new: Document) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(change.where, change.what, change.breaks) for change in changes(old, new)]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (str, str | None, [("can be null now", READERS)]),
        (str | None, str, [("can't be null any more", DATA)]),
        (str, int, [("can be integer now", READERS), ("can't be string any more", DATA)]),
        (int, float, [("can be a fraction now", READERS)]),
        (float, int, [("must be a whole number now", DATA)]),
        (int | float, float, []),
        (int, Any, [("was integer, and can be anything now", READERS)]),
        (Any, int | None, [("was anything, and must be integer or null now", DATA)]),
        (Any, msgspec.Raw, []),
        (Literal["a", "b"], Literal["a", "c"], [("can be 'c' now", READERS), ("can't be 'b' any more", DATA)]),
        (Literal["a"], str, [("is not one of a few values any more", READERS)]),
        (str, Literal["a"], [("is one of a few values now", DATA)]),
        (Literal[1, "a"], Literal["a"], [("can't be integer any more", DATA)]),
        (
            Annotated[int, Meta(ge=1, lt=9)],
            Annotated[int, Meta(gt=1, le=9)],
            [
                ("its greatest value is 9 and was beyond 9", READERS),
                ("its least value is beyond 1 and was 1", DATA),
            ],
        ),
        (str, Annotated[str, Meta(max_length=9)], [("its greatest length is 9 and was not bounded", DATA)]),
        (
            Annotated[str, Meta(pattern="^a")],
            Annotated[str, Meta(pattern="^b")],
            [("has pattern '^b' instead of '^a'", BOTH)],
        ),
        (str, Aware, [("has format 'date-time' now", DATA)]),
        (Aware, str, [("has no format any more, which was 'date-time'", READERS)]),
        (str, bytes, [("has contentEncoding 'base64' now", DATA)]),
        (dict[str, int], dict[str, str], [("can be string now", READERS), ("can't be integer any more", DATA)]),
        (dict[str, Any], dict[str, int], [("was anything, and must be integer now", DATA)]),
        (dict[str, int], Tree, [("has members with names of its own instead of any", BOTH)]),
        (list[int], list[int | None], [("can be null now", READERS)]),
        (list[int], tuple[int, ...], []),
        (
            tuple[int, ...],
            Pair,
            [("has a type for each item now", BOTH), ("its least number of items is 2 and was not bounded", DATA)],
        ),
        (
            tuple[int, str],
            tuple[int, str, str],
            [
                ("its greatest number of items is 3 and was 2", READERS),
                ("its least number of items is 3 and was 2", DATA),
                ("is new", ()),
            ],
        ),
        (Pair, Triple, [("its least number of items is 3 and was 2", DATA), ("is new", ())]),
        (Dog | Cat, Dog | Bird, [("can be bird now", READERS), ("can't be cat any more", DATA)]),
        (Dog, Dog | Cat, [("can be cat now", READERS)]),
        (Dog | Cat | None, Dog, [("can't be cat any more", DATA), ("can't be null any more", DATA)]),
        (Tree, Tree | None, [("can be null now", READERS)]),
    ],
)
def test_a_member_that_takes_other_values(before: Any, after: Any, expected: list[Any]) -> None:
    found = said(written(thing(("member", before))), written(thing(("member", after))))
    assert sorted((what, breaks) for _, what, breaks in found) == sorted(expected)
    assert all(where.startswith(("thing.v1.member", "Pair", "Triple")) for where, _, _ in found)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (thing(), thing(("x", int)), [(".x", "is new and required", DATA)]),
        (thing(), thing(("x", int, 0)), [(".x", "is new and optional", ())]),
        (thing(forbid=True), thing(("x", int, 0), forbid=True), [(".x", "is new and optional", READERS)]),
        (thing(("x", int)), thing(), [(".x", "is gone", READERS)]),
        (thing(("x", int, 0)), thing(), [(".x", "is gone", ())]),
        (thing(("x", int, 0), forbid=True), thing(forbid=True), [(".x", "is gone", DATA)]),
        (thing(), thing(forbid=True), [("", "members it does not know are refused now", ())]),
        (thing(forbid=True), thing(), [("", "members it does not know are ignored now", ())]),
        (thing(("x", int)), thing(("x", int, 0)), [(".x", "is optional now", READERS)]),
        (thing(("x", int, 0)), thing(("x", int)), [(".x", "is required now", DATA)]),
        (thing(("x", int, 0)), thing(("x", int, 5)), [(".x", "means 5 where it is left out, and meant 0", BOTH)]),
        (
            thing(("x", int | UnsetType, UNSET)),
            thing(("x", int, 5)),
            [(".x", "means 5 where it is left out, and meant nothing", BOTH)],
        ),
        (thing(("x", int), ("y", int)), thing(("y", int), ("x", int)), []),
    ],
)
def test_members_that_come_go_or_may_be_left_out(before: Any, after: Any, expected: list[Any]) -> None:
    expected = [(f"thing.v1{where}", what, breaks) for where, what, breaks in expected]
    assert said(written(before), written(after)) == expected


def test_a_type_that_holds_itself_is_compared_once() -> None:
    expected = [("thing.v1.leaf", "can be integer now", READERS), ("thing.v1.leaf", "can't be string any more", DATA)]
    assert said(written(Tree), written(Bush)) == expected


def test_names_of_classes_and_their_descriptions_are_no_change() -> None:
    class Other(Struct):
        """Something else."""

        leaf: str
        branches: list[Tree] = []

    assert said(written(list[Tree]), written(list[Other])) == []


def test_a_change_of_something_shared_is_said_once_with_all_that_have_it() -> None:
    def both(inner: Any) -> Document:
        one, other = defstruct("One", [("part", inner)]), defstruct("Other", [("parts", list[inner])])
        entries = {"one.v1": Entry("data", one), "other.v1": Entry("data", other)}
        return document.decode(document.encode(document.document(entries, {}, {})))

    [change] = changes(both(defstruct("Part", [("x", int)])), both(defstruct("Part", [("x", int, 0)])))
    assert (change.where, change.what, change.types) == ("Part.x", "is optional now", ("one.v1", "other.v1"))


def test_a_type_that_is_gone_breaks_old_data_and_a_new_one_nobody() -> None:
    [gone, new] = changes(written(Tree, "thing.v1"), written(Tree, "thing.v2"))
    assert (gone.where, gone.breaks) == ("thing.v1", DATA)
    assert (new.where, new.breaks) == ("thing.v2", ())


def test_a_new_version_beside_an_upcaster_breaks_nobody() -> None:
    new = written(Bush, "thing.v2", {"thing.v1": "thing.v2"})
    [change] = changes(written(Tree), new)
    assert (change.where, change.breaks) == ("thing.v1", ())
    assert "is thing.v2 now, read through its upcaster" in change.what
    [lost] = changes(new, written(Bush, "thing.v2"))
    assert (lost.where, lost.what, lost.breaks) == ("thing.v1", "can't be read any more: its upcaster is gone", DATA)


def priced(version: str) -> Any:
    return defstruct("Price", [(version, int)], tag=f"price.{version}", tag_field="type")


def shop(version: str, upcasters: dict[str, str]) -> Document:
    price = priced(version)
    offers = {"price": Offer("pricing", list[price], price)}
    entries = {f"price.{version}": Entry("value", price)}
    return document.decode(document.encode(document.document(entries, upcasters, offers)))


def test_a_message_of_a_new_version_is_read_by_new_agents_and_refused_by_old_ones() -> None:
    found = changes(shop("v1", {}), shop("v2", {"price.v1": "price.v2"}))
    assert [(change.where, change.breaks) for change in found] == [
        ("capability price gives", READERS),
        ("capability price takes[]", READERS),
        ("price.v1", READERS),
    ]
    without = {side for change in changes(shop("v1", {}), shop("v2", {})) for side in change.breaks}
    assert without == set(BOTH)


def test_what_a_capability_takes_and_gives_is_compared() -> None:
    def shop(takes: Any, gives: Any) -> Document:
        return written(Tree, price=Offer("pricing", takes, gives))

    found = said(shop(dict[str, int], int), shop(dict[str, float], int | None))
    assert found == [
        ("capability price gives", "can be null now", READERS),
        ("capability price takes.*", "can be a fraction now", READERS),
    ]
    assert said(shop(int, int), written(Tree)) == [("capability price", "is gone: work for it finds nobody", DATA)]
    assert said(written(Tree), shop(int, int)) == [("capability price", "is new", ())]


def test_a_type_that_moves_breaks_both() -> None:
    moved = document.decode(document.encode(document.document({"thing.v1": Entry("event", Tree)}, {}, {})))
    assert said(written(Tree), moved) == [("thing.v1", "is found as event and not as data any more", BOTH)]
