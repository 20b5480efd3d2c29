"""An election: of all who stand, one leads, for as long as its process renews that; then the next in line.

Who leads is in the log, so every candidate, and anybody else, sees the same leaders in the same order. Whoever leads
does so with a lease: its token fences what is done in its term.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import msgspec
import structlog

from bus.coordination.held import Lease
from bus.coordination.keeping import keep
from bus.coordination.lease import Place, standing
from bus.coordination.leases import Leases
from bus.coordination.turns import Wanted
from bus.errors import BusError, MalformedMessage, TimedOut
from bus.log.log import Log

logger = structlog.get_logger(__name__)

_PAUSE_S = 1.0


class Term(msgspec.Struct, frozen=True):
    """Who leads, None: nobody at this moment; and the lease with which this candidate does, if it does."""

    leader: str | None
    lease: Lease | None = None

    @property
    def is_own(self) -> bool:
        return self.lease is not None and self.lease.is_held


class Candidacy:
    """One candidate of an election. Iterate over it for the changes: the newest one, if several came meanwhile."""

    def __init__(self, leases: Leases, log: Log, wanted: Wanted, place: Place, holder: str, ttl_s: int) -> None:
        self._leases = leases
        self._log = log
        self._wanted = wanted
        self._subject = log.subjects.lease(place.path)
        self._holder = holder
        self._ttl_s = ttl_s
        self._leader: str | None = None
        self._lease: Lease | None = None
        self._changed = asyncio.Event()

    @property
    def term(self) -> Term:
        """How it stands now. To lead here proves nothing to others: fence what you do with the term's lease."""
        return Term(self._leader, self._lease)

    async def elected(self, *, timeout_s: float) -> Lease:
        """Wait until this candidate leads. Raises TimedOut; it goes on standing."""
        try:
            async with asyncio.timeout(timeout_s):
                async for term in self:
                    if term.lease is not None and term.is_own:
                        return term.lease
        except TimeoutError:
            pass
        raise TimedOut(f"not elected within {timeout_s:g} s: {self._leader or 'nobody'} leads")

    async def __aiter__(self) -> AsyncIterator[Term]:
        """How it stands now, and again whenever that has changed; ends with the candidacy only."""
        told: Term | None = None
        while True:
            changed, term = self._changed, self.term
            if term != told:
                told = term
                yield term
            else:
                await changed.wait()

    async def stand(self) -> None:
        """Be elected, lead, and stand again when that is lost, until cancelled; then it is given back."""
        while True:
            try:
                lease = await self._wanted.lease(self._holder, self._ttl_s, None)
            except BusError as error:
                logger.warning("not standing yet", subject=self._subject, error=str(error))
                await asyncio.sleep(_PAUSE_S)
                continue
            self._note(lease.holder, lease)
            try:
                await keep(self._leases, lease, _nothing)
            finally:
                self._note(None if self._leader == lease.holder else self._leader, None)
                await self._leases.let_go(lease)

    async def watch(self) -> None:
        """See who leads, until cancelled."""
        newest = await self._log.last(self._subject)
        after = newest.position - 1 if newest is not None else 0
        async with aclosing(self._log.follow(self._subject, after=after)) as records:
            async for record in records:
                try:
                    found = standing(record.envelope(), record.position)
                except MalformedMessage as error:
                    logger.warning("record set aside", subject=self._subject, error=str(error))
                    continue
                self._note(found.event.holder if found.is_held else None, self._lease)

    def _note(self, leader: str | None, lease: Lease | None) -> None:
        self._leader, self._lease = leader, lease
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


def _nothing() -> None:
    """Who leads is told by the term."""
