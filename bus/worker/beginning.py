"""A beginning that is not in the log yet: of work that was handed over, and is stored with its result or before it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from uuid import uuid4

from bus.alarms import Alarms
from bus.errors import BusError
from bus.handlers.context import SAID, Pulse, Report
from bus.rules.commands import Begin, Command, Take, Together
from bus.runs.runs import Decided, Runs

_QUICK_S = 0.025
"""What takes longer is in the log, as begun, before it goes on."""

# An event loop that is so late has its results late, too: it gets a little more time, well below the asker's patience.
_LATE_S = _QUICK_S / 5
_LONGEST_S = _QUICK_S * 16


class Beginning:
    """The commands that begin a run, until they are carried out: by themselves, or with the result.

    `stored` is told of the first. The commit that holds them will be called `id`. If the log does not take them, nobody
    waits for the result: `pulse` is dropped.
    """

    def __init__(
        self,
        runs: Runs,
        run: str,
        begin: Begin,
        take: Take,
        *,
        causation: str | None,
        pulse: Pulse,
        alarms: Alarms,
        stored: Callable[[Decided], None],
    ) -> None:
        self.id = uuid4().hex
        self._runs = runs
        self._run = run
        self._causation = causation
        self._commands: tuple[Command, ...] = (begin, take)
        self._pulse = pulse
        self._alarms = alarms
        self._stored = stored
        self._lock = asyncio.Lock()
        self._report: Report | None = None
        self._said: tuple[float, str] | None = None
        self._storing: asyncio.Task[bool] | None = None
        self._armed_at_s = self._due_s = 0.0
        self._alarm = -1
        self._was_refused = False

    @property
    def is_stored(self) -> bool:
        return not self._commands

    def arm(self) -> None:
        """Store it if it is not settled soon."""
        self._armed_at_s = asyncio.get_running_loop().time()
        self._wait(self._armed_at_s)

    def disarm(self) -> None:
        """Leave it to whoever asked, if the log does not have it: nobody here makes the attempt any more."""
        self._alarms.clear(self._alarm)

    async def store(self) -> bool:
        """Have it in the log; False if the log has something else there, or can't be reached. It is tried once: whoever
        handed it over is told, and does without us."""
        async with self._lock:
            if self._was_refused:
                return False
            if self._commands:
                try:
                    decided = await self._runs.submit(
                        self._run, Together(self._commands), causation=self._causation, id=self.id
                    )
                except BusError as error:
                    self._was_refused = True
                    self._pulse.drop(f"it could not be begun here: {error}")
                    return False
                self._commands = ()
                self._stored(decided)
                if self._report is not None and self._said is not None:
                    self._report(*self._said)
        return True

    async def conclude(self, result: Command) -> Decided:
        """Carry out the result; together with the beginning, if the log has not that yet. Raises as `Runs.submit`."""
        self.disarm()
        async with self._lock:
            if not self._commands:
                return await self._runs.submit(self._run, result, causation=self.id)
            together = Together((*self._commands, result))
            return await self._runs.submit(self._run, together, causation=self._causation, id=self.id)

    def reporting(self, report: Report) -> Report:
        """A `report` that waits until there is a run to report of; then the newest of what was said is told."""

        def told(fraction: float, note: str) -> Awaitable[None]:
            if self.is_stored:
                return report(fraction, note)
            self._said = fraction, note
            return SAID

        self._report = report
        return told

    def _wait(self, from_s: float) -> None:
        self._due_s = from_s + _QUICK_S
        self._alarm = self._alarms.set(_QUICK_S, self._store_soon)

    def _store_soon(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        if now_s - self._due_s > _LATE_S and now_s - self._armed_at_s < _LONGEST_S:
            # Two commits instead of one would make it later still.
            self._wait(now_s)
            return
        self._storing = loop.create_task(self.store())
