"""The clock: the only place where the time of day is read. The rules are told it."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_now() -> datetime:
    return datetime.now(UTC)
