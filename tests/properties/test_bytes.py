"""Whatever the bytes: a message, or MalformedMessage, and nothing else."""

from __future__ import annotations

import json

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.errors import InvalidName, MalformedMessage
from bus.format import subjects
from bus.format.envelope import Envelope, decode, decode_data, encode, envelope
from bus.format.subjects import Subjects, Work
from bus.rules import events
from bus.rules.events import COMMIT, Commit
from tests.driver import BEGAN_AT

ATTRIBUTES = [*Envelope.__struct_fields__, "later"]
bounded = settings(deadline=None, max_examples=150)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)
valid = json.loads(encode(envelope(COMMIT, {"events": []}, id="1", source="s", time=BEGAN_AT, runid="r")))
nearly = st.builds(
    lambda changes: json.dumps({**valid, **changes}).encode(),
    st.dictionaries(st.sampled_from(ATTRIBUTES), values, max_size=3),
)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A good message with one piece of it replaced."""
    body = draw(nearly)
    begin = draw(st.integers(0, len(body)))
    return body[:begin] + draw(st.binary(max_size=6)) + body[begin + draw(st.integers(0, 6)) :]


@bounded
@given(st.one_of(st.binary(max_size=200), values.map(lambda value: json.dumps(value).encode()), nearly, damaged()))
def test_any_bytes_are_an_envelope_or_malformed(body: bytes) -> None:
    try:
        message = decode(body)
    except MalformedMessage:
        return
    assert decode(encode(message)) == message


@bounded
@given(st.one_of(nearly, damaged()))
def test_any_envelope_is_a_commit_or_malformed(body: bytes) -> None:
    try:
        commit = events.commit(decode(body), 1)
    except MalformedMessage:
        return
    assert isinstance(commit, Commit)


TAGS = [kind.__struct_config__.tag for kind in events.Known.__args__] + ["phase.dreamt.v9", "", None]
nearly_events = st.builds(
    lambda tag, members: {**members, "type": tag},
    st.sampled_from(TAGS),
    st.dictionaries(
        st.sampled_from(
            ["phase", "attempt", "item", "problem", "plan", "input", "by", "reason", "deadline_at", "items", "output"]
        ),
        st.one_of(
            values,
            st.sampled_from(
                [
                    "a",
                    1,
                    "2026-01-01T00:00:00Z",
                    {"code": "lost", "title": "gone"},
                    {"name": "p", "phases": [{"key": "a", "capability": "do"}]},
                    {"name": "p", "phases": [{"key": "a", "capability": "do", "after": ["a"]}]},
                ]
            ),
        ),
        max_size=6,
    ),
)


@bounded
@given(st.lists(nearly_events, min_size=1, max_size=3), st.data())
def test_any_events_are_read_as_they_are_or_malformed(written: list[dict[str, object]], data: st.DataObject) -> None:
    raw = json.dumps({"events": written}, ensure_ascii=False).encode("utf-8", "surrogatepass")
    begin = data.draw(st.integers(0, len(raw)))
    cut = data.draw(st.booleans())
    body = raw[:begin] + data.draw(st.binary(max_size=2)) + raw[begin:] if cut else raw
    message = envelope(COMMIT, msgspec.Raw(body), id="1", source="s", time=BEGAN_AT, runid="r")
    try:
        commit = events.commit(message, 1)
    except MalformedMessage:
        return
    if not cut:
        assert [events.type_of(event) for event in commit.events] == [event["type"] for event in written]


class Order(msgspec.Struct):
    phase: str
    input: object
    attempt: int = 1


@bounded
@given(
    st.one_of(st.binary(max_size=100), values.map(lambda value: json.dumps({"phase": "a", "input": value}).encode()))
)
def test_any_data_is_of_its_type_or_malformed(raw: bytes) -> None:
    message = envelope("x.v1", msgspec.Raw(raw), id="1", source="s", time=BEGAN_AT)
    try:
        assert decode_data(message, msgspec.json.Decoder(Order), "an order").phase == "a"
    except MalformedMessage as error:
        assert "an order" in str(error)


names = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,62}", fullmatch=True)
works = st.builds(
    Work,
    st.lists(st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True), min_size=1, max_size=4).map(".".join),
    names,
    names | st.integers(-99, 99).map(str),
    st.none() | st.integers(0, 10**6),
    st.integers(1, 10**6),
    names,
    names,
    st.integers(0, 3),
)


@bounded
@given(works)
def test_a_work_subject_says_what_it_was_made_of(work: Work) -> None:
    names = Subjects("lab")
    subject = names.work(work)
    assert names.parse_work(subject) == work
    assert len(subject.split(".")) == 9


@bounded
@given(st.text(st.characters()) | st.lists(st.text(st.characters(), max_size=5), min_size=7, max_size=7).map(".".join))
def test_any_other_subject_is_malformed_or_made_again_of_what_it_says(text: str) -> None:
    names = Subjects()
    subject = f"bus.work.{text}"
    try:
        work = names.parse_work(subject)
    except MalformedMessage:
        return
    assert names.work(work) == subject


@bounded
@given(st.text(st.characters(), max_size=80))
def test_any_text_is_one_plain_token_or_no_name(text: str) -> None:
    for check in (subjects.phase_key, lambda value: subjects.name(value, "agent"), subjects.capability_token):
        try:
            token = check(text)
        except InvalidName:
            continue
        assert token.isascii()
        assert not set(token) & set(" .*>\r\n\t\0")
        assert 0 < len(token) <= 128
