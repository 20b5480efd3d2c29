"""Parts: the partial results of an attempt, as the log has them, beside the commits of its run."""

from __future__ import annotations

import msgspec

PARTS = "phase.parts.v1"


class Parts(msgspec.Struct, frozen=True, omit_defaults=True):
    """Partial results of one attempt, in order; `first` is the number of the first one, from 0 in each attempt."""

    attempt: int
    first: int
    chunks: list[msgspec.Raw]
