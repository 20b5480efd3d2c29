"""Versions of agents, and ranges of them: `>=1.2,<2`, as Python packages are asked for, or one version as it is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from bus.errors import SettingsError

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

_OPERATORS = "<>=!~"


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
    if not is_range(wanted):
        return version == wanted
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
    return wanted.lstrip()[:1] in tuple(_OPERATORS)


@lru_cache(maxsize=64)
def _specifiers(wanted: str) -> SpecifierSet:
    from packaging.specifiers import InvalidSpecifier, SpecifierSet  # noqa: PLC0415 - as above

    try:
        return SpecifierSet(wanted)
    except InvalidSpecifier as error:
        raise SettingsError(
            f"{wanted!r} is not a range of versions: write '>=1.2,<2', '==1.*', or one version, 1.2.0"
        ) from error
