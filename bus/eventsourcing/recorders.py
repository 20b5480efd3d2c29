"""The library's recorders, version 9.5: its signatures, its errors, and threads that wait. `events` does the work."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    DataError,
    Notification,
    ProcessRecorder,
    StoredEvent,
    Subscription,
    Tracking,
    TrackingRecorder,
    WaitInterruptedError,
)

from bus.broker.connection import Connection
from bus.eventsourcing.append import accepted, first_try
from bus.eventsourcing.events import Entry, Events, Notice
from bus.eventsourcing.feed import Feed
from bus.eventsourcing.lease import Lease
from bus.eventsourcing.subscription import JetStreamSubscription
from bus.eventsourcing.translation import translated
from bus.eventsourcing.wire import Change, Stored

_INTERRUPT_S = 0.05


class JetStreamRecorder:
    """What all recorders have: the stream, and a share of the connection."""

    def __init__(self, lease: Lease, events: Events) -> None:
        self.lease = lease
        self.events = events


class JetStreamAggregateRecorder(JetStreamRecorder, AggregateRecorder):
    """Events of aggregates, each version once."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """All or none. Raises IntegrityError: one of the versions is there, or there twice.

        Raises DataError and ProgrammingError before anything is sent: an event is too large, or they are over 1,000.
        Raises OperationalError: not known whether they were stored.
        """
        self._insert(stored_events)
        return None

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        with translated():
            found = self.lease.call(
                lambda line: self.events.select(line, str(originator_id), gt=gt, lte=lte, desc=desc, limit=limit)
            )
        return [StoredEvent(_originator_id(event), event.version, event.topic, event.state) for event in found]

    def _insert(self, stored_events: Sequence[StoredEvent]) -> list[int]:
        with translated():
            members = self.events.members(_entries(stored_events))
            if not members:
                return []
            if len(members) == 1:
                stored = accepted(self.lease.ask(first_try(members[0], self.events.settings)))
                if stored is not None:
                    return [stored]
            return self.lease.call(lambda line: self.events.insert(line, members))


class JetStreamApplicationRecorder(JetStreamAggregateRecorder, ApplicationRecorder):
    """Events of aggregates, in the order of the application. Notification ids may have gaps, from positions."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        """As for aggregates; returns the notification ids, which follow each other."""
        return self._insert(stored_events)

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        after = max((start or 0) - inclusive_of_start, 0) if start is not None else 0
        with translated():
            notices = self.lease.call(
                lambda line: self.events.notices(line, after=after, upto=stop, limit=limit, topics=topics)
            )
        return self.notifications(notices.found)

    def max_notification_id(self) -> int | None:
        with translated():
            return self.lease.call(self.events.last)

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> Subscription[ApplicationRecorder]:
        return JetStreamSubscription(self, gt, topics)

    def notifications(self, notices: Sequence[Notice]) -> list[Notification]:
        """As the library has them."""
        return [
            Notification(_originator_id(event), event.version, event.topic, event.state, id) for id, event in notices
        ]


class JetStreamTrackingRecorder(JetStreamRecorder, TrackingRecorder):
    """How far other applications' events were processed; with it, in the same message, a small view.

    A view class derives from this one and gives `insert_tracking` a `change`; `states` is what its queries read.
    """

    def insert_tracking(self, tracking: Tracking, change: Change | None = None) -> None:
        """Record a position, and what `change` makes of the state kept beside it: both, or neither.

        Raises IntegrityError: this position or a later one is recorded. `change` is called again if another process
        recorded an earlier position meanwhile; it must not block.
        """
        with translated():
            self.lease.call(
                lambda line: self.events.advance(
                    line, tracking.application_name, tracking.notification_id, change=change
                )
            )

    def max_tracking_id(self, application_name: str) -> int | None:
        with translated():
            return self.lease.call(lambda line: self.events.position(line, application_name))

    def states(self) -> dict[str, bytes]:
        """What is kept beside each position, by the name of the application it belongs to."""
        with translated():
            positions = self.lease.call(self.events.positions)
        return {position.application: position.state for position in positions if position.state is not None}

    def wait(
        self,
        application_name: str,
        notification_id: int | None,
        timeout: float = 1.0,
        interrupt: threading.Event | None = None,
    ) -> None:
        """As in the library, but told by the server: it returns some milliseconds after the position is recorded."""
        if notification_id is None:
            return
        wanted = notification_id
        deadline = time.monotonic() + timeout

        async def reached(line: Connection) -> None:
            async def read() -> tuple[bool, int]:
                position = await self.events.position(line, application_name)
                return position is not None and position >= wanted, 0

            feed = Feed(line, self.events.names.position(application_name))
            try:
                await feed.until(read)
            finally:
                feed.close()

        with translated():
            pending = self.lease.begin(reached)
            while not pending.wait(_bounded(deadline, interrupt)):
                interrupted = interrupt is not None and interrupt.is_set()
                if interrupted or time.monotonic() >= deadline:
                    pending.cancel()
                    if interrupted:
                        raise WaitInterruptedError
                    raise TimeoutError(
                        f"event {notification_id} of {application_name!r} was not processed within {timeout:g} s"
                    )
            pending.result()


class JetStreamProcessRecorder(JetStreamTrackingRecorder, JetStreamApplicationRecorder, ProcessRecorder):
    """Events together with the position of the event they were made from: both are stored, or neither."""

    def insert_events(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int] | None:
        tracking: Tracking | None = kwargs.get("tracking")
        if tracking is None:
            return self._insert(stored_events)
        with translated():
            entries = _entries(stored_events)
            return self.lease.call(
                lambda line: self.events.advance(line, tracking.application_name, tracking.notification_id, entries)
            )


def _entries(stored_events: Sequence[StoredEvent]) -> list[Entry]:
    entries: list[Entry] = []
    for event in stored_events:
        id, version, topic, state = event.originator_id, event.originator_version, event.topic, event.state
        if not isinstance(version, int) or not isinstance(topic, str) or not isinstance(state, bytes):
            raise DataError(f"{event!r:.200} can't be stored: a version is an int, a topic is text, a state is bytes")
        entries.append(Entry(str(id), version, topic, state, isinstance(id, UUID)))
    return entries


def _originator_id(event: Stored) -> UUID | str:
    return UUID(event.id) if event.is_uuid else event.id


def _bounded(deadline: float, interrupt: threading.Event | None) -> float:
    left_s = max(deadline - time.monotonic(), 0.0)
    return min(left_s, _INTERRUPT_S) if interrupt else left_s
