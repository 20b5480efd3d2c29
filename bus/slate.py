"""A slate: one small value that all processes share, written over only by who has seen what stands on it.

A key of a KV bucket, as every NATS client knows it. It has no history: what somebody may want to know later is an event
in the log.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import msgspec
import structlog

from bus.connection import Connection
from bus.envelope import UNDECODABLE
from bus.errors import NoResponders, Unavailable
from bus.streams import Moved, store

logger = structlog.get_logger(__name__)

T = TypeVar("T")

_NOT_FOUND = 404
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.001, 0.064


class Slate(Generic[T]):
    """One key of one bucket, holding a `T` as JSON. `missing` makes the bucket, if it is not there."""

    def __init__(
        self,
        connection: Connection,
        bucket: str,
        key: str,
        type: type[T],
        *,
        missing: Callable[[], Awaitable[None]],
        timeout_s: float,
    ) -> None:
        self._connection = connection
        self._subject = f"$KV.{bucket}.{key}"
        self._direct_get = f"$JS.API.DIRECT.GET.KV_{bucket}"
        self._decoder = msgspec.json.Decoder(type)
        self._missing = missing
        self._timeout_s = timeout_s
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
        deadline_s = time.monotonic() + self._timeout_s
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
                self._seen = decided, await self._write(msgspec.json.encode(decided), version)
            except Moved:
                if time.monotonic() > deadline_s:
                    raise Unavailable(f"{self._subject!r} is written by too many at once") from None
                await asyncio.sleep(self._chance.random() * pause_s)
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            else:
                return

    async def _read(self) -> tuple[T | None, int]:
        request = msgspec.json.encode({"last_by_subj": self._subject})
        try:
            answer = await self._connection.request(self._direct_get, request, timeout_s=self._timeout_s)
        except NoResponders:
            return None, 0
        version = answer.stamp(b"Nats-Sequence")
        if version is None:
            if answer.status == _NOT_FOUND:
                return None, 0
            raise Unavailable(f"reading {self._subject!r}: the server answered {answer.status}")
        return self._decoded(answer.data), int(version)

    def _decoded(self, data: bytes) -> T | None:
        try:
            return self._decoder.decode(data) if data else None
        except UNDECODABLE as error:
            # Anybody may write there; to stop everybody for ever would be worse than to begin anew.
            logger.warning("slate begins anew", subject=self._subject, error=str(error))
            return None

    async def _write(self, data: bytes, version: int) -> int:
        headers = {"Nats-Expected-Last-Subject-Sequence": str(version)}
        for attempt in (1, 2):
            try:
                return await store(self._connection, self._subject, data, headers=headers, timeout_s=self._timeout_s)
            except NoResponders:
                if attempt == 1:
                    await self._missing()
        raise Unavailable(f"nothing stores {self._subject!r}")
