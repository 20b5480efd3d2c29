"""A switch: a breaker's state as the log has it, changed only by an append at the version that was seen."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from datetime import datetime
from uuid import uuid4

import msgspec
import structlog

from bus.clock import utc_now
from bus.errors import MalformedMessage, Unavailable
from bus.format.envelope import envelope
from bus.guards import breaker
from bus.guards.breaker import BreakerState, Transition
from bus.log.log import Log, VersionConflict
from bus.log.record import Record

logger = structlog.get_logger(__name__)

Decide = Callable[[BreakerState, datetime], Transition | None]
"""What is to happen, by the newest state and the time; None: nothing."""

_CONFLICTS = 20


class Switch:
    """One breaker in the log. `on_change` is told of each new state."""

    def __init__(self, name: str, log: Log, *, source: str, on_change: Callable[[BreakerState], None] | None = None):
        self._log = log
        self._subject = log.subjects.breaker(name)
        self._source = source
        self._on_change = on_change
        self._writing = asyncio.Lock()
        self.state = BreakerState(breaker=name)

    async def refresh(self) -> BreakerState:
        """Look at the newest transition. Raises Unavailable."""
        newest = await self._log.last(self._subject)
        if newest is not None:
            self.see(newest)
        return self.state

    def follow(self) -> AsyncGenerator[Record, None]:
        """The transitions after the one that has been seen, and those to come: to be given to `see`."""
        return self._log.follow(self._subject, after=self.state.position)

    def see(self, record: Record) -> None:
        """A transition as it stands in the log; one that was seen is no news."""
        if record.position <= self.state.position:
            return
        try:
            state = breaker.read(record.envelope(), self.state.breaker, record.position)
        except MalformedMessage as error:
            logger.warning("record set aside", subject=record.subject, position=record.position, error=str(error))
            state = None
        # What can't be read counts as seen: the next transition is expected to stand after it.
        self._set(state or msgspec.structs.replace(self.state, position=record.position))

    async def change(self, decide: Decide) -> bool:
        """Store what is decided about the newest state; False if nothing is.

        Raises what `decide` does, and Unavailable.
        """
        async with self._writing:
            for _ in range(_CONFLICTS):
                now = utc_now()
                event = decide(self.state, now)
                if event is None:
                    return False
                kind = breaker.wire_type(event)
                message = envelope(kind, event, id=uuid4().hex, source=self._source, time=now)
                try:
                    position = await self._log.append(self._subject, message, expected=self.state.position)
                except VersionConflict as conflict:
                    for record in conflict.tail:
                        self.see(record)
                    continue
                # Its live copy, or that of a later one, may have come before the answer.
                if position > self.state.position:
                    self._set(breaker.after(event, now, position, self.state.breaker))
                logger.info("breaker", breaker=self.state.breaker, transition=kind)
                return True
        raise Unavailable(f"breaker {self.state.breaker!r} changes too fast to be changed")

    def _set(self, state: BreakerState) -> None:
        self.state = state
        if self._on_change is not None:
            self._on_change(state)
