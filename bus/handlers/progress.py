"""What a handler says of its progress, on its way into the log: no more often than twice a second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from contextlib import suppress

import structlog

from bus.errors import BusError, Refused
from bus.handlers.context import SAID, Pulse
from bus.registry.presence import Held
from bus.rules.commands import Progress
from bus.runs.runs import Runs

logger = structlog.get_logger(__name__)

_EVERY_S = 0.5


class Reporter:
    """Stores the progress of one attempt. It never fails a handler; a refusal means that nobody waits for it."""

    def __init__(self, runs: Runs, held: Held, instance: str, pulse: Pulse) -> None:
        self._runs = runs
        self._held = held
        self._instance = instance
        self._pulse = pulse
        self._loop = asyncio.get_running_loop()
        self._next = 0.0
        self._storing: set[asyncio.Task[None]] = set()

    def report(self, fraction: float, note: str) -> Awaitable[None]:
        """Begin to store it; in the event loop, what is returned can be awaited."""
        now = time.monotonic()
        if now < self._next:
            return SAID
        self._next = now + _EVERY_S
        try:
            in_loop = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            in_loop = False
        if in_loop:
            return self._begin(fraction, note)
        with suppress(RuntimeError):  # the loop has ended: nobody waits for this handler any more
            self._loop.call_soon_threadsafe(self._begin, fraction, note)
        return SAID

    def _begin(self, fraction: float, note: str) -> asyncio.Task[None]:
        task = self._loop.create_task(self._store(fraction, note))
        self._storing.add(task)
        task.add_done_callback(self._storing.discard)
        return task

    async def _store(self, fraction: float, note: str) -> None:
        held = self._held
        # Lone surrogates can't be stored, and progress never fails a handler.
        said = note.encode("utf-8", "replace").decode()
        command = Progress(held.phase, held.item, held.attempt, self._instance, fraction, said)
        try:
            await self._runs.submit(held.run, command)
        except Refused as refused:
            self._pulse.drop(refused.reason)
        except BusError as error:
            logger.debug("progress not stored", error=str(error))
