"""Comparison: two schemas side by side, each difference with the side it breaks.

The rules are those of msgspec's structs: members that one does not know are ignored unless it forbids them,
alternatives are told apart by their kind or their tag, and what has a default may be left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Literal

import msgspec

from bus.schema.document import Document, Schema
from bus.schema.shapes import Alternative, Shape, shape, tag

Side = Literal["old_data", "old_readers"]
"""Old data is broken if new code can't read it, old readers if old code can't read what the new one writes."""

Difference = tuple[str, str, tuple[Side, ...]]
"""Where, what, and whom it breaks."""

BOTH: tuple[Side, ...] = ("old_data", "old_readers")
_LEFT_OUT = object()
_NUMBERS = ("integer", "number")


class Comparison:
    """Two documents, walked side by side from one pair of schemas."""

    def __init__(self, old: Document, new: Document) -> None:
        self.found: list[Difference] = []
        self._old = old
        self._new = new
        self._seen: set[tuple[str, str]] = set()
        # Events are compared by their names, and not as alternatives of a commit, which may hold unknown ones.
        self._events = {
            wire for document in (old, new) for wire, each in document.types.items() if each.carried == "event"
        }

    def values(self, before: Schema, after: Schema, where: str) -> None:
        """Compare what two schemas take."""
        old, new = shape(before, self._old.definitions), shape(after, self._new.definitions)
        if "anything" in old or "anything" in new:
            if "anything" not in new:
                self._say(where, f"was anything, and must be {_kinds(new)} now", "old_data")
            elif "anything" not in old:
                self._say(where, f"was {_kinds(old)}, and can be anything now", "old_readers")
            return
        old, new = self._numbers(old, new, where)
        for kind in sorted(old.keys() - new.keys()):
            self._say(where, f"can't be {kind} any more", "old_data")
        for kind in sorted(new.keys() - old.keys()):
            self._say(where, f"can be {kind} now", "old_readers")
        for kind in sorted(old.keys() & new.keys()):
            for one, other in self._pairs(old[kind], new[kind], where):
                self._pair(kind, one, other, where)

    def _numbers(self, old: Shape, new: Shape, where: str) -> tuple[Shape, Shape]:
        """Both without their numbers, if both have some: those are compared here, as an integer is a number too."""
        before, after = ({kind: kinds[kind][0] for kind in _NUMBERS if kind in kinds} for kinds in (old, new))
        if not before or not after:
            return old, new
        if ("number" in before) != ("number" in after):
            if "number" in after:
                self._say(where, "can be a fraction now", "old_readers")
            else:
                self._say(where, "must be a whole number now", "old_data")
        for kind in before.keys() | after.keys():
            one, other = (kinds.get(kind) or next(iter(kinds.values())) for kinds in (before, after))
            self._constraints(one.schema, other.schema, where)
        return _without_numbers(old), _without_numbers(new)

    def _pairs(
        self, old: list[Alternative], new: list[Alternative], where: str
    ) -> Iterator[tuple[Alternative, Alternative]]:
        """Alternatives of one kind that belong together: by their tags, where there are several."""
        if len(old) == len(new) == 1 and not self._is_upcast(old[0], new[0]):
            yield old[0], new[0]
            return
        before, after = self._by_tag(old), self._by_tag(new)
        for name in before.keys() & after.keys():
            yield before[name], after[name]
        for name in sorted(before.keys() - after.keys()):
            newest = self._new.upcasters.get(name)
            if newest in after:
                what = f"is {newest} instead of {name} now, read through its upcaster; old readers refuse it"
                self._say(where, what, "old_readers")
                after.pop(newest)
            else:
                self._say(where, f"can't be {name or 'an object without a tag'} any more", "old_data")
        for name in sorted(after.keys() - before.keys()):
            self._say(where, f"can be {name or 'an object without a tag'} now", "old_readers")

    def _is_upcast(self, old: Alternative, new: Alternative) -> bool:
        return self._new.upcasters.get(tag(old.schema)) == tag(new.schema) != ""

    def _by_tag(self, alternatives: list[Alternative]) -> dict[str, Alternative]:
        tagged = {tag(each.schema): each for each in alternatives}
        if not tagged.keys() & self._events:
            return tagged
        return {name: each for name, each in tagged.items() if name and name not in self._events}

    def _pair(self, kind: str, old: Alternative, new: Alternative, where: str) -> None:
        if old.name and new.name:
            if (old.name, new.name) in self._seen:
                return
            self._seen.add((old.name, new.name))
            where = new.name
        self._constraints(old.schema, new.schema, where)
        if kind == "object":
            self._objects(old.schema, new.schema, where)
        elif kind == "array":
            self._arrays(old.schema, new.schema, where)

    def _constraints(self, old: Schema, new: Schema, where: str) -> None:
        self._members(old, new, where)
        for words, keys, exclusive, sign in _BOUNDS:
            low, high = (_bound(schema, keys, exclusive, sign) for schema in (old, new))
            if low != high:
                # Seen along `sign`, every bound is a lower one, and none is the lowest.
                side: Side = "old_data" if low < high else "old_readers"
                self._say(where, f"{words} is {_of(new, keys, exclusive)} and was {_of(old, keys, exclusive)}", side)
        for key in sorted((old.keys() | new.keys()) - _ELSEWHERE):
            before, after = old.get(key), new.get(key)
            if before == after:
                continue
            if before is None:
                self._say(where, f"has {key} {after!r} now", "old_data")
            elif after is None:
                self._say(where, f"has no {key} any more, which was {before!r}", "old_readers")
            else:
                self._say(where, f"has {key} {after!r} instead of {before!r}", *BOTH)

    def _members(self, old: Schema, new: Schema, where: str) -> None:
        """Values that are listed one by one, or not."""
        before, after = old.get("enum"), new.get("enum")
        if before is None and after is None:
            return
        if before is None or after is None:
            what = "is one of a few values now" if before is None else "is not one of a few values any more"
            self._say(where, what, "old_data" if before is None else "old_readers")
            return
        for value in before:
            if value not in after:
                self._say(where, f"can't be {value!r} any more", "old_data")
        for value in after:
            if value not in before:
                self._say(where, f"can be {value!r} now", "old_readers")

    def _objects(self, old: Schema, new: Schema, where: str) -> None:
        if ("properties" in old) != ("properties" in new):
            what = "has members with names of its own instead of any" if "properties" in new else "has any members now"
            self._say(where, what, *BOTH)
            return
        if "properties" not in old:
            self.values(old.get("additionalProperties", {}), new.get("additionalProperties", {}), f"{where}.*")
            return
        old_forbids, new_forbids = (schema.get("additionalProperties") is False for schema in (old, new))
        if old_forbids != new_forbids:
            word = "refused" if new_forbids else "ignored"
            self._say(where, f"members it does not know are {word} now")
        before, after = old["properties"], new["properties"]
        for name in sorted(before.keys() - after.keys()):
            sides: list[Side] = ["old_data"] if new_forbids else []
            sides += ["old_readers"] if name in old.get("required", ()) else []
            self._say(f"{where}.{name}", "is gone", *sides)
        for name in sorted(after.keys() - before.keys()):
            is_required = name in new.get("required", ())
            sides = ["old_data"] if is_required else []
            sides += ["old_readers"] if old_forbids else []
            self._say(f"{where}.{name}", f"is new and {'required' if is_required else 'optional'}", *sides)
        for name in sorted(before.keys() & after.keys()):
            self.values(before[name], after[name], f"{where}.{name}")
            self._presence(name, old, new, f"{where}.{name}")

    def _presence(self, name: str, old: Schema, new: Schema, where: str) -> None:
        was_required, is_required = (name in schema.get("required", ()) for schema in (old, new))
        if was_required != is_required:
            self._say(
                where,
                f"is {'required' if is_required else 'optional'} now",
                "old_data" if is_required else "old_readers",
            )
        elif not is_required:
            before, after = (schema["properties"][name].get("default", _LEFT_OUT) for schema in (old, new))
            if before != after:
                # Who writes may leave out what has its default, so the same bytes mean something else.
                self._say(where, f"means {_said(after)} where it is left out, and meant {_said(before)}", *BOTH)

    def _arrays(self, old: Schema, new: Schema, where: str) -> None:
        before, after = old.get("prefixItems", []), new.get("prefixItems", [])
        if bool(before) != bool(after):
            self._say(where, "has a type for each item now" if after else "has one type for all items now", *BOTH)
            return
        if not before:
            self.values(old.get("items", {}), new.get("items", {}), f"{where}[]")
            return
        for index, (one, other) in enumerate(zip_longest(before, after)):
            if one is not None and other is not None:
                self.values(one, other, f"{where}[{index}]")
            else:
                # Whether that matters is for the bounds on the number of items to say.
                self._say(f"{where}[{index}]", "is new" if one is None else "is gone")

    def _say(self, where: str, what: str, *breaks: Side) -> None:
        self.found.append((where, what, tuple(breaks)))


# Words, the keywords that bound it, those that exclude the bound itself, and which way is narrower.
_BOUNDS: tuple[tuple[str, str, str, int], ...] = (
    ("its least value", "minimum", "exclusiveMinimum", 1),
    ("its greatest value", "maximum", "exclusiveMaximum", -1),
    ("its least length", "minLength", "", 1),
    ("its greatest length", "maxLength", "", -1),
    ("its least number of items", "minItems", "", 1),
    ("its greatest number of items", "maxItems", "", -1),
    ("its least number of members", "minProperties", "", 1),
    ("its greatest number of members", "maxProperties", "", -1),
)
_ELSEWHERE = {
    *(key for _, one, other, _ in _BOUNDS for key in (one, other)),
    *("type", "enum", "const", "properties", "required", "additionalProperties", "items", "prefixItems"),
    *("title", "description", "examples", "default", "deprecated"),
}


def _bound(schema: Schema, key: str, exclusive: str, sign: int) -> tuple[float, bool]:
    if exclusive in schema:
        return sign * schema[exclusive], True
    return (sign * schema[key], False) if key in schema else (float("-inf"), False)


def _of(schema: Schema, key: str, exclusive: str) -> str:
    if exclusive in schema:
        return f"beyond {schema[exclusive]}"
    return str(schema.get(key, "not bounded"))


def _kinds(kinds: Shape) -> str:
    return " or ".join(sorted(kinds))


def _said(default: object) -> str:
    return "nothing" if default is _LEFT_OUT else msgspec.json.encode(default).decode()


def _without_numbers(kinds: Shape) -> Shape:
    return {kind: each for kind, each in kinds.items() if kind not in _NUMBERS}
