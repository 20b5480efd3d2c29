"""Leases on the bus: taken in the bucket first, which ends what nobody renews, then in the log, which gives the token.

Two writes, each taken by the server only at what was expected, and both can be the last before a crash. What the bucket
has and the log does not ends by itself; what the log has and the bucket does not is told as lost by whoever comes next,
by the holder, or by the supervisor. Between two holders the log always stands: until `acquired` of the next one is in
it nobody acts, and from then on it refuses the token of the one before.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from uuid import uuid4

import structlog

from bus.broker.connection import Connection, Subscription
from bus.clock import utc_now
from bus.coordination.held import Hold, Lease, hold_in
from bus.coordination.lease import (
    LONGEST_TTL_S,
    Event,
    LeaseAcquired,
    LeaseReleased,
    Place,
    Reason,
    Standing,
    about,
    standing,
    type_of,
)
from bus.coordination.lease import (
    LeaseLost as Lost,
)
from bus.errors import BusError, InvalidName, LeaseLost, MalformedMessage, SettingsError, Unavailable
from bus.format.envelope import envelope
from bus.format.subjects import live_copy
from bus.log.bucket import Bucket, Entry
from bus.log.layout import leases_config
from bus.log.log import Log, VersionConflict
from bus.log.streams import Moved
from bus.settings import Settings

logger = structlog.get_logger(__name__)

_PAUSE_S = 0.1
_TRIES = 3


class Leases:
    """The leases of one namespace, as one process takes and keeps them. It owns nothing that has to be closed."""

    def __init__(self, connection: Connection, log: Log, settings: Settings, *, source: str) -> None:
        self._connection = connection
        self._log = log
        self._settings = settings
        self._source = source
        self.bucket = Bucket(
            connection,
            log.subjects.leases_bucket,
            leases_config(log.subjects, settings.replicas),
            # An answer must come in time for another try within the lease.
            timeout_s=min(settings.request_timeout_s, max(settings.lease_s / 3, 0.5)),
        )

    @property
    def holder(self) -> str:
        """Who this process is, for people."""
        return f"{self._source.strip('/')}@{socket.gethostname()}:{os.getpid()}"

    def ttl_s(self, wanted: int | None) -> int:
        """In whole seconds, as the server counts them. Raises SettingsError."""
        ttl_s = max(round(self._settings.lease_s), 1) if wanted is None else wanted
        if not isinstance(ttl_s, int) or not 1 <= ttl_s <= LONGEST_TTL_S:
            raise SettingsError(f"ttl_s is a whole number of seconds from 1 to {LONGEST_TTL_S}, not {ttl_s!r}")
        return ttl_s

    async def take(self, place: Place, holder: str, ttl_s: int) -> Lease | None:
        """Try once; None: somebody else has it. Raises Unavailable: it may be ours for `ttl_s`, and then is nobody's.

        The lease has to be renewed from now on. Who is cancelled while he takes it does not have it.
        """
        taking = asyncio.create_task(self._take(place, holder, ttl_s))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            # What is on its way would be stored behind all that is looked at now: first it arrives.
            await asyncio.wait({taking}, timeout=self.bucket.timeout_s)
            if not taking.done():
                taking.cancel()
            elif not taking.cancelled() and taking.exception() is None and (lease := taking.result()) is not None:
                await self.let_go(lease)
            raise

    async def _take(self, place: Place, holder: str, ttl_s: int) -> Lease | None:
        lease = Lease(place, uuid4().hex, holder, ttl_s, self._log.subjects.lease(place.path))
        try:
            if not await self._reserve(lease):
                return None
            async with asyncio.timeout(lease.remaining_s):
                await self._enter(lease)
            lease.check()
        except (TimeoutError, LeaseLost):
            await self.give_up(lease)
            return None
        except BaseException:
            await self.give_up(lease)
            raise
        return lease

    async def renew(self, lease: Lease) -> None:
        """Have it for another `ttl_s`. Raises LeaseLost; Unavailable: try again, as long as it is held."""
        for _ in range(_TRIES):
            sent_at = monotonic()
            try:
                lease.revision = await self.bucket.put(
                    lease.place.path, lease.value, expected=lease.revision, ttl_s=lease.ttl_s
                )
            except Moved:
                # It may be our own last try, whose answer was lost.
                entry, held = await self._held_at(lease.place)
                if entry is not None and entry.revision < lease.revision:
                    raise Unavailable(f"the newest of {lease.what} is not to be seen yet") from None
                if entry is None or held is None or held.lease != lease.id:
                    lease.lose(f"{held.holder} has it" if held is not None else "it was ended, or came to its end")
                    raise lease.lost() from None
                lease.revision = entry.revision
                continue
            lease.extend(sent_at)
            return
        raise Unavailable(f"{lease.what} is written by somebody else all the time")

    async def release(self, lease: Lease) -> None:
        """Give it back: the next one can have it at once. Raises LeaseLost if it was somebody else's before."""
        event = LeaseReleased(**about(lease.place, lease.id, lease.holder))
        try:
            # The log first: what it calls released may be taken over, though its key is still there.
            await self._say(event, expected=lease.token)
        except VersionConflict:
            lease.lose("somebody else had it before it was given back")
            raise lease.lost() from None
        finally:
            lease.lose("it was given back")
            await self.bucket.drop(lease.revision)

    async def end(self, found: Standing, reason: Reason, *, by: str) -> bool:
        """Tell the log that a lease is lost, which it then is. False: something else has become of it meanwhile."""
        assert isinstance(found.event, LeaseAcquired), "only what is held can be lost"
        told = about(found.event.place, found.event.lease, found.event.holder)
        try:
            await self._say(Lost(**told, reason=reason, by=by), expected=found.position)
        except VersionConflict:
            return False
        entry, held = await self._held_at(found.event.place)
        if entry is not None and held is not None and held.lease == found.event.lease:
            await self.bucket.drop(entry.revision)
        return True

    async def standing(self, place: Place) -> Standing | None:
        """What the log says of a place. Raises Unavailable."""
        return (await self._newest(self._log.subjects.lease(place.path)))[0]

    async def holder_of(self, place: Place) -> str | None:
        """Who keeps a place now, if anybody does. Raises Unavailable."""
        held = hold_in(await self.bucket.get(place.path))
        return held.holder if held is not None else None

    async def places(self) -> list[Place]:
        """Every place that is being kept now. Raises Unavailable."""
        found: list[Place] = []
        for entry in await self.bucket.entries(">"):
            with suppress(InvalidName):
                found.append(Place.of(entry.key))
        return found

    async def alive(self) -> set[str]:
        """The ids of all leases that are being renewed. Raises Unavailable."""
        held = map(hold_in, await self.bucket.entries(">"))
        return {each.lease for each in held if each is not None}

    def watch(self, lease: Lease, told: Callable[[], None]) -> Subscription:
        """Call `told` when something is told of its place."""
        return self._connection.subscribe(live_copy(lease.subject), lambda _: told())

    # Inside

    async def _reserve(self, lease: Lease) -> bool:
        """The key, for `ttl_s` from now on."""
        key, expected = lease.place.path, 0
        for tries_left in reversed(range(_TRIES)):
            sent_at = monotonic()
            try:
                lease.revision = await self.bucket.put(key, lease.value, expected=expected, ttl_s=lease.ttl_s)
            except Moved:
                entry = await self.bucket.get(key)
                expected = await self._free_at(lease, entry)
                if expected < 0:
                    return False
                continue
            except Unavailable:
                if not tries_left:
                    raise
                # It may have been written: then it is found to be our own.
                await asyncio.sleep(_PAUSE_S)
                continue
            lease.extend(sent_at)
            return True
        return False

    async def _free_at(self, lease: Lease, entry: Entry | None) -> int:
        """The revision at which the key may be taken; -1: somebody has it."""
        held = hold_in(entry)
        if entry is None:
            return 0
        if held is None:
            return entry.revision  # nobody's: anybody may have written it
        if held.lease == lease.id:
            return entry.revision  # our own first try, whose answer was lost
        found = await self.standing(lease.place)
        return entry.revision if found is not None and found.has_ended(held.lease) else -1

    async def _enter(self, lease: Lease) -> None:
        """Into the log: its position is the token."""
        acquired = LeaseAcquired(**about(lease.place, lease.id, lease.holder), ttl_s=lease.ttl_s)
        while True:
            before, position = await self._newest(lease.subject)
            with suppress(VersionConflict):
                if before is not None and before.is_held:
                    # Its key is ours, so it was not renewed in time.
                    told = about(lease.place, before.event.lease, before.event.holder)
                    position = await self._say(Lost(**told, reason="expired", by=lease.holder), expected=position)
                lease.token = await self._say(acquired, expected=position)
                return

    async def _newest(self, subject: str) -> tuple[Standing | None, int]:
        record = await self._log.last(subject)
        if record is None:
            return None, 0
        try:
            return standing(record.envelope(), record.position), record.position
        except MalformedMessage as error:
            # Bytes that anybody could publish: they end whatever was held, since its token is not the newest any more.
            logger.warning("record set aside", subject=subject, position=record.position, error=str(error))
            return None, record.position

    async def check_with_log(self, lease: Lease) -> None:
        """Raises LeaseLost if something newer stands there."""
        found, position = await self._newest(lease.subject)
        if position > lease.token:
            reason = f"ended by {found.event.by}" if found and isinstance(found.event, Lost) else "somebody else has it"
            lease.lose(reason)
            raise lease.lost()

    async def let_go(self, lease: Lease, *, is_checked: bool = False) -> None:
        """Give it back at the end of a block. What can't be told in time is told by whoever comes next."""
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                await self.release(lease)
        except LeaseLost:
            if is_checked:
                raise
        except (BusError, TimeoutError) as error:
            logger.warning("lease not given back", lease=lease.what, error=str(error))

    async def give_up(self, lease: Lease) -> None:
        """It was lost, or will never be had: leave nothing behind that others have to wait for. Best effort."""
        lease.lose(f"it was not renewed within {lease.ttl_s} s")
        if not self._connection.is_connected:
            return
        with suppress(BusError, TimeoutError):
            async with asyncio.timeout(self.bucket.timeout_s):
                if not lease.revision:
                    # Whether the key was written is not known: the answer did not come.
                    entry, held = await self._held_at(lease.place)
                    lease.revision = entry.revision if entry and held and held.lease == lease.id else 0
                if lease.token:
                    event = Lost(**about(lease.place, lease.id, lease.holder), reason="expired", by=lease.holder)
                    with suppress(VersionConflict):
                        await self._say(event, expected=lease.token)
                if lease.revision:
                    await self.bucket.drop(lease.revision)

    async def _held_at(self, place: Place) -> tuple[Entry | None, Hold | None]:
        entry = await self.bucket.get(place.path)
        return entry, hold_in(entry)

    async def _say(self, event: Event, *, expected: int) -> int:
        message = envelope(type_of(event), event, id=uuid4().hex, source=self._source, time=utc_now())
        return await self._log.append(self._log.subjects.lease(event.place.path), message, expected=expected)
