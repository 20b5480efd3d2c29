"""The schema document: JSON Schema 2020-12 of everything on the wire, the same bytes for the same types.

As a schema it describes one message. `x-types` says which types there are, where each is found, and which definition
it has; `x-upcasters` which older versions are read as which newer ones; `x-capabilities` what agents take and give.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from bus.errors import MalformedMessage, SettingsError
from bus.format.envelope import UNDECODABLE, Envelope
from bus.format.schemas import anything
from bus.rules.events import COMMIT
from bus.runs.lane import PLACED

Schema = dict[str, Any]
Carried = Literal["event", "data", "body", "value"]
"""Where a type is found: among the events of a commit, as the data of an envelope, as a whole message, or in what
capabilities take and give."""

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REF = "#/$defs/"


class Entry(msgspec.Struct, frozen=True):
    """A type of the vocabulary."""

    carried: Carried
    type: Any


class Offer(msgspec.Struct, frozen=True):
    """What an agent's capability takes and gives."""

    agent: str
    takes: Any
    gives: Any


class Described(msgspec.Struct, frozen=True):
    """An entry in the document."""

    carried: Carried
    schema: Schema


class Offered(msgspec.Struct, frozen=True):
    """A capability in the document."""

    agent: str
    takes: Schema
    gives: Schema


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """The whole of it."""

    dialect: str = msgspec.field(name="$schema", default=_DIALECT)
    title: str = "phasebus"
    description: str = "One message on the wire, and the types of all of them."
    any_of: list[Schema] = msgspec.field(name="anyOf", default_factory=list)
    types: dict[str, Described] = msgspec.field(name="x-types")
    upcasters: dict[str, str] = msgspec.field(name="x-upcasters")
    capabilities: dict[str, Offered] = msgspec.field(name="x-capabilities")
    definitions: dict[str, Schema] = msgspec.field(name="$defs")


def document(
    vocabulary: Mapping[str, Entry], upcasters: Mapping[str, str], capabilities: Mapping[str, Offer]
) -> Document:
    """The document of these types. Raises SettingsError for a type that is not JSON."""
    wires, offers = sorted(vocabulary), sorted(capabilities)
    described = [vocabulary[wire].type for wire in wires]
    described += [side for name in offers for side in (capabilities[name].takes, capabilities[name].gives)]
    try:
        found, definitions = msgspec.json.schema_components(
            [Envelope, *described], schema_hook=anything, ref_template=_REF + "{name}"
        )
    except TypeError as error:
        raise SettingsError(f"a type can't be described as JSON: {error}") from error
    named = _names(wires, found[1:])
    envelope, *schemas = [_tidied(schema, named) for schema in found]
    definitions = {named.get(name, name): _tidied(schema, named) for name, schema in definitions.items()}
    types = {wire: Described(vocabulary[wire].carried, schema) for wire, schema in zip(wires, schemas, strict=False)}
    events = [wire for wire in wires if vocabulary[wire].carried == "event"]
    for wire in types.keys() & {COMMIT, PLACED}:
        _leave_open(definitions[wire], events)
    sides = iter(schemas[len(wires) :])
    return Document(
        any_of=list(_messages(types, envelope)),
        types=types,
        upcasters=dict(sorted(upcasters.items())),
        capabilities={name: Offered(capabilities[name].agent, next(sides), next(sides)) for name in offers},
        definitions=dict(sorted(definitions.items())),
    )


def encode(value: Document | Schema) -> bytes:
    """Indented, to be read and to be compared line by line; ends with a line break."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def decode(body: bytes) -> Document:
    """A document that was written before. Raises MalformedMessage."""
    try:
        found = msgspec.json.decode(body, type=Document)
        schemas = [*found.definitions.values(), *(each.schema for each in found.types.values())]
        schemas += [side for each in found.capabilities.values() for side in (each.takes, each.gives)]
        missing = {name for schema in schemas for name in references(schema)} - found.definitions.keys()
    except (*UNDECODABLE, AttributeError, TypeError) as error:
        raise MalformedMessage(f"not a document of `phasebus schema`: {error}") from error
    if missing:
        raise MalformedMessage(f"not a document of `phasebus schema`: there is no definition {min(missing)!r} in it")
    return found


def part(whole: Document, wire: str) -> Schema:
    """The schema of one type alone, with the definitions it needs. Raises KeyError."""
    schema = whole.types[wire].schema
    needed = reached(whole, schema)
    return {
        "$schema": _DIALECT,
        **schema,
        "$defs": {name: whole.definitions[name] for name in sorted(needed)},
    }


def reached(whole: Document, schema: Schema) -> set[str]:
    """Every definition a schema refers to, directly or not."""
    found: set[str] = set()
    waiting = [schema]
    while waiting:
        for name in references(waiting.pop()):
            if name not in found:
                found.add(name)
                waiting.append(whole.definitions[name])
    return found


def references(schema: Schema) -> list[str]:
    """The definitions that a schema names."""
    found = [schema["$ref"].removeprefix(_REF)] if "$ref" in schema else []

    def look(inside: Schema) -> Schema:
        found.extend(references(inside))
        return inside

    each_inside(schema, look)
    return found


def each_inside(schema: Schema, change: Callable[[Schema], Schema]) -> Schema:
    """The schema with every schema directly inside it changed; what is data, such as a default, is left alone."""
    changed = dict(schema)
    for key, value in schema.items():
        if key == "properties":
            changed[key] = {name: change(inside) for name, inside in value.items()}
        elif key in ("anyOf", "allOf", "prefixItems"):
            changed[key] = [change(inside) for inside in value]
        elif key in ("items", "additionalProperties", "propertyNames") and isinstance(value, dict):
            changed[key] = change(value)
    return changed


def message(wire: str, schema: Schema, envelope: Schema) -> Schema:
    """A whole message that carries data of a type."""
    return {"allOf": [envelope, {"properties": {"type": {"const": wire}, "data": schema}}]}


def _messages(types: Mapping[str, Described], envelope: Schema) -> Iterator[Schema]:
    for wire, each in types.items():
        if each.carried == "data":
            yield message(wire, each.schema, envelope)
        elif each.carried == "body" and each.schema != envelope:
            yield each.schema


def _names(wires: list[str], schemas: Sequence[Schema]) -> dict[str, str]:
    """What definitions are called: by their wire type where it is their only one, otherwise as their class is."""
    used = Counter(schema["$ref"] for schema in schemas[: len(wires)] if "$ref" in schema)
    return {
        schema["$ref"].removeprefix(_REF): wire
        for wire, schema in zip(wires, schemas, strict=False)
        if used[schema.get("$ref")] == 1
    }


def _tidied(schema: Schema, named: Mapping[str, str]) -> Schema:
    """The same with final names, without what only repeats them, and with the same text whatever version of Python."""
    tidied = each_inside(schema, lambda inside: _tidied(inside, named))
    tidied.pop("discriminator", None)
    if "$ref" in tidied:
        name = tidied["$ref"].removeprefix(_REF)
        tidied["$ref"] = _REF + named.get(name, name)
    if "description" in tidied:
        tidied["description"] = inspect.cleandoc(tidied["description"])
    return tidied


def _leave_open(commit: Schema, events: list[str]) -> None:
    """A commit may hold events of other versions: a reader keeps them as they came."""
    other = {
        "title": "event of another version",
        "type": "object",
        "properties": {"type": {"type": "string", "not": {"enum": events}}},
        "required": ["type"],
    }
    commit["properties"]["events"]["items"]["anyOf"].append(other)
