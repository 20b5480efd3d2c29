from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest

from bus.errors import MalformedMessage
from bus.format.envelope import Envelope, decode, decode_data, encode, envelope

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
VALID = {
    "specversion": "1.0",
    "id": "1",
    "source": "test",
    "type": "some.v1",
    "time": "2026-01-02T03:04:05Z",
    "datacontenttype": "application/json",
    "data": {"a": 1},
}


def with_data(raw: str) -> bytes:
    """A valid envelope around data that need not be JSON."""
    return json.dumps(VALID).replace('{"a": 1}', raw).encode()


def test_the_required_attributes_of_cloudevents_are_there_and_nothing_empty_is() -> None:
    written = json.loads(encode(envelope("some.v1", {"a": 1}, id="1", source="test", time=AT)))
    assert written == {**VALID, "time": "2026-01-02T03:04:05.678901Z"}


def test_extension_attributes_are_lower_case_without_separators() -> None:
    message = envelope(
        "some.v1",
        None,
        id="1",
        source="test",
        time=AT,
        correlationid="c",
        causationid="d",
        traceparent="t",
        runid="r",
        phase="p",
        attempt=2,
        agent="a",
    )
    extensions = json.loads(encode(message)).keys() - VALID.keys()
    assert extensions == {"correlationid", "causationid", "traceparent", "runid", "phase", "attempt", "agent"}
    assert all(name.isalnum() and name.islower() for name in extensions)


def test_what_is_encoded_is_decoded_as_the_same_envelope() -> None:
    message = envelope("some.v1", {"a": [1, "\u00e9"]}, id="1", source="test", time=AT, runid="r", attempt=1)
    assert decode(encode(message)) == message


def test_raw_data_is_passed_on_byte_for_byte() -> None:
    raw = msgspec.Raw(b'{ "a" : 1.50 }')
    assert bytes(decode(encode(envelope("some.v1", raw, id="1", source="test", time=AT))).data) == bytes(raw)


def test_attributes_of_a_newer_version_are_left_alone() -> None:
    assert decode(json.dumps({**VALID, "later": {"x": 1}}).encode()).id == "1"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"\x00",
        b"not json",
        b"null",
        b"[]",
        b"{}",
        b'"text"',
        b"\xff\xfe",
        b"\xef\xbb\xbf" + json.dumps(VALID).encode(),
        json.dumps(VALID).encode()[:-1],
        json.dumps(VALID).encode() + b"{}",
        json.dumps(VALID).encode("utf-16"),
        json.dumps(VALID).replace('"id": "1"', '"id": "\xff"').encode("latin1"),
        json.dumps(VALID).replace('"id": "1"', '"id": "\\ud800"').encode(),
        json.dumps(VALID).replace('"id": "1"', '"id": "\\ud800 x, y"').encode(),
        b"\x81\xa2id\xa11",
    ],
)
def test_bytes_that_are_no_envelope_are_malformed(body: bytes) -> None:
    with pytest.raises(MalformedMessage, match="CloudEvents"):
        decode(body)


@pytest.mark.parametrize("missing", sorted(VALID))
def test_an_envelope_without_a_required_attribute_is_malformed(missing: str) -> None:
    rest = {name: value for name, value in VALID.items() if name != missing}
    with pytest.raises(MalformedMessage, match=missing):
        decode(json.dumps(rest).encode())


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("specversion", "0.3"),
        ("specversion", 1.0),
        ("id", 1),
        ("id", None),
        ("source", []),
        ("type", {}),
        ("time", 0),
        ("time", "yesterday"),
        ("time", "2026-13-01T00:00:00Z"),
        ("datacontenttype", "text/plain"),
        ("runid", 7),
        ("attempt", "1"),
        ("attempt", 1.5),
        ("attempt", True),
    ],
)
def test_a_wrong_type_is_malformed_and_named(attribute: str, value: object) -> None:
    with pytest.raises(MalformedMessage, match=attribute):
        decode(json.dumps({**VALID, attribute: value}).encode())


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e", "01", "0x1", "1" * 5000 + "e", ".5"])
def test_numbers_that_are_not_json_are_malformed(number: str) -> None:
    with pytest.raises(MalformedMessage):
        decode(with_data(number))


def test_a_time_without_a_zone_is_malformed() -> None:
    """It can't be compared with any other time, so it would break whoever reads it later."""
    with pytest.raises(MalformedMessage, match="time"):
        decode(json.dumps({**VALID, "time": "2026-01-02T03:04:05"}).encode())


def test_a_time_of_another_zone_is_the_same_instant() -> None:
    decoded = decode(json.dumps({**VALID, "time": "2026-01-02T05:04:05+02:00"}).encode())
    assert decoded.time == datetime(2026, 1, 2, 5, 4, 5, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_data_nested_a_hundred_thousand_deep_is_malformed(opening: str, closing: str) -> None:
    with pytest.raises(MalformedMessage, match="recursion"):
        decode(with_data(opening * 100_000 + "1" + closing * 100_000))


def test_of_an_attribute_given_twice_the_last_one_counts() -> None:
    """JSON leaves it open; what matters is that every reader here sees the same one."""
    body = json.dumps(VALID).replace('"id": "1"', '"id": "1", "id": "2"').encode()
    assert decode(body).id == "2"


class Price(msgspec.Struct):
    sku: str
    quantity: int


@pytest.mark.parametrize(
    "raw",
    ["{}", "[]", "null", '{"sku": "a", "quantity": "1"}', '{"sku": null, "quantity": 1}', '{"sku": 1, "quantity": 1}'],
)
def test_data_of_another_type_is_malformed_and_says_what_was_expected(raw: str) -> None:
    with pytest.raises(MalformedMessage, match="a price"):
        decode_data(decode(with_data(raw)), msgspec.json.Decoder(Price), "a price")


def test_data_that_is_not_utf_8_is_malformed() -> None:
    message = decode(with_data('{"sku": "X", "quantity": 1}').replace(b"X", b"\xff"))
    with pytest.raises(MalformedMessage, match="a price"):
        decode_data(message, msgspec.json.Decoder(Price), "a price")


def test_an_envelope_never_changes() -> None:
    message = envelope("some.v1", None, id="1", source="test", time=AT)
    with pytest.raises(AttributeError):
        message.id = "2"  # type: ignore[misc]
    assert isinstance(message, Envelope)
