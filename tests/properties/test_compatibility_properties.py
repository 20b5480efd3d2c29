"""What the check calls harmless is read: types are made up, changed, and their values decoded by the other side."""

from __future__ import annotations

import json
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import count
from typing import Annotated, Any, Literal

import msgspec
from hypothesis import event, given, settings
from hypothesis import strategies as st
from msgspec import Meta

from bus.schema import document
from bus.schema.compatibility import changes
from bus.schema.document import Document, Entry
from tests.unit.test_compatibility import Aware

bounded = settings(deadline=None, max_examples=150)
thorough = settings(deadline=None, max_examples=1_200)
numbers = count()
_NAMES = ["a", "b", "c", "d"]


@dataclass(frozen=True)
class Kind:
    """A type: what it is in Python, and the JSON values that are written of it."""

    type: Any
    values: st.SearchStrategy[Any] = field(hash=False)


def scalars() -> st.SearchStrategy[Kind]:
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    small = st.integers(-3, 3)
    return st.one_of(
        st.sampled_from(
            [
                Kind(int, st.integers(-100, 100)),
                Kind(float, st.floats(-100, 100) | st.integers(-9, 9)),
                Kind(str, text),
                Kind(bool, st.booleans()),
                Kind(None, st.none()),
                Kind(Aware, st.just("2026-01-01T00:00:00Z")),
                Kind(bytes, st.just("AAEC")),
                Kind(Any, st.one_of(small, text, st.none(), st.lists(small, max_size=2))),
            ]
        ),
        st.lists(st.sampled_from(["x", "y", "z"]), min_size=1, unique=True).map(
            lambda members: Kind(Literal[tuple(members)], st.sampled_from(members))
        ),
        st.tuples(small, st.integers(0, 4)).map(
            lambda bound: Kind(
                Annotated[int, Meta(ge=bound[0], le=bound[0] + bound[1])], st.integers(bound[0], bound[0] + bound[1])
            )
        ),
        st.tuples(st.integers(0, 2), st.integers(0, 2)).map(
            lambda bound: Kind(
                Annotated[str, Meta(min_length=bound[0], max_length=bound[0] + bound[1])],
                st.text("ab", min_size=bound[0], max_size=bound[0] + bound[1]),
            )
        ),
    )


Pair = tuple[Kind, Kind]
"""A type before and after a change."""


def struct(names: list[str], kinds: list[Kind], required: list[bool], tag: str | None, *, shape: str) -> Kind:
    fields: list[Any] = []
    always: dict[str, st.SearchStrategy[Any]] = {} if tag is None else {"type": st.just(tag)}
    left_out: dict[str, st.SearchStrategy[Any]] = {}
    for name, kind, is_required in sorted(zip(names, kinds, required, strict=True), key=lambda each: not each[2]):
        if is_required:
            fields.append((name, kind.type))
            always[name] = kind.values
        else:
            fields.append((name, kind.type | msgspec.UnsetType if kind.type is not Any else Any, msgspec.UNSET))
            left_out[name] = kind.values
    made = msgspec.defstruct(
        f"Struct{next(numbers)}",
        fields,
        tag=tag,
        array_like=shape == "array" and tag is None,
        forbid_unknown_fields=shape == "closed",
    )
    if made.__struct_config__.array_like:
        places = [*always.values(), *left_out.values()]
        return Kind(made, st.integers(len(always), len(places)).flatmap(lambda size: st.tuples(*places[:size])))
    return Kind(made, st.fixed_dictionaries(always, optional=left_out))


@st.composite
def structs(draw: st.DrawFn, inner: st.SearchStrategy[Pair], tag: str | None = None) -> Pair:
    """Members are added, removed, changed, required or not."""
    pool = draw(st.lists(st.sampled_from(_NAMES), unique=True, max_size=3))
    members = {name: draw(inner) for name in pool}
    mostly = st.sampled_from([True, True, True, False])
    shape = draw(st.sampled_from(["open", "open", "closed", "array"]))
    required = {name: draw(st.booleans()) for name in pool}
    sides = []
    for side in (0, 1):
        names = [name for name in pool if draw(mostly)]
        is_required = [required[name] if draw(mostly) else not required[name] for name in names]
        sides.append(struct(names, [members[name][side] for name in names], is_required, tag, shape=shape))
        shape = shape if draw(mostly) else draw(st.sampled_from(["open", "closed", "array"]))
    return sides[0], sides[1]


@st.composite
def tagged(draw: st.DrawFn, inner: st.SearchStrategy[Pair]) -> Pair:
    tags = ["one", "two", "three"]
    each = {tag: draw(structs(inner, tag)) for tag in tags}
    chosen = [draw(st.lists(st.sampled_from(tags), unique=True, min_size=1)) for _ in (0, 1)]
    old, new = (either([each[tag][side] for tag in chosen[side]]) for side in (0, 1))
    return old, new


def either(kinds: list[Kind]) -> Kind:
    return Kind(reduce(operator.or_, [kind.type for kind in kinds]), st.one_of([kind.values for kind in kinds]))


def on_both(change: Callable[..., Kind], *pairs: Pair) -> Pair:
    return change(*(pair[0] for pair in pairs)), change(*(pair[1] for pair in pairs))


def row(kinds: list[Kind]) -> Kind:
    return Kind(tuple[tuple(kind.type for kind in kinds)], st.tuples(*(kind.values for kind in kinds)))


def collections(inner: st.SearchStrategy[Pair]) -> st.SearchStrategy[Pair]:
    return st.one_of(
        inner.map(partial(on_both, lambda kind: Kind(list[kind.type], st.lists(kind.values, max_size=2)))),
        inner.map(
            partial(
                on_both,
                lambda kind: Kind(
                    dict[str, kind.type], st.dictionaries(st.sampled_from("abx"), kind.values, max_size=2)
                ),
            )
        ),
        st.tuples(inner, inner, inner, st.integers(1, 3)).map(
            lambda drawn: (row([old for old, _ in drawn[:3]]), row([new for _, new in drawn[:3]][: drawn[3]]))
        ),
        structs(inner),
        structs(inner),
        tagged(inner),
    )


def optional(kind: Kind) -> Kind:
    return Kind(kind.type if kind.type in (Any, None) else kind.type | None, kind.values | st.none())


def number_or_text(kind: Kind) -> Kind:
    return Kind(kind.type | str, kind.values | st.text("ab", max_size=2)) if kind.type in (int, float) else kind


few = st.one_of(scalars(), scalars().map(optional), scalars().map(number_or_text))
same = few.map(lambda kind: (kind, kind))
whole, fractions = Kind(int, st.integers(-9, 9)), Kind(float, st.sampled_from([-0.5, 0.25, 1.0, 2]))
changed = st.one_of(
    same,
    same,
    st.tuples(few, few),
    few.map(lambda kind: (kind, optional(kind))),
    st.permutations([whole, fractions]).map(lambda two: (two[0], two[1])),
)
deep = collections(collections(changed))
pairs = st.one_of(changed, collections(changed), deep, deep.map(lambda pair: (pair[0], optional(pair[1]))))
turned = st.one_of(structs(changed), pairs, pairs.map(lambda pair: (pair[1], pair[0])))


def described(kind: Kind) -> Document:
    holder = msgspec.defstruct(f"Holder{next(numbers)}", [("held", kind.type)])
    made = document.document({"thing.v1": Entry("data", holder)}, {}, {})
    return document.decode(document.encode(made))


def is_read(kind: Kind, value: Any) -> bool:
    try:
        msgspec.json.decode(json.dumps(value), type=kind.type)
    except msgspec.ValidationError:
        return False
    return True


@bounded
@given(turned, st.data())
def test_no_change_is_no_change_and_whatever_is_written_is_read(pair: Pair, data: st.DataObject) -> None:
    kind, _ = pair
    assert changes(described(kind), described(kind)) == []
    assert is_read(kind, data.draw(kind.values))


@thorough
@given(turned, st.data())
def test_what_the_check_calls_harmless_is_read_by_the_other_side(pair: Pair, data: st.DataObject) -> None:
    old, new = pair
    found = changes(described(old), described(new))
    broken = {side for change in found for side in change.breaks}
    for side, writer, reader in (("old_data", old, new), ("old_readers", new, old)):
        event(f"{side} {'breaks' if side in broken else 'is fine, and there are changes' if found else 'is fine'}")
        if side not in broken:
            for _ in range(3):
                value = data.draw(writer.values)
                assert is_read(reader, value), (found, value)


@bounded
@given(turned)
def test_a_difference_is_seen_from_both_sides(pair: Pair) -> None:
    there, back = (changes(described(one), described(other)) for one, other in (pair, pair[::-1]))
    assert bool(there) == bool(back)
