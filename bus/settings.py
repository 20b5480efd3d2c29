"""Settings: one validated object, read once from the environment, passed to whoever needs it.

`NATS_URL` says where the server is; everything else is `PHASEBUS_<NAME>`. A wrong value is refused at start-up with
its name and the reason, and no value is printed: it may be a secret.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from bus.errors import InvalidName, SettingsError
from bus.format import subjects

_PREFIX = "PHASEBUS_"
_VARIABLES = {"url": "NATS_URL", "context": "NATS_CONTEXT"}


class Secret:
    """A text that nothing prints by accident."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def get_secret_value(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How a process talks to the bus. Durations are seconds. Made by `load`, which checks them."""

    url: Annotated[Secret | None, Meta(description="nats://user:password@host:port, several joined by commas")] = None
    context: Annotated[str | None, Meta(description="name of a NATS context file, used when there is no url")] = None
    system_url: Annotated[Secret | None, Meta(description="login of the system account: crashes are seen at once")] = (
        None
    )
    operator_url: Annotated[Secret | None, Meta(description="login that may take what was archived out of the log")] = (
        None
    )
    credentials: Annotated[Path | None, Meta(description="a .creds file, or one that holds an nkey seed")] = None
    namespace: Annotated[str, Meta(description="prefix of every subject; its upper case is the stream's name")] = "bus"
    replicas: Annotated[int, Meta(ge=1, le=5, description="copies of the log, on as many servers")] = 1
    durability: Annotated[Literal["synced", "fast"], Meta(description="synced: on disk before it is acknowledged")] = (
        "synced"
    )
    archive: Annotated[
        Path | None, Meta(description="folder of an archive: what it holds is read as if still in the log")
    ] = None
    projections: Annotated[str | None, Meta(description="where rows are kept: sqlite:///FILE or postgresql://...")] = (
        None
    )
    append_timeout_s: Annotated[
        float, Meta(gt=0, description="how long an append is tried again before it is given up")
    ] = 30.0
    request_timeout_s: Annotated[float, Meta(gt=0, description="how long one answer of the server is waited for")] = 5.0
    payload_limit_bytes: Annotated[int, Meta(ge=1, le=2**30, description="no larger payload is written or read")] = (
        64 * 2**20
    )
    compress_above_bytes: Annotated[
        int, Meta(ge=0, description="payloads larger than this are compressed, if it helps")
    ] = 16_384
    beat_s: Annotated[float, Meta(gt=0, le=60, description="an instance says that it lives this often")] = 1.0
    lease_s: Annotated[float, Meta(gt=0, le=600, description="silent so long, an instance loses what it holds")] = 3.0
    grace_s: Annotated[float, Meta(ge=0, description="how long a stopping process may finish what it has begun")] = 10.0
    memory_limit_mb: Annotated[int, Meta(ge=1, description="an instance takes less work when it nears this")] | None = (
        None
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def load(cls, environment: Mapping[str, str] = os.environ, **values: Any) -> Settings:
        """The settings of `environment`, with `values` that are not None on top. Raises SettingsError."""
        names = {field: _VARIABLES.get(field, _PREFIX + field.upper()) for field in cls.__struct_fields__}
        known = {*names.values(), *_ELSEWHERE}
        unknown = [name for name in environment if name.startswith(_PREFIX) and name not in known]
        if unknown:
            from difflib import get_close_matches  # noqa: PLC0415 - only for who has mistyped

            near = get_close_matches(unknown[0], known, n=1, cutoff=0.8)
            told = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(known))}"
            raise SettingsError(f"{unknown[0]} is not a setting; {told}")
        # By `get` alone: an environment of `eventsourcing` looks for the application's own variable there first.
        found: dict[str, Any] = {field: value for field, name in names.items() if (value := environment.get(name))}
        found.update({field: value for field, value in values.items() if value is not None})
        types = get_type_hints(cls, include_extras=True)
        problems: list[str] = []
        for field, value in found.items():
            try:
                found[field] = _converted(field, value, types)
            except ValueError as error:
                problems.append(f"{field} ({names[field]}): {error}" if field in names else f"{field}: {error}")
        if problems:
            raise SettingsError("; ".join(problems))
        settings = cls(**found)
        if settings.beat_s >= settings.lease_s:
            raise SettingsError("settings: beat_s must be shorter than lease_s")
        return settings


# Read by the examples and by nats.conf, not by the library.
_ELSEWHERE = frozenset(
    _PREFIX + name
    for name in (
        *("WORKDIR", "REPORTS", "LLM_URL", "LLM_MODEL", "LLM_KEY"),
        *("PASSWORD", "SYSTEM_PASSWORD", "OPERATOR_PASSWORD", "AUDITOR_PASSWORD", "WEBSOCKET"),
    )
)


def _converted(field: str, value: Any, types: Mapping[str, Any]) -> object:
    """A setting's value from what was given for it. Raises ValueError, which does not repeat it."""
    if field not in types:
        raise ValueError("there is no such setting")
    annotated = types[field]
    bounded = _present(annotated)
    kind, meta = get_args(bounded) if get_origin(bounded) is Annotated else (bounded, Meta())
    kind = _present(kind)
    if kind in (Secret, Path):
        try:
            return value if isinstance(value, kind) else kind(os.fspath(value))
        except TypeError:
            raise ValueError("it is a text") from None
    if field == "namespace":
        try:
            return subjects.name(str(value), field)
        except InvalidName:
            raise ValueError("it is not a name: use 1 to 63 of a-z, 0-9, _ and -") from None
    try:
        converted = msgspec.convert(value, annotated, strict=False)
    except msgspec.ValidationError:
        raise ValueError(_wanted(kind, meta)) from None
    if isinstance(converted, float) and math.isnan(converted):
        raise ValueError(_wanted(kind, meta))
    return converted


def _present(kind: Any) -> Any:
    """The type without None."""
    options = get_args(kind)
    return next(each for each in options if each is not NoneType) if NoneType in options else kind


def _wanted(kind: Any, meta: Meta) -> str:
    """What a setting has to be, in words."""
    if get_origin(kind) is Literal:
        return f"it is one of {', '.join(get_args(kind))}"
    bounds = {"above": meta.gt, "at least": meta.ge, "at most": meta.le}
    said = ", ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
    return f"it is {'a whole number' if kind is int else 'a number' if kind is float else 'a text'} {said}".rstrip()
