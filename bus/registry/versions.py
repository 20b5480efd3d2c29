"""Versions of agents, and ranges of them: `>=1.2,<2` or `1.*`, as Python packages are asked for, `*` for all, or one
version as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from bus.errors import SettingsError

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

ALL = "*"
_OPERATORS = "<>=!~"
_ANY_OF = ".*"


def check_range(wanted: str) -> str:
    """`wanted` itself if it is a version or a range. Raises SettingsError."""
    if is_range(wanted):
        _specifiers(wanted)
    elif not wanted.strip():
        raise SettingsError("a version is not empty: write 1.2.0, or a range such as '>=1.2,<2'")
    return wanted


@lru_cache(maxsize=1024)
def fits(version: str, wanted: str) -> bool:
    """Whether a version is in a range, or is the one that is wanted. What is no version ('dev') is in no range.

    As with packages, a pre-release is in a range only if that names one. Raises SettingsError for what is no range.
    """
    if wanted == ALL or not is_range(wanted):
        return wanted in (ALL, version)
    from packaging.version import InvalidVersion  # noqa: PLC0415 - only who asks for a range pays for it

    try:
        wanted_ones = _specifiers(wanted)
        return wanted_ones.contains(version, prereleases=bool(wanted_ones.prereleases))
    except InvalidVersion:
        return False


def newest(versions: Sequence[str]) -> str:
    """The highest of some versions that were found in a range."""
    from packaging.version import Version  # noqa: PLC0415 - as above

    return max(versions, key=Version)


def is_range(wanted: str) -> bool:
    """Whether it stands for several versions."""
    return wanted == ALL or wanted.endswith(_ANY_OF) or wanted.lstrip()[:1] in tuple(_OPERATORS)


def closest(version: str, ranges: Iterable[str]) -> str | None:
    """Which of some ranges a version belongs to: the one that names it, else the first it is in, else `*`."""
    fitting = [each for each in ranges if fits(version, each)]
    return min(fitting, key=lambda each: (each == ALL, is_range(each)), default=None)


@lru_cache(maxsize=64)
def _specifiers(wanted: str) -> SpecifierSet:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet  # noqa: PLC0415 - as above

    has_operator = wanted.lstrip()[:1] in tuple(_OPERATORS)
    try:
        # `1.*` is short for `==1.*`, and `*` for no condition.
        return SpecifierSet("" if wanted == ALL else wanted if has_operator else f"=={wanted}")
    except InvalidSpecifier as error:
        raise SettingsError(
            f"{wanted!r} is not a range of versions: write '>=1.2,<2', '1.*', or one version, 1.2.0"
        ) from error
