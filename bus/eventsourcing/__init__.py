"""`PERSISTENCE_MODULE=bus.eventsourcing`: aggregates and applications of the library `eventsourcing`, on JetStream."""

# The library looks for the one factory here, so no second one may be imported.
from bus.eventsourcing.factory import Factory
from bus.eventsourcing.recorders import (
    JetStreamAggregateRecorder,
    JetStreamApplicationRecorder,
    JetStreamProcessRecorder,
    JetStreamTrackingRecorder,
)

__all__ = [
    "Factory",
    "JetStreamAggregateRecorder",
    "JetStreamApplicationRecorder",
    "JetStreamProcessRecorder",
    "JetStreamTrackingRecorder",
]
