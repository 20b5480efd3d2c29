"""How JetStream answers what was to be stored: the acknowledgement, and what its errors mean for whoever sent it."""

from __future__ import annotations

import msgspec

CONFLICTS = frozenset({10071, 10164})
"""Something newer stands on the subject than was expected; it may be our own first try, whose answer was lost."""

ALREADY_COMMITTED = 10201
"""A batch holds an id that the server knows: it may be our own first try, too."""

TEMPORARY = frozenset({408, 429, 503})
"""Trying again may help."""

BATCH_MEMBERS = 1_000
"""The most that the server stores together. Source: ADR-50."""


class ApiError(msgspec.Struct, frozen=True):
    """An error as JetStream's API words it."""

    code: int
    err_code: int = 0
    description: str = ""


class Ack(msgspec.Struct, frozen=True):
    """Stored at position `seq`, or before (`duplicate`); or why not."""

    seq: int = 0
    duplicate: bool = False
    error: ApiError | None = None


_ack = msgspec.json.Decoder(Ack)


def read_ack(data: bytes) -> Ack:
    """Raises msgspec.DecodeError."""
    return _ack.decode(data)
