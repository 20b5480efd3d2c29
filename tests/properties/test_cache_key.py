"""The key of the cache: the same for the same input, another for any other, and the difference is named."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from bus.cache.cache import Entry, components, hashed, key, why
from bus.rules.events import Source
from tests.driver import BEGAN_AT

FIXED = {"capability": "c", "code": "1"}

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abé.", max_size=3), inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(st.text("abé.", max_size=3), values, max_size=6)


def through_the_log(value: object) -> Any:
    """As a worker gets it: JSON, decoded."""
    return msgspec.json.decode(msgspec.json.encode(value))


def shuffled(value: Any, order: random.Random) -> Any:
    if isinstance(value, dict):
        names = list(value)
        order.shuffle(names)
        return {name: shuffled(value[name], order) for name in names}
    return [shuffled(each, order) for each in value] if isinstance(value, list) else value


def entry(parts: dict[str, str]) -> Entry:
    source = Source("run-0", "a", 1, BEGAN_AT)
    return Entry(capability="c", key=key(parts), components=parts, source=source, position=1)


@given(values, st.randoms(use_true_random=False))
def test_the_order_of_keys_is_no_difference(value: Any, order: random.Random) -> None:
    assert key(components(FIXED, value)) == key(components(FIXED, shuffled(value, order)))


@given(values)
def test_the_way_through_the_log_is_no_difference(value: Any) -> None:
    once = through_the_log(value)
    assert key(components(FIXED, once)) == key(components(FIXED, through_the_log(once)))


@given(values, values)
def test_two_inputs_have_one_key_only_if_they_are_one(one: Any, other: Any) -> None:
    one, other = through_the_log(one), through_the_log(other)
    same = json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
    assert (key(components(FIXED, one)) == key(components(FIXED, other))) == same


@given(objects, st.data())
def test_a_field_that_changed_is_named_and_no_other(given: dict[str, Any], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*given, "new"]))
    before, after = components(FIXED, given), components(FIXED, given | {name: ["another", given.get(name)]})
    assert why(after, entry(before)) == f"input.{name} changed"
    assert why(before, entry(after)) == f"input.{name} changed"


@given(objects, st.sampled_from(sorted(FIXED)))
def test_what_changed_besides_the_input_is_named(given: dict[str, Any], name: str) -> None:
    before = components(FIXED, given)
    assert why(components(FIXED | {name: "another"}, given), entry(before)) == f"{name} changed"


@given(objects)
def test_where_nothing_changed_nothing_is_said_to_have_changed(given: dict[str, Any]) -> None:
    parts = components(FIXED, given)
    assert why(parts, entry(parts)) == "what was cached is gone"
    assert why(parts, entry(parts), expired=True) == "what was cached has expired"
    assert why(parts, None) == "it is the first time"


def test_numbers_and_texts_count_as_they_are_written() -> None:
    # A handler that gets plain JSON sees these differences.
    assert len({hashed(value) for value in (1, 1.0, True, "1", [1], "e\u0301", "é", None, 0.0, -0.0)}) == 10


def test_of_very_many_changes_only_some_are_named() -> None:
    before = components(FIXED, dict.fromkeys("abcde", 1))
    assert why(components(FIXED, dict.fromkeys("abcde", 2)), entry(before)) == (
        "input.a, input.b, input.c and 2 more changed"
    )


def test_an_input_with_very_many_fields_is_one_component() -> None:
    wide = {f"field{number}": number for number in range(65)}
    assert components({}, wide).keys() == {"input"}
    assert why(components({}, wide | {"field0": 1}), entry(components({}, wide))) == "input changed"
