"""A line of an export holds a record without loss, whatever was published."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.errors import MalformedMessage
from bus.log.lines import line, read, write

# What a publisher's bytes become when they are read: any text, and what was not UTF-8 as lone surrogates (PEP 383).
ON_THE_WIRE = st.binary(max_size=40).map(lambda raw: raw.decode("utf-8", "surrogateescape"))
JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


@given(
    position=st.integers(1, 2**60),
    subject=ON_THE_WIRE,
    headers=st.dictionaries(ON_THE_WIRE, ON_THE_WIRE, max_size=3),
    content=st.binary(max_size=200) | JSON.map(lambda value: repr(value).encode("utf-8", "surrogatepass")),
)
def test_any_record_comes_back_byte_for_byte(
    position: int, subject: str, headers: dict[str, str], content: bytes
) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    text = write(line(position, subject, at, headers, content))
    found = read(text, "line 1")
    assert text.endswith(b"\n") and b"\n" not in text[:-1] and b"\r" not in text
    assert (found.position, found.subject, found.at, found.headers) == (position, subject, at, headers)
    assert found.content == content


def test_json_stands_in_a_line_as_it_is() -> None:
    text = write(line(1, "bus.run.r", datetime(2026, 1, 2, tzinfo=UTC), {}, b'{"a": [1.50, "\xc3\xa4"]}'))
    assert b'"body":{"a": [1.50, "\xc3\xa4"]}' in text


@given(st.binary(max_size=300))
def test_bytes_that_are_no_line_are_refused_with_their_place(text: bytes) -> None:
    with pytest.raises(MalformedMessage, match="line 7"):
        read(text, "line 7")


@pytest.mark.parametrize("text", [b'{"position":1,"subject":"a","at":"2026-01-02T00:00:00Z"}', b"[" * 100_000])
def test_a_line_without_content_and_one_nested_too_deep_are_refused(text: bytes) -> None:
    with pytest.raises(MalformedMessage):
        read(text, "line 1")
