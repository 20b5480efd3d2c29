"""Log lines of the processes that took part, from a file: JSON, one a line, as `bus.logs` writes them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

_SHOWN = 10
_BOUND = {"timestamp", "level", "event", "run", "correlation", "causation", "phase", "attempt", "agent", "instance"}


class LogLine(msgspec.Struct, frozen=True):
    """One line: when, how grave, what, about which phase (with its item), and everything else that was said."""

    at: datetime
    level: str
    event: str
    phase: str
    attempt: int | None
    rest: dict[str, Any]


def read(lines: Iterable[str | bytes], run: str, correlation: str) -> list[LogLine]:
    """The lines about a run, or with its correlation id, in order of time. What is not JSON is passed over."""
    found = []
    for line in lines:
        try:
            said = msgspec.json.decode(line)
            if not isinstance(said, dict) or (said.get("run") != run and said.get("correlation") != correlation):
                continue
            at = datetime.fromisoformat(said["timestamp"])
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, ValueError, TypeError):
            continue
        attempt = said.get("attempt")
        found.append(
            LogLine(
                at=at if at.tzinfo is not None else at.replace(tzinfo=UTC),
                level=str(said.get("level", "")),
                event=str(said.get("event", "")),
                phase=str(said.get("phase", "")),
                attempt=attempt if isinstance(attempt, int) else None,
                rest={name: value for name, value in said.items() if name not in _BOUND},
            )
        )
    return sorted(found, key=lambda each: each.at)


def around(lines: Sequence[LogLine], at: datetime, phase: str) -> list[LogLine]:
    """The ones nearest to a moment, ten before and ten after; only those about a phase or its item if one is named."""
    wanted = [each for each in lines if not phase or phase in (each.phase, each.phase.partition(":")[0])]
    before = [each for each in wanted if each.at <= at]
    return before[-_SHOWN:] + wanted[len(before) : len(before) + _SHOWN]
