"""Messages: the types of a program of yours that outlive one process and one version of it.

What capabilities take and give is stored in the log, as the input and output of phases. A struct that says in its data
what it is (`tag`) can change: what was stored as an older version is read as the newest, by handlers and callers.
"""

from __future__ import annotations

from typing import Any, TypeVar

from bus.errors import SettingsError
from bus.format.schemas import Catalogue, tag_of

C = TypeVar("C", bound=type[Any])

MESSAGES = Catalogue()
"""The message types of this process."""

upcaster = MESSAGES.upcaster


def message(type: C) -> C:
    """Register a struct that says what it is: `class Price(Struct, tag_field="type", tag="price.v1")`.

    It is part of the program's schema document then. Once it is `price.v2`, a function decorated with
    `upcaster("price.v1")` makes JSON objects of the new version of old ones. Raises SettingsError for a type that does
    not say what it is, and as `Catalogue.add`.
    """
    tag = tag_of(type)
    if tag is None or type.__struct_config__.tag_field != "type":
        declaration = f"class {type.__name__}(Struct, tag_field='type', tag='price.v1')"
        raise SettingsError(f"{type.__name__} does not say in its data what it is: declare it like `{declaration}`")
    MESSAGES.add(tag, type)
    return type
