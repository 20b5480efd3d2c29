"""Any JSON comes back as it was, in whatever form it travelled; any bytes are a message or MalformedMessage."""

from __future__ import annotations

import base64
import json

import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.errors import MalformedMessage
from bus.format.envelope import decode, encode, envelope
from bus.format.payload import Limits, pack, parse
from tests.driver import BEGAN_AT
from tests.properties.test_bytes import values

bounded = settings(deadline=None, max_examples=150)
limits = st.builds(Limits, st.just(2**20), st.integers(0, 300), st.sampled_from([0, 300, 600, 2**20]))
finite = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=30) | st.dictionaries(st.text(max_size=5), inner, max_size=10),
    max_leaves=30,
)
LIMITS = Limits(2**20, 0, 2**20)
sizes = st.integers(-1, 300) | st.sampled_from([2**20, 2**20 + 1, 2**31, 2**70])
contents = st.one_of(
    st.binary(max_size=60),
    st.binary(max_size=60).map(zstandard.compress),
    finite.map(lambda value: zstandard.compress(json.dumps(value).encode())),
)
hashes = st.sampled_from(["a" * 64, "", "A" * 64, "0" * 63])
forms = st.fixed_dictionaries(
    {},
    optional={
        "data": values,
        "data_base64": contents.map(lambda content: base64.b64encode(content).decode()) | st.text(max_size=8),
        "dataref": hashes.flatmap(lambda name: st.sampled_from([name, f"{name}.json", f"{name}.json.zst"])),
        "dataencoding": st.sampled_from(["zstd", "gzip", None, 1]),
        "datasize": sizes | values,
        "datasha256": hashes,
    },
)
plain = json.loads(encode(envelope("x.v1", None, id="1", source="s", time=BEGAN_AT)))
del plain["data"]


@bounded
@given(finite, limits)
def test_any_json_comes_back_as_it_was(value: object, chosen: Limits) -> None:
    message = envelope("x.v1", value, id="1", source="s", time=BEGAN_AT, runid="r")
    packed = pack(message, chosen)
    assert packed.name or len(packed.body) <= chosen.message_bytes
    parcel = parse(packed.body, chosen)
    assert (parcel.unpacked(packed.content or parcel.content) if parcel else packed.body) == encode(message)


@bounded
@given(forms, contents, st.data())
def test_any_bytes_are_unpacked_to_a_message_or_malformed(
    given_forms: dict[str, object], content: bytes, data: st.DataObject
) -> None:
    body = json.dumps({**plain, **given_forms}).encode()
    if data.draw(st.booleans()):
        begin = data.draw(st.integers(0, len(body)))
        body = body[:begin] + data.draw(st.binary(max_size=4)) + body[begin + data.draw(st.integers(0, 4)) :]
    try:
        parcel = parse(body, LIMITS)
        unpacked = body if parcel is None else parcel.unpacked(content if parcel.name else parcel.content)
        message = decode(unpacked)
    except MalformedMessage:
        return
    assert decode(encode(message)) == message
