"""Conditions: whether a phase runs, said of other phases' outputs, such as `collect.count > 0`.

A condition is one or more comparisons joined by `and`. Each begins with a reference; alone it asks whether there is
something, not empty, false or zero; otherwise it is compared with a JSON value: `==`, `!=`, `<`, `<=`, `>`, `>=`,
`in` a list. `not` in front turns a comparison round.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import msgspec

from bus.rules.references import Ref, Unresolved, follow

_COMPARISON = re.compile(
    r"(?P<turned>not\s+)?(?P<path>[^\s=!<>]+)(?:\s*(?P<sign>==|!=|<=|>=|<|>|\bin\b)\s*(?P<value>.+))?"
)
_AND = re.compile(r"""\s+and\s+(?=(?:[^"]*"[^"]*")*[^"]*$)""")
_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda found, wanted: found in wanted,
}


class Comparison(msgspec.Struct, frozen=True):
    """One reference, alone or compared with a value."""

    ref: Ref
    sign: str = ""
    value: Any = None
    turned: bool = False


@lru_cache(maxsize=1_000)
def parse(text: str) -> tuple[Comparison, ...]:
    """What a condition says. Raises ValueError, with what is wrong in it."""
    return tuple(_comparison(part.strip()) for part in _AND.split(text))


def holds(condition: str, root: Callable[[str], Any]) -> bool:
    """Whether it is so, with the data that the first parts of its references name. Raises Unresolved."""
    return all(_holds(comparison, root) for comparison in parse(condition))


def _comparison(text: str) -> Comparison:
    found = _COMPARISON.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no condition: write `phase.field`, or `phase.field == 1`")
    sign, given = found["sign"] or "", found["value"]
    try:
        value = msgspec.json.decode(given) if given is not None else None
    except msgspec.DecodeError:
        raise ValueError(f"{given!r} in {text!r} is not a JSON value: text stands in double quotes") from None
    if sign == "in" and not isinstance(value, list):
        raise ValueError(f"{text!r}: what stands behind `in` is a list")
    return Comparison(Ref(found["path"]), sign, value, bool(found["turned"]))


def _holds(comparison: Comparison, root: Callable[[str], Any]) -> bool:
    found = follow(comparison.ref, root)
    if not comparison.sign:
        return bool(found) is not comparison.turned
    try:
        return bool(_SIGNS[comparison.sign](found, comparison.value)) is not comparison.turned
    except TypeError:
        sides = f"{comparison.ref.ref!r}, which is {found!r:.60}, with {comparison.value!r:.60}"
        raise Unresolved(f"{comparison.sign!r} can't compare {sides}") from None
