"""A change: what one event, or several, made of a run's state, value by value."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

import msgspec

from bus.rules.run import Item, Output, PhaseState, RunState

# They follow from the place on the trail, and say nothing of the run.
_COUNTED = {"position", "events", "plan", "phases"}


class Change(msgspec.Struct, frozen=True, omit_defaults=True):
    """One value that is another one now: a path such as `phases.write.items.3.status`, what it was, and what it is.

    What was not there before, or is not there any more, is left out.
    """

    path: str
    before: Any = msgspec.UNSET
    after: Any = msgspec.UNSET


def changes(before: RunState | None, after: RunState | None) -> list[Change]:
    """Everything that differs, in the order of the state's fields. Parts that both share are not looked at."""
    if after is None or before is after:
        return []
    if before is None:
        return [Change("run", after=after.run), Change("status", after=after.status)]
    return [*_of_run(before, after), *_of_phases(before, after)]


def _of_run(before: RunState, after: RunState) -> Iterator[Change]:
    for field in RunState.__struct_fields__:
        if field not in _COUNTED:
            yield from _differences(getattr(before, field), getattr(after, field), field)


def _of_phases(before: RunState, after: RunState) -> Iterator[Change]:
    for key, now in after.phases.items():
        was = before.phases.get(key)
        if was is now:
            continue
        was = was or PhaseState(key=key)
        path = f"phases.{key}"
        for field in PhaseState.__struct_fields__:
            if field != "items":
                yield from _differences(getattr(was, field), getattr(now, field), f"{path}.{field}")
        for mine, theirs in zip_longest(was.items, now.items):
            if mine is not theirs:
                yield from _of_item(mine, theirs, path)


def _of_item(before: Item | None, after: Item | None, path: str) -> Iterator[Change]:
    index = after.index if after is not None else before.index if before is not None else None
    where = f"{path}.items.{index}" if index is not None else f"{path}.work"
    yield from _differences(before, after, where)


def _differences(before: Any, after: Any, path: str) -> Iterator[Change]:
    if before is after or before == after:
        return
    mine, theirs = _plain(before), _plain(after)
    yield from _parted(mine, theirs, path)


def _parted(mine: Any, theirs: Any, path: str) -> Iterator[Change]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        for key in {**mine, **theirs}:
            yield from _parted(mine.get(key, msgspec.UNSET), theirs.get(key, msgspec.UNSET), f"{path}.{key}")
    elif isinstance(mine, list) and isinstance(theirs, list):
        for place, (one, other) in enumerate(zip_longest(mine, theirs, fillvalue=msgspec.UNSET)):
            yield from _parted(one, other, f"{path}.{place}")
    elif mine != theirs or type(mine) is not type(theirs):
        yield Change(path, mine, theirs)


def _plain(value: Any) -> Any:
    """As JSON has it; what is nothing yet has no parts."""
    if isinstance(value, Output):
        return value.value
    return msgspec.to_builtins(value, enc_hook=_output) if value is not None else None


def _output(value: Any) -> Any:
    if isinstance(value, Output):
        return value.value
    raise NotImplementedError
