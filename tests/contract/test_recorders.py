"""What the library's own cases do not ask: limits, foreign errors, order, names, several writers."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import (
    DataError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    PersistenceError,
    ProgrammingError,
    StoredEvent,
    Tracking,
    WaitInterruptedError,
)
from eventsourcing.utils import Environment

from bus.broker.connection import Connection
from bus.broker.server import Server
from bus.eventsourcing import Factory, wire
from bus.eventsourcing.names import Names

Make = Callable[..., Factory]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def make() -> Iterator[Make]:
    """Factories as the library makes them: from the environment and the application's name."""
    made: list[Factory] = []

    def factory(name: str = "App", **env: str) -> Factory:
        made.append(Factory(Environment(name, {**os.environ, **env})))
        return made[-1]

    yield factory
    for each in made:
        each.close()


def event(id: UUID | str, version: int = 1, state: bytes = b"{}", topic: str = "topic") -> StoredEvent:
    return StoredEvent(id, version, topic, state)


def test_an_oversized_event_in_a_save_of_several_is_refused_and_the_line_stays(make: Make) -> None:
    recorder, id = make().application_recorder(), uuid4()
    with pytest.raises(DataError, match="limit"):
        recorder.insert_events([event(id, 1), event(id, 2, bytes(2**20)), event(id, 3)])
    with pytest.raises(DataError, match="limit"):
        recorder.insert_events([event(id, 1, bytes(2**21))])
    assert recorder.select_events(id) == []
    assert recorder.insert_events([event(id, 1)]) == [1]


def test_a_thousand_events_are_stored_together_and_one_more_is_refused(make: Make) -> None:
    recorder, id = make().application_recorder(), uuid4()
    with pytest.raises(ProgrammingError, match="1000"):
        recorder.insert_events([event(id, version) for version in range(1001)])
    stored = [event(id, version) for version in range(1000)]
    assert recorder.insert_events(stored) == list(range(1, 1001))
    assert recorder.select_events(id) == stored
    assert recorder.select_events(id, gt=499, limit=3) == stored[500:503]
    assert recorder.select_events(id, desc=True, limit=2) == [stored[999], stored[998]]


def test_a_save_larger_than_the_lines_buffer_is_stored_whole(make: Make) -> None:
    recorder, id = make().application_recorder(), uuid4()
    stored = [event(id, version, os.urandom(900_000)) for version in range(24)]
    assert recorder.insert_events(stored) == list(range(1, 25))
    assert recorder.select_events(id) == stored
    assert [each.id for each in recorder.select_notifications(None, 100)] == list(range(1, 25))


@pytest.mark.parametrize(
    "wrong",
    [
        event("\ud800"),
        event("x" * 2000),
        event("x", topic="\ud800"),
        event("x", version=2**70),
        event("x", state="text"),  # type: ignore[arg-type]
    ],
    ids=["id", "long-id", "topic", "version", "state"],
)
def test_what_cannot_be_stored_is_a_data_error(make: Make, wrong: StoredEvent) -> None:
    recorder = make().application_recorder()
    with pytest.raises(DataError):
        recorder.insert_events([event("first"), wrong])
    assert recorder.max_notification_id() is None


@pytest.mark.parametrize(
    ("env", "error"),
    [
        ({"NATS_URL": "nats://127.0.0.1:1"}, OperationalError),
        ({"NATS_URL": "http://127.0.0.1:1"}, InterfaceError),
        ({"NATS_URL": "nats://nobody:wrong@{server}"}, OperationalError),
        ({"PHASEBUS_NAMESPACE": "No Name"}, InterfaceError),
        ({"PHASEBUS_REPLICAS": "many"}, InterfaceError),
        ({"PHASEBUS_REPLICAS": "3"}, ProgrammingError),
        ({"CREATE_TABLE": "no"}, ProgrammingError),
    ],
    ids=["nobody-there", "scheme", "login", "namespace", "setting", "no-cluster", "not-created"],
)
def test_a_wrong_environment_is_one_of_the_librarys_errors(
    make: Make, shared: Server, env: dict[str, str], error: type[PersistenceError]
) -> None:
    given = {name: value.format(server=f"127.0.0.1:{shared.port}") for name, value in env.items()}
    with pytest.raises(error):
        make(**given, PHASEBUS_REQUEST_TIMEOUT_S="1").application_recorder()


def test_without_a_server_the_error_says_what_to_set(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NATS_URL")
    with pytest.raises(InterfaceError, match="NATS_URL"):
        make()


def test_the_applications_own_variable_comes_first(make: Make, shared: Server) -> None:
    assert make("App", NATS_URL="nats://127.0.0.1:1", APP_NATS_URL=shared.url).application_recorder()


async def _api(url: str, verb: str, stream: str, body: bytes = b"") -> None:
    async with Connection.open(url, name="operator") as connection:
        answer = await connection.request(f"$JS.API.STREAM.{verb}.{stream}", body, timeout_s=5)
        assert b'"error"' not in answer.data


def test_a_stream_that_does_not_keep_the_promise_is_refused(make: Make, shared: Server) -> None:
    recorder = make().application_recorder()
    stream = recorder.events.names.stream  # type: ignore[attr-defined]
    asyncio.run(_api(shared.operator_url, "DELETE", stream))
    wrong = b'{"name": "%b", "subjects": ["%b.es.App.events.*.*"]}'
    wrong %= stream.encode(), os.environb[b"PHASEBUS_NAMESPACE"]
    asyncio.run(_api(shared.operator_url, "CREATE", stream, wrong))
    with pytest.raises(ProgrammingError, match="has subjects"):
        make().application_recorder()


def test_a_stream_that_has_gone_is_an_operational_error(make: Make, shared: Server) -> None:
    recorder = make(PHASEBUS_APPEND_TIMEOUT_S="0.3").application_recorder()
    asyncio.run(_api(shared.operator_url, "DELETE", recorder.events.names.stream))  # type: ignore[attr-defined]
    with pytest.raises(OperationalError):
        recorder.insert_events([event(uuid4())])
    with pytest.raises(OperationalError):
        recorder.select_events(uuid4())
    with pytest.raises(OperationalError):
        recorder.select_notifications(None, 10)
    with pytest.raises(PersistenceError):
        recorder.max_notification_id()


def test_the_latest_snapshot_is_that_of_the_highest_version(make: Make) -> None:
    recorder, id = make().aggregate_recorder("snapshots"), uuid4()
    for version in (10, 30, 20):
        recorder.insert_events([event(id, version)])
    assert [each.originator_version for each in recorder.select_events(id, desc=True, limit=1)] == [30]
    assert [each.originator_version for each in recorder.select_events(id, desc=True, lte=25, limit=1)] == [20]
    assert [each.originator_version for each in recorder.select_events(id)] == [10, 20, 30]
    assert [each.originator_version for each in recorder.select_events(id, gt=10)] == [20, 30]


def test_events_come_by_version_also_when_they_were_stored_otherwise(make: Make) -> None:
    recorder, id = make().application_recorder(), uuid4()
    for version in (1, 3, 2, 6):
        recorder.insert_events([event(id, version)])
    assert [each.originator_version for each in recorder.select_events(id)] == [1, 2, 3, 6]
    assert [each.originator_version for each in recorder.select_events(id, gt=2)] == [3, 6]
    assert [each.originator_version for each in recorder.select_events(id, gt=4)] == [6]


def test_namespaces_applications_and_purposes_share_nothing(make: Make) -> None:
    id = uuid4()
    names = ["App", "app", "App.x", "App x", "App%20x", "App/../x", "Größe*>", ""]
    recorders = [make(name).application_recorder() for name in names]
    recorders.append(make("App", PHASEBUS_NAMESPACE="another").application_recorder())
    for recorder in recorders:
        assert recorder.max_notification_id() is None
        assert recorder.insert_events([event(id)]) == [1]
    assert make("App").aggregate_recorder("snapshots").select_events(id) == []


@pytest.mark.parametrize("id", ["", ".", "%", "%2E", "a.*.>", "ä b\tc\r\nd\x00", "~", "/", "x" * 800])
def test_an_id_may_be_any_text(make: Make, id: str) -> None:
    recorder = make().application_recorder()
    recorder.insert_events([event("other"), event(id, 1), event(id, 2)])
    assert [each.originator_id for each in recorder.select_events(id)] == [id, id]
    assert [each.originator_id for each in recorder.select_notifications(2, 10)] == [id, id]


def test_a_uuid_stays_a_uuid_and_is_the_same_aggregate_as_its_text(make: Make) -> None:
    recorder, id = make().application_recorder(), uuid4()
    recorder.insert_events([event(id, 1)])
    with pytest.raises(IntegrityError):
        recorder.insert_events([event(str(id), 1)])
    assert recorder.select_events(str(id)) == [event(id, 1)]


def test_of_racing_writers_of_one_version_exactly_one_wins(make: Make) -> None:
    recorders = [make().application_recorder() for _ in range(8)]
    id, start = uuid4(), threading.Barrier(8)

    def write(number: int) -> int:
        wins = 0
        start.wait()
        for version in range(20):
            try:
                recorders[number].insert_events([event(id, version, str(number).encode())])
                wins += 1
            except IntegrityError:
                pass
        return wins

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(write, range(8))) == 20
    assert len(recorders[0].select_events(id)) == 20


_WRITER = """
import os, sys
from eventsourcing.persistence import IntegrityError, StoredEvent
from eventsourcing.utils import Environment
from bus.eventsourcing import Factory, wire
from bus.eventsourcing.names import Names
recorder = Factory(Environment("App", dict(os.environ))).application_recorder()
print("ready", flush=True)
sys.stdin.readline()
wins = 0
for version in range(100):
    try:
        recorder.insert_events([StoredEvent("shared", version, sys.argv[1], b"")])
        wins += 1
    except IntegrityError:
        pass
print(wins, flush=True)
"""


def test_of_two_processes_that_append_to_one_aggregate_exactly_one_wins(make: Make) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for name in ("a", "b")
    ]
    assert [writer.stdout.readline() for writer in writers if writer.stdout] == ["ready\n"] * 2
    for writer in writers:
        assert writer.stdin
        writer.stdin.write("\n")
        writer.stdin.flush()
    wins = [int(writer.communicate(timeout=30)[0]) for writer in writers]
    stored = make().application_recorder().select_events("shared")
    assert sum(wins) == len(stored) == 100
    assert wins == [sum(each.topic == name for each in stored) for name in ("a", "b")]


def test_a_position_moved_by_another_process_is_seen(make: Make) -> None:
    one, other = make().process_recorder(), make().process_recorder()
    one.insert_events([event("x", 1)], tracking=Tracking("up", 1))
    other.insert_events([event("x", 2)], tracking=Tracking("up", 2))
    with pytest.raises(IntegrityError):
        one.insert_events([event("x", 3)], tracking=Tracking("up", 2))
    assert one.insert_events([event("x", 3)], tracking=Tracking("up", 3))
    assert other.max_tracking_id("up") == one.max_tracking_id("up") == 3
    assert [each.originator_version for each in one.select_events("x")] == [1, 2, 3]


def test_a_conflict_of_the_events_leaves_the_position(make: Make) -> None:
    recorder = make().process_recorder()
    recorder.insert_events([event("x", 1)], tracking=Tracking("up", 1))
    with pytest.raises(IntegrityError):
        recorder.insert_events([event("x", 2), event("x", 1)], tracking=Tracking("up", 2))
    assert recorder.max_tracking_id("up") == 1
    assert len(recorder.select_events("x")) == 1


def test_a_state_beside_the_position_loses_no_change_of_two_processes(make: Make) -> None:
    recorders: list[Any] = [make().tracking_recorder() for _ in range(2)]

    def append(text: bytes) -> Callable[[bytes | None], bytes]:
        return lambda state: (state or b"") + text

    for number in range(6):
        recorders[number % 2].insert_tracking(Tracking("up", number + 1), append(str(number).encode()))
    recorders[0].insert_tracking(Tracking("up", 7))
    assert recorders[1].states() == {"up": b"012345"}


def test_a_hundred_threads_share_one_application(make: Make) -> None:
    recorder = make().application_recorder()
    with ThreadPoolExecutor(100) as threads:
        ids = list(threads.map(lambda _: recorder.insert_events([event(uuid4())]), range(500)))
    assert sorted(each[0] for each in ids if each) == list(range(1, 501))


def test_waiting_ends_when_another_process_has_recorded_the_position(make: Make) -> None:
    waiting, writing = make().tracking_recorder(), make().tracking_recorder()
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(waiting.wait, "up", 2, 20)
        writing.insert_tracking(Tracking("up", 1))
        assert not done.done()
        writing.insert_tracking(Tracking("up", 2))
        done.result(timeout=10)


def test_an_interrupt_ends_waiting(make: Make) -> None:
    recorder, interrupt = make().tracking_recorder(), threading.Event()
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(recorder.wait, "up", 2, 20, interrupt)
        interrupt.set()
        with pytest.raises(WaitInterruptedError):
            done.result(timeout=10)


def test_closing_wakes_who_waits_and_refuses_who_comes(make: Make) -> None:
    factory, other = make(), make()
    recorder = factory.process_recorder()
    with ThreadPoolExecutor(2) as threads:
        waiting = threads.submit(recorder.wait, "up", 2, 30)
        reading = threads.submit(next, recorder.subscribe(gt=0))
        time.sleep(0.1)  # either way of meeting is right: waiting already, or not yet
        factory.close()
        factory.close()
        for each in (waiting, reading):
            with pytest.raises(OperationalError, match="closed"):
                each.result(timeout=10)
    with pytest.raises(OperationalError, match="closed"):
        recorder.insert_events([event("x")])
    assert other.application_recorder().insert_events([event("x")]) == [1]


def test_the_connection_of_a_process_is_shared_and_ends_with_its_last_user(make: Make) -> None:
    def connections() -> int:
        gc.collect()
        return sum(each.name == "phasebus-eventsourcing" for each in threading.enumerate())

    _until(lambda: connections() == 0)
    first = Factory(Environment("A", dict(os.environ))).application_recorder()
    other = make("B")
    recorder = other.application_recorder()
    assert connections() == 1
    other.close()
    # Its factory has gone, but a recorder is a user too.
    assert first.insert_events([event("x")]) == [1]
    del first
    _until(lambda: connections() == 0)
    with pytest.raises(OperationalError):
        recorder.insert_events([event("x")])


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_a_process_that_never_closes_ends_at_once() -> None:
    code = _WRITER.replace("sys.stdin.readline()", "recorder.subscribe(gt=0)")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "a"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=20,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def _in_child(recorder: Any, queue: Any) -> None:
    queue.put(recorder.insert_events([event("child")]))


# Later Pythons warn of what this test does on purpose: fork with a thread under way.
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_makes_a_connection_of_its_own(make: Make) -> None:
    recorder = make().application_recorder()
    recorder.insert_events([event("parent")])
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(recorder, queue))
    child.start()
    assert queue.get(timeout=20) == [2]
    child.join(20)
    queue.close()
    assert recorder.insert_events([event("parent", 2)]) == [3]


def test_what_is_written_stays_what_it_is() -> None:
    # Other versions read these bytes: changing them is a decision, and an entry in the changelog.
    stored = wire.Stored("größe", 3, "topic", b"\x00state", b"123456789", True)
    position = wire.Position("Orders", 7, b"123456789", b"state")
    assert wire.encode(stored).hex() == ("96a76772c3b6c39f6503a5746f706963c406007374617465c409313233343536373839c3")
    assert wire.encode(position).hex() == "94a64f726465727307c409313233343536373839c4057374617465"
    assert wire.read_stored(wire.encode(stored)) == stored
    assert wire.read_position(wire.encode(position)) == position
    names = Names("bus", "App x", "events")
    assert names.stream == "BUS_events_App%20x"
    assert names.event("a.b", 3) == "bus.es.App%20x.events.a%2Eb.3"
    assert names.position("Orders") == "bus.es.App%20x.positions.Orders"
