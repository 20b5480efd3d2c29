"""The cache: outputs that can be used again, because everything they depend on is the same.

What an output depends on are named components, each with a hash of its own, so that a difference can be told; their
hash is the key. An entry says where in the log the output stands that was computed under a key. It is a hint: what
counts is the completion in the log, which names the same key. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta

import msgspec

from bus.errors import SettingsError
from bus.rules.events import Instant, Source

CACHED, FORGOTTEN = "cache.entry.v1", "ops.cache_forgotten.v1"

FIRST, EXPIRED, GONE = "it is the first time", "what was cached has expired", "what was cached is gone"
FORCED, OPTED_OUT, SILENT = "it was forced", "the plan says cache = false", "the cache did not answer"
UNFIT = "what was cached does not fit the capability any more"

_FIELDS = 64
_FIELD_CHARACTERS = 60
_TOLD = 3
_LONGEST_S = 10 * 365 * 86_400.0

Components = Mapping[str, str]
"""What an output depends on: a hash for each, by name."""


class Cache(msgspec.Struct, frozen=True):
    """How the answers of a capability are kept: for `ttl_s` seconds, or until something changes.

    With a `version` its author says when an answer may be another one; otherwise the agent's version and the code do.
    """

    ttl_s: float | None = None
    version: str | None = None

    def __post_init__(self) -> None:
        if self.ttl_s is not None and not 1 <= self.ttl_s <= _LONGEST_S:
            raise SettingsError(f"cache: ttl_s is {self.ttl_s}, it must be 1 s or more and at most 10 years")
        if self.version == "":
            raise SettingsError("cache: version is empty; leave it out, or say which it is")


class Entry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An output of a capability was computed under `key` by `source`, and stands in the log at `position`."""

    capability: str
    key: str
    components: dict[str, str]
    source: Source
    position: int
    expires_at: Instant | None = None


class CacheForgotten(msgspec.Struct, frozen=True, omit_defaults=True):
    """Somebody had what was cached of a capability forgotten: all of it, or under one key. Entries, not outputs."""

    by: str
    capability: str
    key: str = ""


def components(fixed: Components, given: object) -> dict[str, str]:
    """All that an output depends on: what is known of the capability, and each field of its input (JSON values).

    An input that is no object, or has very many fields, is one component.
    """
    if isinstance(given, dict) and len(given) <= _FIELDS:
        fields = {f"input.{name}": hashed(value) for name, value in sorted(given.items())}
    else:
        fields = {"input": hashed(given)}
    return {**fixed, **fields}


def key(parts: Components) -> str:
    """One hash for all of them."""
    return hashed(dict(parts))


def hashed(value: object) -> str:
    """The SHA-256 of a JSON value. The order of an object's keys is no difference; how numbers and texts are written
    is (1 is not 1.0, é is not e with an accent), since a handler may see it: rather once too often than wrong."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


def is_over(at: datetime, ttl_s: float | None, now: datetime) -> bool:
    """Whether what was computed `at` is too old to be used again."""
    return ttl_s is not None and now >= at + timedelta(seconds=ttl_s)


def why(now: Components, before: Entry | None, *, expired: bool = False) -> str:
    """Why something is computed that was not found in the cache, in words that follow "ran because".

    `before` is what its place in the plan computed last, `expired` whether that is too old.
    """
    if before is None:
        return FIRST
    changed = [name for name in {**now, **before.components} if now.get(name) != before.components.get(name)]
    if changed:
        return f"{_listed(changed)} changed"
    return EXPIRED if expired else GONE


def _listed(names: list[str]) -> str:
    told = [name[:_FIELD_CHARACTERS] for name in names[:_TOLD]]
    if len(names) > _TOLD:
        told.append(f"{len(names) - _TOLD} more")
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"
