"""Settings: one validated object, read once from the environment, passed to whoever needs it.

`NATS_URL` says where the server is; everything else is `PHASEBUS_<NAME>`. A wrong value is refused at start-up with
its name and the reason, and no value is printed: it may be a secret.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from bus.errors import InvalidName, SettingsError
from bus.format import subjects

_PREFIX = "PHASEBUS_"
_VARIABLES = {"url": "NATS_URL", "context": "NATS_CONTEXT"}


class Settings(BaseModel):
    """How a process talks to the bus. Durations are seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: SecretStr | None = Field(None, description="nats://user:password@host:port, several joined by commas")
    context: str | None = Field(None, description="name of a NATS context file, used when there is no url")
    system_url: SecretStr | None = Field(None, description="login of the system account: crashes are seen at once")
    operator_url: SecretStr | None = Field(None, description="login that may take what was archived out of the log")
    credentials: Path | None = Field(None, description="a .creds file, or one that holds an nkey seed")
    namespace: str = Field("bus", description="prefix of every subject; its upper case is the stream's name")
    replicas: int = Field(1, ge=1, le=5, description="copies of the log, on as many servers")
    durability: Literal["synced", "fast"] = Field("synced", description="synced: on disk before it is acknowledged")
    archive: Path | None = Field(None, description="folder of an archive: what it holds is read as if still in the log")
    projections: str | None = Field(None, description="where rows are kept: sqlite:///FILE or postgresql://...")
    append_timeout_s: float = Field(30.0, gt=0, description="how long an append is tried again before it is given up")
    request_timeout_s: float = Field(5.0, gt=0, description="how long one answer of the server is waited for")
    payload_limit_bytes: int = Field(64 * 2**20, ge=1, le=2**30, description="no larger payload is written or read")
    compress_above_bytes: int = Field(16_384, ge=0, description="payloads larger than this are compressed, if it helps")
    beat_s: float = Field(1.0, gt=0, le=60, description="an instance says that it lives this often")
    lease_s: float = Field(3.0, gt=0, le=600, description="silent for longer, an instance loses what it holds")
    grace_s: float = Field(10.0, ge=0, description="how long a stopping process may finish what it has begun")
    memory_limit_mb: int | None = Field(None, ge=1, description="an instance takes less work when it nears this")
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @field_validator("namespace")
    @classmethod
    def _namespace(cls, value: str) -> str:
        try:
            return subjects.name(value, "namespace")
        except InvalidName:
            raise ValueError("it is not a name: use 1 to 63 of a-z, 0-9, _ and -") from None

    @model_validator(mode="after")
    def _beats_within_a_lease(self) -> Settings:
        if self.beat_s >= self.lease_s:
            raise ValueError("beat_s must be shorter than lease_s")
        return self

    @classmethod
    def load(cls, environment: Mapping[str, str] = os.environ, **values: Any) -> Settings:
        """The settings of `environment`, with `values` that are not None on top. Raises SettingsError."""
        names = {field: _VARIABLES.get(field, _PREFIX + field.upper()) for field in cls.model_fields}
        known = {*names.values(), *_ELSEWHERE}
        unknown = [name for name in environment if name.startswith(_PREFIX) and name not in known]
        if unknown:
            raise SettingsError(f"{unknown[0]} is not a setting; known are {', '.join(sorted(known))}")
        # By `get` alone: an environment of `eventsourcing` looks for the application's own variable there first.
        found: dict[str, Any] = {field: value for field, name in names.items() if (value := environment.get(name))}
        found.update({field: value for field, value in values.items() if value is not None})
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            problems = [f"{_named(problem['loc'], names)}: {_said(problem['msg'])}" for problem in error.errors()]
            raise SettingsError("; ".join(problems)) from None


# Read by the examples and by nats.conf, not by the library.
_ELSEWHERE = frozenset(
    _PREFIX + name
    for name in (
        *("WORKDIR", "REPORTS", "LLM_URL", "LLM_MODEL", "LLM_KEY"),
        *("PASSWORD", "SYSTEM_PASSWORD", "OPERATOR_PASSWORD", "AUDITOR_PASSWORD", "WEBSOCKET"),
    )
)


def _named(location: tuple[int | str, ...], names: Mapping[str, str]) -> str:
    field = str(location[0]) if location else "settings"
    return f"{field} ({names[field]})" if field in names else field


def _said(message: str) -> str:
    """Without pydantic's word for an error of ours."""
    return message.removeprefix("Value error, ")
