"""Compatibility: what changed between two schema documents, and which readers each change breaks.

*Old data* is broken if the new code can't read it, or reads something else in it. *Old readers* are broken if the old
code can't read what the new one writes. By the rules of this library members that a struct does not know are ignored
(unless it forbids them), and events of unknown types are kept as they came.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from bus.schema.comparison import BOTH, Comparison, Difference, Side
from bus.schema.document import Document, Schema


class Change(msgspec.Struct, frozen=True):
    """One difference: where it is, what it is, whom it breaks, and which types or capabilities have it."""

    where: str
    what: str
    breaks: tuple[Side, ...]
    types: tuple[str, ...]


def changes(old: Document, new: Document) -> list[Change]:
    """Every difference that matters to a reader, by place. Names of definitions and descriptions do not."""
    found: dict[tuple[str, str, tuple[Side, ...]], list[str]] = {}
    for owner, difference in _differences(old, new):
        found.setdefault(difference, []).append(owner)
    return [
        Change(where, what, breaks, tuple(sorted(set(owners))))
        for (where, what, breaks), owners in sorted(found.items())
    ]


def _differences(old: Document, new: Document) -> Iterator[tuple[str, Difference]]:
    for wire in sorted({*old.types, *new.types}):
        if wire in old.types and wire in new.types:
            if old.types[wire].carried != new.types[wire].carried:
                what = f"is found as {new.types[wire].carried} and not as {old.types[wire].carried} any more"
                yield wire, (wire, what, BOTH)
            yield from _compared(old, new, wire, old.types[wire].schema, new.types[wire].schema)
        elif wire in old.types:
            yield wire, _removed(wire, old, new)
        elif wire not in _successors(old, new):
            yield wire, (wire, "is new: old readers keep it as it came, or set it aside", ())
    for wire in sorted(old.upcasters.keys() - new.upcasters.keys() - new.types.keys()):
        yield wire, (wire, "can't be read any more: its upcaster is gone", ("old_data",))
    for name in sorted({*old.capabilities, *new.capabilities}):
        before, after = old.capabilities.get(name), new.capabilities.get(name)
        if before is not None and after is not None:
            owner = f"capability {name}"
            yield from _compared(old, new, owner, before.takes, after.takes, f"{owner} takes")
            yield from _compared(old, new, owner, before.gives, after.gives, f"{owner} gives")
        elif before is not None:
            yield f"capability {name}", (f"capability {name}", "is gone: work for it finds nobody", ("old_data",))
        else:
            yield f"capability {name}", (f"capability {name}", "is new", ())


def _compared(
    old: Document, new: Document, owner: str, before: Schema, after: Schema, where: str = ""
) -> Iterator[tuple[str, Difference]]:
    comparison = Comparison(old, new)
    comparison.values(before, after, where or owner)
    for difference in comparison.found:
        yield owner, difference


def _removed(wire: str, old: Document, new: Document) -> Difference:
    newest = new.upcasters.get(wire)
    if newest is None:
        return wire, "is gone, without an upcaster: what is stored of it is unknown now", ("old_data",)
    if old.types[wire].carried == "value":
        return wire, f"is {newest} now, read through its upcaster; old readers refuse {newest}", ("old_readers",)
    return (
        wire,
        f"is {newest} now, read through its upcaster; old readers keep {newest} as it came, or set it aside",
        (),
    )


def _successors(old: Document, new: Document) -> set[str]:
    """New types that are there instead of an older version."""
    return {new.upcasters[wire] for wire in old.types if wire in new.upcasters}
