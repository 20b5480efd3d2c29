"""Schemas: every type that goes over the wire has a chosen name with a version, `price.v1`, and old ones stay readable.

A catalogue holds the newest type of each name, and for each older version an upcaster: a function from the JSON object
of one version to that of the next. They are applied in a chain when something old is read; nothing stored is changed.
Whatever the catalogue has no type and no chain for is unknown: its reader keeps it as it came.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, Union

import msgspec

from bus.errors import InvalidName, MalformedMessage, SettingsError
from bus.format.envelope import UNDECODABLE

JsonObject = dict[str, Any]
Upcaster = Callable[[JsonObject], JsonObject]
Standing = Literal["known", "older", "newer", "unknown"]
"""How a reader stands to a type: it has it, it has a chain of upcasters to it, it has only versions before it, or it
can't do anything with it (the name is not there, or it is an old version without an upcaster)."""

C = TypeVar("C", bound=type[Any])
U = TypeVar("U", bound=Upcaster)
_WIRE = re.compile(r"([a-z0-9][a-z0-9_-]{0,62}(?:\.[a-z0-9][a-z0-9_-]{0,62})*)\.v([1-9][0-9]{0,3})")


class Version(NamedTuple):
    """A wire type in its two parts: `price.v2` is version 2 of `price`."""

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name}.v{self.number}"

    @property
    def next(self) -> Version:
        return Version(self.name, self.number + 1)


def version(wire: str) -> Version:
    """The parts of a wire type. Raises InvalidName."""
    match = _WIRE.fullmatch(wire)
    if match is None:
        raise InvalidName(
            f"{wire!r} is not a type's name: write names joined by dots and a version from 1 on, such as 'price.v1', "
            "with a-z, 0-9, _ and -"
        )
    return Version(match[1], int(match[2]))


class Catalogue:
    """The types one reader knows, by wire type, and how older versions of them are read."""

    def __init__(self) -> None:
        self._types: dict[str, Any] = {}
        self._upcasters: dict[str, Upcaster] = {}
        self._decoders: dict[str, msgspec.json.Decoder[Any]] = {}

    @classmethod
    def of(cls, *tagged: Any) -> Catalogue:
        """A catalogue of types that carry their names as tags."""
        catalogue = cls()
        for type in tagged:
            catalogue.add(tag_of(type) or "", type)
        return catalogue

    @property
    def types(self) -> Mapping[str, Any]:
        """Every type that is read as it is."""
        return self._types

    @property
    def union(self) -> Any:
        """All of them, as one annotation."""
        return Union[tuple(self._types.values())]  # noqa: UP007 - made of values

    @property
    def upcasters(self) -> dict[str, str]:
        """Every older wire type that can be read, and the one it is read as."""
        chains = {wire: self._end_of(wire) for wire in sorted(self._upcasters)}
        return {wire: end for wire, end in chains.items() if end is not None}

    def add(self, wire: str, type: Any) -> None:
        """Know `type` under the name `wire`.

        Raises InvalidName if that is none, SettingsError if it is taken, or if the type is tagged with another one.
        """
        version(wire)
        if wire in self._types and not _is_made_again(self._types[wire], type):
            raise SettingsError(
                f"{wire!r} is there already, as {_named(self._types[wire])}: give this one another name"
            )
        if wire in self._upcasters:
            raise SettingsError(
                f"{wire!r} has an upcaster, so it is read as {version(wire).next}: leave out one of both"
            )
        tag = tag_of(type)
        if tag is not None and tag != wire:
            raise SettingsError(f"{_named(type)} is tagged {tag!r}, so it can't be {wire!r}: let both be the same")
        self._types[wire] = type
        self._decoders.pop(wire, None)

    def message(self, wire: str) -> Callable[[C], C]:
        """Add the decorated class under the name `wire`. Raises as `add`."""

        def register(type: C) -> C:
            self.add(wire, type)
            return type

        return register

    def upcaster(self, wire: str) -> Callable[[U], U]:
        """Read `wire` as its next version: the decorated function gets the JSON object as it was stored, and returns
        that of the next version (it may change and return what it was given).

        The chain may go on from there. Raises InvalidName, and SettingsError if there is a type or an upcaster already.
        """
        version(wire)
        if wire in self._types:
            raise SettingsError(f"{wire!r} is read as it is: leave out its type or its upcaster")

        def register(function: U) -> U:
            if wire in self._upcasters and not _is_made_again(self._upcasters[wire], function):
                raise SettingsError(f"{wire!r} has two upcasters: leave out one of them")
            self._upcasters[wire] = function
            return function

        return register

    def reads(self, wire: str) -> bool:
        """Whether it has a type for it, or a chain of upcasters that leads to one."""
        return wire in self._types or self._end_of(wire) is not None

    def standing(self, wire: str) -> Standing:
        """What this reader can do with a wire type; whatever is no name is unknown."""
        if self.reads(wire):
            return "known" if wire in self._types else "older"
        match = _WIRE.fullmatch(wire)
        numbers = [other.number for other in map(version, self._types) if match is not None and other.name == match[1]]
        return "newer" if match is not None and numbers and int(match[2]) > max(numbers) else "unknown"

    def read(self, wire: str, body: bytes | msgspec.Raw) -> Any:
        """`body` as what it is called, or as the newest version of that.

        Raises MalformedMessage: it is something else, or of a type this catalogue can't read.
        """
        try:
            if wire in self._types:
                return self._decoder(wire).decode(body)
            value = msgspec.json.decode(body)
        except UNDECODABLE as error:
            raise MalformedMessage(f"not a {wire}: {error}") from error
        return self._convert(*self._newest(wire, value))

    def convert(self, value: object, type: Any) -> Any:
        """JSON values as `type`, whatever versions of it, or of what is inside, they are (`{"type": "price.v1", ...}`).

        Raises msgspec.ValidationError if they are something else, MalformedMessage if an upcaster can't do with them.
        """
        try:
            return msgspec.convert(value, type)
        except msgspec.ValidationError:
            newest = self._renewed(value)
            if newest is value:
                raise
            return msgspec.convert(newest, type)

    def decode(self, body: bytes | msgspec.Raw, type: Any) -> Any:
        """`convert` for JSON as bytes. Raises as that, and msgspec.DecodeError if it is no JSON."""
        try:
            return msgspec.json.decode(body, type=type)
        except msgspec.ValidationError:
            value = msgspec.json.decode(body)
            newest = self._renewed(value)
            if newest is value:
                raise
            return msgspec.json.decode(msgspec.json.encode(newest), type=type)

    def _renewed(self, value: object) -> object:
        """The value with everything in it at its newest version, from the outside in; itself if it is already."""
        if isinstance(value, list):
            items = [self._renewed(item) for item in value]
            return value if all(map(operator.is_, items, value)) else items
        if not isinstance(value, dict):
            return value
        wire = value.get("type")
        newest = self._newest(wire, value)[1] if isinstance(wire, str) and self._end_of(wire) else value
        members = {name: self._renewed(member) for name, member in newest.items()}
        return newest if all(members[name] is newest[name] for name in members) else members

    def _newest(self, wire: str, value: object) -> tuple[str, JsonObject]:
        """The value after every upcaster there is for it, and what it is then. It is a copy."""
        if self._end_of(wire) is None:
            raise MalformedMessage(f"there is no type {wire!r} here, and no upcaster that leads from it to one")
        if not isinstance(value, dict):
            raise MalformedMessage(f"not a {wire}: {type(value).__name__} instead of an object")
        while wire not in self._types:
            try:
                value = self._upcasters[wire](dict(value))
            except Exception as error:
                raise MalformedMessage(f"not a {wire}: its upcaster raised {type(error).__name__}: {error}") from error
            if not isinstance(value, dict):
                raise MalformedMessage(f"the upcaster of {wire!r} returned {type(value).__name__} and not an object")
            wire = str(version(wire).next)
        tagged = self._types[wire].__struct_config__ if tag_of(self._types[wire]) else None
        return wire, value if tagged is None else {**value, tagged.tag_field: tagged.tag}

    def _convert(self, wire: str, value: object) -> Any:
        # Through bytes and not `msgspec.convert`: what stays raw in the type is raw bytes again.
        try:
            return self._decoder(wire).decode(msgspec.json.encode(value))
        except UNDECODABLE as error:
            raise MalformedMessage(f"not what its upcasters make of it, a {wire}: {error}") from error

    def _decoder(self, wire: str) -> msgspec.json.Decoder[Any]:
        decoder = self._decoders.get(wire)
        if decoder is None:
            decoder = self._decoders[wire] = msgspec.json.Decoder(self._types[wire])
        return decoder

    def _end_of(self, wire: str) -> str | None:
        """The type that the upcasters lead to from an older one."""
        if wire not in self._upcasters:
            return None
        while wire in self._upcasters:
            wire = str(version(wire).next)
        return wire if wire in self._types else None


def tag_of(type: Any) -> str | None:
    """The tag that values of a struct carry, if it has one."""
    config = getattr(type, "__struct_config__", None)
    return None if config is None or config.tag is None else str(config.tag)


def anything(hint: Any) -> JsonObject:
    """The schema of what msgspec has none for: `object` is anything, the rest is not JSON."""
    if hint is object:
        return {"title": "anything"}
    raise NotImplementedError(hint)


def _is_made_again(before: Any, now: Any) -> bool:
    """Whether both are one definition that ran twice: of a module that was reloaded, or a notebook's cell."""
    places = [(getattr(each, "__module__", None), getattr(each, "__qualname__", None)) for each in (before, now)]
    return places[0] == places[1] and None not in places[0]


def _named(type: Any) -> str:
    return getattr(type, "__qualname__", None) or repr(type)
