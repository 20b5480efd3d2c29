"""The bytes on the wire, pinned."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec
import pytest

from bus.format.envelope import decode, decode_data, encode
from bus.format.payload import Limits, parse
from bus.log.garbage import COLLECTED
from bus.registry.card import read_event
from bus.registry.orders import read_order
from bus.registry.presence import Beat, Present
from bus.rules import dead, events
from bus.rules.dead import LETTER, UNREADABLE
from bus.rules.events import COMMIT, Event, Known
from bus.rules.priority import Queue
from bus.runs.halts import read_halt
from bus.runs.ledger import WORK
from bus.runs.waiting import read_bell
from tests.golden.samples import (
    AGENTS,
    AT,
    BEAT,
    BREAKERS,
    CALLS,
    COORDINATION,
    DIED,
    EVENTS,
    FOLDER,
    HALT,
    LARGE,
    LIMITS,
    MESSAGES,
    NOTICES,
    ORDERS,
    PAYLOADS,
    PRESENT,
    RECOVERIES,
    REMOVED,
    REPLIES,
    ROOMY,
    ROWS,
    RUN,
    SCHEDULES,
    STANDING,
    TALLY,
    UNDECODED,
    VERDICTS,
    golden,
)

DECISION = (
    "the bytes of {name} have changed. Other processes, other versions and old logs hold the old ones, so this is an "
    "interop decision: can old logs still be read, does the type need a new version? If it is wanted, write it into "
    "the changelog and run `python -m tests.golden.samples`."
)
EVERYTHING = [event for group in EVENTS.values() for event in group]


@pytest.mark.parametrize("name", MESSAGES)
def test_the_bytes_of_a_message_never_change_by_accident(name: str) -> None:
    assert MESSAGES[name] == golden(name).read_bytes(), DECISION.format(name=name)


def test_every_golden_file_belongs_to_a_message() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == set(MESSAGES)


def test_every_type_of_event_has_a_golden_file() -> None:
    assert set(EVENTS) == {kind.__struct_config__.tag for kind in Known.__args__}
    assert all(events.type_of(event) == name for name, group in EVENTS.items() for event in group)


@pytest.mark.parametrize(("name", "expected"), [("commit", EVERYTHING), *EVENTS.items()], ids=["commit", *EVENTS])
def test_golden_events_are_read_back_equal(name: str, expected: Sequence[Event]) -> None:
    message = decode(golden(name).read_bytes())
    commit = events.commit(message, 7)
    assert list(commit.events) == list(expected)
    assert (commit.run, commit.at, commit.source, message.type) == (RUN, AT, "agent/coder/coder-1", COMMIT)
    assert (commit.correlation, commit.causation) == ("order-7", "0f9e8d7c6b5a49382716f5e4d3c2b1a0")


def test_golden_work_says_whose_it_is_and_leaves_the_rest_to_the_log() -> None:
    message = decode(golden(WORK).read_bytes())
    assert (message.type, message.runid, message.phase, message.attempt) == (WORK, RUN, "-8", 2)
    assert bytes(message.data) == b"null"


@pytest.mark.parametrize(("name", "expected"), [(LETTER, DIED), (UNREADABLE, UNDECODED)])
def test_a_golden_dead_letter_is_read_back_equal(name: str, expected: object) -> None:
    assert dead.read(decode(golden(name).read_bytes())) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *VERDICTS.items(),
        (COLLECTED, REMOVED),
        *NOTICES.items(),
        *SCHEDULES.items(),
        *COORDINATION.items(),
        *BREAKERS.items(),
        *LIMITS.items(),
        *RECOVERIES.items(),
        *CALLS.items(),
    ],
)
def test_what_operators_did_is_read_back_equal(name: str, expected: object) -> None:
    message = decode(golden(name).read_bytes())
    assert decode_data(message, msgspec.json.Decoder(type(expected)), "an operator's record") == expected


@pytest.mark.parametrize(("name", "expected"), AGENTS.items())
def test_what_the_log_says_of_an_agent_is_read_back_equal(name: str, expected: object) -> None:
    assert read_event(decode(golden(name).read_bytes())) == expected


@pytest.mark.parametrize(("name", "expected"), ORDERS.items())
def test_an_order_to_agents_is_read_back_equal(name: str, expected: object) -> None:
    assert read_order(decode(golden(name).read_bytes())) == expected


def test_golden_signs_of_life_are_read_back_equal() -> None:
    assert msgspec.json.decode(golden("beat").read_bytes(), type=Beat) == BEAT
    assert msgspec.json.decode(golden("present.v1").read_bytes(), type=Present) == PRESENT


@pytest.mark.parametrize(("name", "expected"), ROWS.items())
def test_golden_rows_are_read_back_equal(name: str, expected: object) -> None:
    read = msgspec.json.decode(golden(name).read_bytes(), type=type(expected))
    assert msgspec.json.encode(read) == msgspec.json.encode(expected)


@pytest.mark.parametrize(("name", "expected"), [("tally", TALLY), ("standing", STANDING)])
def test_what_is_shared_of_breakers_and_limits_is_read_back_equal(name: str, expected: object) -> None:
    assert msgspec.json.decode(golden(name).read_bytes(), type=type(expected)) == expected


def test_the_golden_bell_is_read_back_equal() -> None:
    assert read_bell(golden("bell").read_bytes()) == Queue("high", 2)


def test_the_golden_halt_is_read_back_equal() -> None:
    assert read_halt(golden("halt").read_bytes()) == HALT


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in MESSAGES
        if name not in {"beat", "bell", "halt", "present.v1", "tally", "standing", *REPLIES, *ROWS}
    ],
)
def test_every_golden_message_is_a_cloudevent_and_compact_json(name: str) -> None:
    written = golden(name).read_bytes()
    document = json.loads(written)
    assert {"specversion", "id", "source", "type", "time", "datacontenttype", "data"} <= document.keys()
    assert document["time"] == "2026-01-02T03:04:05.678901Z"
    assert b"\n" not in written


@pytest.mark.parametrize("name", PAYLOADS)
def test_the_form_of_a_payload_never_changes_by_accident(name: str) -> None:
    written, pinned = (json.loads(body) for body in (PAYLOADS[name].body, golden(f"payload/{name}").read_bytes()))
    # What a compressor makes of it may change with its version; how it is read may not.
    assert bool(written.pop("data_base64", "")) == bool(pinned.pop("data_base64", ""))
    assert list(written.items()) == list(pinned.items()), DECISION.format(name=name)


def test_a_golden_compressed_payload_is_read_back_equal() -> None:
    parcel = parse(golden("payload/compressed").read_bytes(), Limits(ROOMY, 0, ROOMY))
    assert parcel is not None
    assert parcel.unpacked(parcel.content) == encode(LARGE)


def test_golden_references_name_an_object_by_the_hash_of_the_payload() -> None:
    for name in ("object", "object-compressed"):
        parcel = parse(golden(f"payload/{name}").read_bytes(), Limits(ROOMY, 0, ROOMY))
        assert parcel is not None
        assert parcel.name == PAYLOADS[name].name
        assert parcel.unpacked(PAYLOADS[name].content)
