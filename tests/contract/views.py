"""The view that the library's projection cases ask for: two counters, kept in the position's own message."""

from __future__ import annotations

from collections.abc import Callable

from eventsourcing.persistence import Tracking
from eventsourcing.tests.projection import EventCountersView
from msgspec import json

from bus.eventsourcing import JetStreamTrackingRecorder


class EventCounters(JetStreamTrackingRecorder, EventCountersView):
    def get_created_event_counter(self) -> int:
        return self._sum(0)

    def get_subsequent_event_counter(self) -> int:
        return self._sum(1)

    def incr_created_event_counter(self, tracking: Tracking) -> None:
        self.insert_tracking(tracking, _add(1, 0))

    def incr_subsequent_event_counter(self, tracking: Tracking) -> None:
        self.insert_tracking(tracking, _add(0, 1))

    def _sum(self, index: int) -> int:
        return sum(json.decode(state)[index] for state in self.states().values())


def _add(created: int, subsequent: int) -> Callable[[bytes | None], bytes]:
    def change(state: bytes | None) -> bytes:
        before = json.decode(state) if state else [0, 0]
        return json.encode([before[0] + created, before[1] + subsequent])

    return change
