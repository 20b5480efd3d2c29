"""Servers that are killed, lines that break, answers that are lost: nothing acknowledged is lost, nothing is twice."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import IntegrityError, OperationalError, StoredEvent, Tracking
from eventsourcing.utils import Environment

from bus.broker.server import Server
from bus.eventsourcing import Factory
from tests.contract.relay import Relay, relay

BOUND_S = 30


@pytest.fixture
def factory(own: Server) -> Iterator[Factory]:
    made = Factory(Environment("App", {**os.environ, "NATS_URL": own.url}))
    yield made
    made.close()


@pytest.fixture
def lossy(shared: Server) -> Iterator[Relay]:
    with relay(shared.port) as made:
        yield made


@pytest.fixture
def relayed(shared: Server, lossy: Relay) -> Iterator[Factory]:
    url = shared.url.replace(f":{shared.port}", f":{lossy.port}")
    made = Factory(Environment("App", {**os.environ, "NATS_URL": url}))
    yield made
    made.close()


def event(id: UUID | str, version: int = 1, state: bytes = b"{}") -> StoredEvent:
    return StoredEvent(id, version, "topic", state)


def test_a_server_killed_amid_saves_loses_none_and_doubles_none(own: Server, factory: Factory) -> None:
    recorder = factory.application_recorder()
    stop, acknowledged = threading.Event(), []

    def write(number: int) -> None:
        for version in range(100_000):
            if stop.is_set():
                return
            ids = recorder.insert_events([event(f"w{number}", 2 * version), event(f"w{number}", 2 * version + 1)])
            acknowledged.append((ids, number, version))

    with ThreadPoolExecutor(6) as threads:
        writers = [threads.submit(write, number) for number in range(6)]
        for _ in range(4):
            before = len(acknowledged)
            while len(acknowledged) < before + 20:
                assert not any(writer.done() for writer in writers)
            asyncio.run(own.restart())
        stop.set()
        for writer in writers:
            writer.result(timeout=BOUND_S)
    stored = recorder.select_notifications(None, 1_000_000)
    assert len({(each.originator_id, each.originator_version) for each in stored}) == len(stored)
    at = {each.id: each for each in stored}
    for ids, number, version in acknowledged:
        for index, id in enumerate(ids or ()):
            assert (at[id].originator_id, at[id].originator_version) == (f"w{number}", 2 * version + index)
    assert len(stored) == 2 * len(acknowledged)


def test_a_save_whose_answer_was_lost_is_stored_once(relayed: Factory, lossy: Relay) -> None:
    recorder, id = relayed.application_recorder(), uuid4()
    for version, saved in enumerate(([1], [2, 3, 4]), 1):
        lossy.lose_answer(b'"seq":')
        events = [event(id, 10 * version + number) for number in range(len(saved))]
        assert recorder.insert_events(events) == saved
        assert lossy.losses == version
    assert len(recorder.select_notifications(None, 100)) == 4
    with pytest.raises(IntegrityError):
        recorder.insert_events([event(id, 10)])


def test_a_position_whose_answer_was_lost_is_stored_once(relayed: Factory, lossy: Relay) -> None:
    recorder = relayed.process_recorder()
    lossy.lose_answer(b'"seq":')
    assert recorder.insert_events([event("x")], tracking=Tracking("up", 1)) == [1]
    lossy.lose_answer(b'"seq":')
    recorder.insert_tracking(Tracking("up", 2))
    assert lossy.losses == 2
    assert recorder.max_tracking_id("up") == 2


def test_a_line_that_breaks_within_a_batch_leaves_all_or_nothing(relayed: Factory, lossy: Relay) -> None:
    recorder, id = relayed.application_recorder(), uuid4()
    lossy.cut_at(b"Nats-Batch-Sequence: 3\r")
    assert recorder.insert_events([event(id, version) for version in range(5)]) == [1, 2, 3, 4, 5]
    assert lossy.losses == 1
    assert len(recorder.select_events(id)) == 5


def test_a_read_whose_answer_was_lost_is_asked_again(relayed: Factory, lossy: Relay) -> None:
    recorder, id = relayed.application_recorder(), uuid4()
    recorder.insert_events([event(id, version) for version in range(5)])
    lossy.lose_answer(b"EOB")
    assert len(recorder.select_events(id)) == 5
    assert lossy.losses == 1


def test_a_server_that_stays_away_is_an_operational_error(own: Server) -> None:
    env = {**os.environ, "NATS_URL": own.url, "PHASEBUS_APPEND_TIMEOUT_S": "0.3"}
    with_limits = Factory(Environment("App", env))
    recorder = with_limits.process_recorder()
    asyncio.run(own.kill())
    for call in (
        lambda: recorder.insert_events([event("x")]),
        lambda: recorder.insert_events([], tracking=Tracking("up", 1)),
        lambda: recorder.select_events("x"),
        lambda: recorder.select_notifications(None, 1),
        recorder.max_notification_id,
        lambda: recorder.max_tracking_id("up"),
    ):
        with pytest.raises(OperationalError):
            call()
    with pytest.raises(TimeoutError):
        recorder.wait("up", 1, timeout=0.2)
    asyncio.run(own.start())
    for _ in range(100):  # until the line is back
        with suppress(OperationalError):
            recorder.select_events("y")
            break
    assert recorder.insert_events([event("y")])
    with_limits.close()


def test_a_subscription_goes_on_over_restarts_without_a_gap(own: Server, factory: Factory) -> None:
    recorder = factory.application_recorder()
    stop, seen = threading.Event(), list[int]()

    def write() -> int:
        for version in range(100_000):
            recorder.insert_events([event("x", version)])
            if stop.is_set():
                break
        recorder.insert_events([event("end")])
        return version + 1

    def read() -> None:
        with recorder.subscribe(gt=0) as subscription:
            for notification in subscription:
                if notification.originator_id == "end":
                    return
                seen.append(notification.originator_version)

    with ThreadPoolExecutor(2) as threads:
        writer, reader = threads.submit(write), threads.submit(read)
        for _ in range(3):
            before = len(seen)
            while len(seen) < before + 20:
                assert not reader.done() and not writer.done()
            asyncio.run(own.restart())
        stop.set()
        written = writer.result(timeout=BOUND_S)
        reader.result(timeout=BOUND_S)
    assert seen == list(range(written))


def test_a_quiet_subscription_hears_of_what_is_stored_after_a_restart(own: Server, factory: Factory) -> None:
    recorder = factory.application_recorder()
    with ThreadPoolExecutor(1) as threads, recorder.subscribe(gt=0) as subscription:
        recorder.insert_events([event("x", 1)])
        assert next(subscription).originator_version == 1
        reader = threads.submit(next, subscription)
        asyncio.run(own.restart())
        recorder.insert_events([event("x", 2)])
        assert reader.result(timeout=BOUND_S).originator_version == 2
