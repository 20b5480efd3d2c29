"""Lanes: work with a key stands in line behind all work with the same key, in the log itself.

The key chooses one of a capability's lanes, a subject of the log. A place in it is stored in one batch with the run it
belongs to, so the line is in the order of the log, and nobody's death leaves work without its place. A lane is served
one run after the other (`bus.worker.lanes`), each until it has ended; keys that share a lane wait for each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import msgspec

PLACED = "task.placed.v1"
LANES = 16
"""Of each ordered capability. Who sends need not ask anybody for it, so it is the same everywhere, and stays."""


class Placed(msgspec.Struct, frozen=True):
    """The run that the envelope names stands in line, behind those that were placed in its lane before."""

    key: str


def lane_of(key: str) -> int:
    """The lane of a key, from 0."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") % LANES


def is_home(lane: int, instance: str, others: Collection[str]) -> bool:
    """Whether a lane belongs to an instance rather than to one of the others: all who know of the same agree.

    Who comes or goes changes the home of few lanes.
    """
    return all(_weight(lane, instance) >= _weight(lane, other) for other in others)


def _weight(lane: int, instance: str) -> tuple[bytes, str]:
    return hashlib.blake2b(f"{lane}/{instance}".encode(), digest_size=8).digest(), instance
