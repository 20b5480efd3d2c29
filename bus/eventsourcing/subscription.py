"""A subscription: an application's events from a position on, without a gap, for ever; over restarts of the server."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from eventsourcing.persistence import Notification, Subscription

from bus.broker.connection import Connection
from bus.errors import BusError, Unavailable
from bus.eventsourcing.calls import Pending
from bus.eventsourcing.events import Notice
from bus.eventsourcing.feed import Feed
from bus.eventsourcing.read import PAGE
from bus.eventsourcing.translation import translated

if TYPE_CHECKING:
    from bus.eventsourcing.recorders import JetStreamApplicationRecorder


class JetStreamSubscription(Subscription["JetStreamApplicationRecorder"]):
    """Reads a page when the reader has used up the last one: no thread of its own, and no more than a page waits."""

    def __init__(
        self, recorder: JetStreamApplicationRecorder, gt: int | None = None, topics: Sequence[str] = ()
    ) -> None:
        super().__init__(recorder=recorder, gt=gt, topics=topics)
        self._position = gt or 0
        self._ready: deque[Notification] = deque()
        self._feed: Feed | None = None
        self._pending: Pending[list[Notice]] | None = None

    def __next__(self) -> Notification:
        while not self._ready and not self._has_been_stopped:
            self._ready.extend(self._recorder.notifications(self._more()))
        if self._has_been_stopped:
            raise StopIteration
        return self._ready.popleft()

    def stop(self) -> None:
        """End it, from any thread; the iterator ends at once."""
        super().stop()
        if self._pending:
            self._pending.cancel()
        if self._feed:
            with suppress(BusError):
                self._recorder.lease.begin(self._close)

    def _more(self) -> list[Notice]:
        with translated():
            self._pending = pending = self._recorder.lease.begin(self._read)
            if self._has_been_stopped:  # meanwhile: then `stop` may not have seen what to cancel
                pending.cancel()
            while not pending.wait(self._recorder.lease.bound_s):
                pass  # there may be nothing for hours; what is waited for has bounds, and `stop` ends it
            try:
                return pending.result()
            except Unavailable:
                if self._has_been_stopped:
                    return []
                raise

    async def _read(self, connection: Connection) -> list[Notice]:
        events = self._recorder.events
        if self._feed is None:
            self._feed = Feed(connection, events.names.all_events)
        found: list[Notice] = []

        async def read() -> tuple[bool, int]:
            notices = await events.notices(connection, after=self._position, upto=None, limit=PAGE, topics=self._topics)
            found.extend(notices.found)
            self._position = notices.last
            return bool(found) or notices.more, notices.last

        await self._feed.until(read)
        return found

    async def _close(self, _: Connection) -> None:
        if self._feed:
            self._feed.close()
            self._feed = None
