"""The library's applications, followers, projections and systems of processes, unchanged, on JetStream."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar
from uuid import NAMESPACE_URL, UUID, uuid5

import pytest
from eventsourcing.application import AggregateNotFoundError, Application, ProcessingEvent
from eventsourcing.dispatch import singledispatchmethod
from eventsourcing.domain import (
    Aggregate,
    BaseAggregate,
    CanInitAggregate,
    CanMutateAggregate,
    CanSnapshotAggregate,
    event,
)
from eventsourcing.persistence import IntegrityError
from eventsourcing.system import (
    MultiThreadedRunner,
    NewMultiThreadedRunner,
    NewSingleThreadedRunner,
    ProcessApplication,
    SingleThreadedRunner,
    System,
)


class Order(Aggregate):
    class Placed(Aggregate.Created):
        item: str

    @event(Placed)
    def __init__(self, item: str) -> None:
        self.item = item


class Shipment(Aggregate):
    @event("Sent")
    def __init__(self, order: UUID) -> None:
        self.order = order

    @classmethod
    def create_id(cls, order: UUID) -> UUID:
        return uuid5(NAMESPACE_URL, f"/shipments/{order}")


class Orders(Application[UUID]):
    def place(self, item: str) -> UUID:
        order = Order(item)
        self.save(order)
        return order.id


class Shipping(ProcessApplication[UUID]):
    @singledispatchmethod
    def policy(self, domain_event: Any, processing_event: ProcessingEvent[UUID]) -> None:
        """Others' events do not concern it."""

    @policy.register
    def _(self, domain_event: Order.Placed, processing_event: ProcessingEvent[UUID]) -> None:
        processing_event.collect_events(Shipment(order=domain_event.originator_id))


# One writer for each application: where several threads save in a leader, the library's own threaded runners may hand
# its events to a follower in another order than they are stored.
SYSTEM = System(pipes=[[Orders, Shipping]])


@pytest.mark.parametrize(
    "runner_class", [SingleThreadedRunner, NewSingleThreadedRunner, MultiThreadedRunner, NewMultiThreadedRunner]
)
def test_a_system_of_two_processes_runs_and_goes_on_where_it_was(runner_class: type[Any]) -> None:
    for count in (12, 24):
        runner = runner_class(SYSTEM)
        runner.start()
        try:
            for number in range(12):
                runner.get(Orders).place(f"item {number}")
            shipments = runner.get(Shipping).recorder
            shipments.wait("Orders", count, timeout=20)
            assert len(shipments.select_notifications(None, 1000)) == count
        finally:
            runner.stop()


def test_a_follower_that_was_away_catches_up_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    with Orders() as orders:
        ids = [orders.place(f"item {number}") for number in range(25)]
    with Shipping() as shipping:
        shipping.follow("Orders", _log_of(shipping, "Orders"))
        shipping.pull_and_process("Orders", start=None)
        assert shipping.recorder.max_tracking_id("Orders") == 25
        assert all(shipping.repository.get(Shipment.create_id(id)) for id in ids)


def _log_of(follower: Shipping, leader: str) -> Any:
    from eventsourcing.application import LocalNotificationLog

    env = follower.construct_env(leader, follower.env)
    return LocalNotificationLog(follower.construct_factory(env).application_recorder(), section_size=10)


class Counted(Aggregate):
    def __init__(self) -> None:
        self.count = 0

    @event("Counted")
    def add(self) -> None:
        self.count += 1


class Counting(Application[UUID]):
    snapshotting_intervals: ClassVar[dict[Any, int]] = {Counted: 5}


def test_an_aggregate_comes_back_from_its_latest_snapshot_and_what_followed() -> None:
    with Counting() as application:
        counted = Counted()
        for _ in range(23):
            counted.add()
            application.save(counted)
        assert application.snapshots is not None
        [latest] = application.snapshots.get(counted.id, desc=True, limit=1)
        assert latest.originator_version == 20
        again: Counted = application.repository.get(counted.id)
        earlier: Counted = application.repository.get(counted.id, version=12)
        assert (again.count, again.version, earlier.count) == (23, 24, 11)


@dataclass(frozen=True)
class TextEvent:
    originator_id: str
    originator_version: int
    timestamp: datetime


class Note(BaseAggregate[str]):
    """An aggregate with an id that is text: what a base class of one's own needs for it."""

    @dataclass(frozen=True)
    class Event(TextEvent, CanMutateAggregate[str]):
        pass

    @dataclass(frozen=True)
    class Created(Event, CanInitAggregate[str]):
        originator_topic: str
        topic: str

    @dataclass(frozen=True)
    class Written(Event):
        line: str

    @dataclass(frozen=True)
    class Snapshot(TextEvent, CanSnapshotAggregate[str]):
        topic: str
        state: dict[str, Any]

    @staticmethod
    def create_id(topic: str) -> str:
        return f"note/{topic}"

    @event(Created)
    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.lines: list[str] = []

    @event(Written)
    def write(self, line: str) -> None:
        self.lines.append(line)


def test_an_aggregate_may_have_a_text_as_its_id() -> None:
    with Application[str](env={"IS_SNAPSHOTTING_ENABLED": "y"}) as application:
        note = Note("größe. draft")
        note.write("one")
        application.save(note)
        application.take_snapshot(note.id)
        note.write("two")
        application.save(note)
        again: Note = application.repository.get("note/größe. draft")
        assert (again.lines, again.version) == (["one", "two"], 3)
        with pytest.raises(AggregateNotFoundError):
            application.repository.get("note/other")


def test_a_stale_aggregate_is_refused() -> None:
    with Application[UUID]() as application:
        counted = Counted()
        application.save(counted)
        one: Counted = application.repository.get(counted.id)
        other: Counted = application.repository.get(counted.id)
        one.add()
        other.add()
        application.save(one)
        with pytest.raises(IntegrityError):
            application.save(other)


def test_data_outlives_the_application() -> None:
    with Counting() as application:
        counted = Counted()
        counted.add()
        application.save(counted)
    with Counting() as application:
        again: Counted = application.repository.get(counted.id)
        assert again.count == 1
        assert [each.id for each in application.notification_log["1,10"].items] == [1, 2]
