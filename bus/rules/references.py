"""References: how a phase's input points to the run's input, to another phase's output, or to the item it is for.

A reference is a dotted path: `input.path`, `scan.modules`, `measure.0.lines`, `item.name`. In JSON and TOML it is
written `{"ref": "scan.modules"}`, anywhere inside an input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec

RUN_INPUT = "input"
ITEM = "item"


class Ref(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A place in the run's data: its first part is `input`, `item` or a phase's key, the rest leads inside."""

    ref: str

    @property
    def root(self) -> str:
        return self.ref.partition(".")[0]

    @property
    def steps(self) -> list[str]:
        return self.ref.split(".")[1:]


def ref(path: str | int) -> Ref:
    """A reference, for use in `Phase(input={"files": ref("collect.files")})`; `ref(-1)` leads to phase -1."""
    return Ref(str(path))


ABSENT = object()
"""The data of a phase that what needs it goes on without."""


class Unresolved(Exception):
    """A reference leads nowhere in this run's data."""


def references(template: object) -> Iterator[Ref]:
    """Every reference inside an input, in order."""
    if (found := as_ref(template)) is not None:
        yield found
    elif isinstance(template, dict):
        for value in template.values():
            yield from references(value)
    elif isinstance(template, list):
        for value in template:
            yield from references(value)


def resolve(template: object, root: Callable[[str], Any]) -> Any:
    """The input with every reference replaced by what it points to; `root` gives the data a first part names.

    Raises Unresolved, naming the reference and the step that is missing.
    """
    if (found := as_ref(template)) is not None:
        return follow(found, root)
    if isinstance(template, dict):
        return {key: resolve(value, root) for key, value in template.items()}
    if isinstance(template, list):
        return [resolve(value, root) for value in template]
    return template


def follow(reference: Ref, root: Callable[[str], Any]) -> Any:
    """What one reference points to: null, at any depth, in what was skipped. Raises Unresolved."""
    value = root(reference.root)
    if value is ABSENT:
        return None
    for step in reference.steps:
        try:
            value = value[_index(step)] if isinstance(value, list) else value[step]
        except (KeyError, IndexError, ValueError, TypeError):
            raise Unresolved(f"{reference.ref!r} leads nowhere: {_shape(value)} has no {step!r}") from None
    return value


def _index(step: str) -> int:
    if not (step.isascii() and step.isdigit()):
        raise ValueError(step)
    return int(step)


def as_ref(template: object) -> Ref | None:
    """The reference, if this part of an input is one."""
    if isinstance(template, dict) and template.keys() == {"ref"} and isinstance(template["ref"], str):
        return Ref(template["ref"])
    return None


def _shape(value: object) -> str:
    match value:
        case dict():
            return f"an object with {', '.join(sorted(map(str, value))) or 'no members'}"
        case list():
            return f"a list of {len(value)}"
        case _:
            return f"{value!r:.60}"
