"""A shape: what kinds of JSON values a schema takes, with references followed and alternatives side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bus.schema.document import Schema


class Alternative(NamedTuple):
    """One way for a value to be of a kind. `name` is that of its definition, if it has one."""

    schema: Schema
    name: str


Shape = dict[str, list[Alternative]]
"""Alternatives by kind: null, boolean, integer, number, string, array, object; or `anything`, alone."""

_KINDS = {
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


def shape(schema: Schema, definitions: Mapping[str, Schema]) -> Shape:
    """The shape of a schema."""
    kinds = _kinds(schema, definitions, "")
    return {"anything": kinds["anything"]} if "anything" in kinds else kinds


def tag(schema: Schema) -> str:
    """What tells a struct from the others it stands beside: a first member, or item, with one possible value."""
    first: Any = next(iter(schema.get("properties", {}).values()), None) or next(
        iter(schema.get("prefixItems", [])), {}
    )
    values = first.get("enum", [])
    return str(values[0]) if len(values) == 1 else ""


def _kinds(schema: Schema, definitions: Mapping[str, Schema], name: str) -> Shape:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return _kinds(definitions[name], definitions, name)
    if "anyOf" in schema:
        found: Shape = {}
        for each in schema["anyOf"]:
            for kind, alternatives in _kinds(each, definitions, "").items():
                found.setdefault(kind, []).extend(alternatives)
        return found
    if "enum" in schema:
        by_kind: dict[str, list[object]] = {}
        for value in schema["enum"]:
            by_kind.setdefault(_KINDS[type(value)], []).append(value)
        return {
            kind: [Alternative({"type": kind} if kind == "null" else {**schema, "enum": values}, name)]
            for kind, values in by_kind.items()
        }
    return {schema.get("type", "anything"): [Alternative(schema, name)]}
