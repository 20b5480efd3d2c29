"""A slate: one small value that all processes share, written over only by who has seen what stands on it.

It has no history: what somebody may want to know later is an event in the log.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec
import structlog

from bus.errors import Unavailable
from bus.format.envelope import UNDECODABLE
from bus.log.bucket import Bucket
from bus.log.streams import Moved

logger = structlog.get_logger(__name__)

T = TypeVar("T")

_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.064


class Slate(Generic[T]):
    """One key of one bucket, holding a `T` as JSON."""

    def __init__(self, bucket: Bucket, key: str, type: type[T]) -> None:
        self._bucket = bucket
        self._key = key
        self._decoder = msgspec.json.Decoder(type)
        self._chance = random.Random()  # noqa: S311 - it spreads, it protects nothing
        self._seen: tuple[T | None, int] | None = None

    async def read(self) -> T | None:
        """What stands on it, if anything does. Raises Unavailable.

        It may be a moment old, if a replica answers: only a change proves that it is not.
        """
        return (await self._read())[0]

    async def change(self, decide: Callable[[T | None], T | None]) -> None:
        """Write what is decided about what stands there; None leaves it, if that is decided about the newest, too.

        `decide` may be called several times, the last one counts. Raises what it does, Unavailable: it may have been
        written, Misconfigured.
        """
        pause_s = _SHORTEST_PAUSE_S
        deadline_s = time.monotonic() + self._bucket.timeout_s
        is_fresh = False
        while True:
            if self._seen is None:
                self._seen, is_fresh = await self._read(), True
            value, version = self._seen
            decided = decide(value)
            if decided is None and is_fresh:
                return
            self._seen = None
            if decided is None:
                continue
            try:
                # Nothing is remembered until it is known: whatever goes wrong here may have been stored.
                written = await self._bucket.put(self._key, msgspec.json.encode(decided), expected=version)
                self._seen = decided, written
            except Moved:
                if time.monotonic() > deadline_s:
                    raise Unavailable(f"{self._key!r} is written by too many at once") from None
                await asyncio.sleep(self._chance.random() * pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            else:
                return

    async def _read(self) -> tuple[T | None, int]:
        entry = await self._bucket.get(self._key)
        return (self._decoded(entry.value), entry.revision) if entry is not None else (None, 0)

    def _decoded(self, data: bytes) -> T | None:
        try:
            return self._decoder.decode(data) if data else None
        except UNDECODABLE as error:
            # Anybody may write there; to stop everybody for ever would be worse than to begin anew.
            logger.warning("slate begins anew", key=self._key, error=str(error))
            return None
