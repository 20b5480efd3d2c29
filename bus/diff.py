"""Diff: two values, or two runs, side by side; where they first part."""

from __future__ import annotations

from typing import Any

import msgspec


class Difference(msgspec.Struct, frozen=True):
    """The first place where two JSON values are not the same: a path such as `files.2.name`, and what is there."""

    path: str
    one: Any
    other: Any


def first_difference(one: Any, other: Any) -> Difference | None:
    """None if they are the same. What one side does not have is UNSET there."""
    return _first(one, other, "")


def _first(one: Any, other: Any, path: str) -> Difference | None:
    if isinstance(one, dict) and isinstance(other, dict):
        pairs = [(key, one.get(key, msgspec.UNSET), other.get(key, msgspec.UNSET)) for key in {**one, **other}]
    elif isinstance(one, list) and isinstance(other, list):
        longest = range(max(len(one), len(other)))
        pairs = [(str(place), _at(one, place), _at(other, place)) for place in longest]
    else:
        # In JSON, true is not 1.
        is_same = one == other and isinstance(one, bool) == isinstance(other, bool)
        return None if is_same else Difference(path, one, other)
    for step, mine, theirs in pairs:
        found = _first(mine, theirs, f"{path}.{step}" if path else step)
        if found is not None:
            return found
    return None


def _at(values: list[Any], place: int) -> Any:
    return values[place] if place < len(values) else msgspec.UNSET
