"""The library's applications, followers, projections and systems of processes, unchanged, on JetStream."""

from __future__ import annotations

import time
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
    @event("Placed")
    def __init__(self, item: str) -> None:
        self.item = item
        self.is_shipped = False

    @event("Shipped")
    def ship(self) -> None:
        self.is_shipped = True


class Shipment(Aggregate):
    @event("Sent")
    def __init__(self, order: UUID) -> None:
        self.order = order

    @classmethod
    def create_id(cls, order: UUID) -> UUID:
        return uuid5(NAMESPACE_URL, f"/shipments/{order}")


class Orders(ProcessApplication[UUID]):
    def place(self, item: str) -> UUID:
        order = Order(item)
        self.save(order)
        return order.id

    def is_shipped(self, id: UUID) -> bool:
        order: Order = self.repository.get(id)
        return order.is_shipped

    @singledispatchmethod
    def policy(self, domain_event: Any, processing_event: ProcessingEvent[UUID]) -> None:
        """Others' events do not concern it."""

    @policy.register
    def _(self, domain_event: Shipment.Sent, processing_event: ProcessingEvent[UUID]) -> None:  # type: ignore[name-defined]
        order: Order = self.repository.get(domain_event.order)
        order.ship()
        processing_event.collect_events(order)


class Shipping(ProcessApplication[UUID]):
    @singledispatchmethod
    def policy(self, domain_event: Any, processing_event: ProcessingEvent[UUID]) -> None:
        """Others' events do not concern it."""

    @policy.register
    def _(self, domain_event: Order.Placed, processing_event: ProcessingEvent[UUID]) -> None:  # type: ignore[name-defined]
        processing_event.collect_events(Shipment(order=domain_event.originator_id))


SYSTEM = System(pipes=[[Orders, Shipping, Orders]])


@pytest.mark.parametrize(
    "runner_class", [SingleThreadedRunner, NewSingleThreadedRunner, MultiThreadedRunner, NewMultiThreadedRunner]
)
def test_a_system_of_two_processes_runs_and_goes_on_where_it_was(runner_class: type[Any]) -> None:
    placed: list[UUID] = []
    for round_number in (1, 2):
        runner = runner_class(SYSTEM)
        runner.start()
        try:
            orders = runner.get(Orders)
            placed += [orders.place(f"item {number}") for number in range(12)]
            _until(lambda: all(orders.is_shipped(id) for id in placed))
            shipping = runner.get(Shipping)
            assert len(shipping.recorder.select_notifications(None, 1000)) == 12 * round_number
        finally:
            runner.stop()


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


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


class Note(BaseAggregate[str]):
    """An aggregate with an id that is text: what a base class of one's own needs for it."""

    class Event(CanMutateAggregate[str]):
        pass

    class Created(Event, CanInitAggregate[str]):
        pass

    class Snapshot(Event, CanSnapshotAggregate[str]):
        pass

    @staticmethod
    def create_id(topic: str) -> str:
        return f"note/{topic}"

    @event(Created)
    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.lines: list[str] = []

    @event("Written")
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
