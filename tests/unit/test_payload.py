from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from datetime import UTC, datetime
from random import Random

import pytest
import zstandard

from bus.errors import MalformedMessage, PayloadLost, TooLarge
from bus.format.envelope import Envelope, decode, encode, envelope
from bus.format.payload import Limits, is_inline, pack, parse

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LIMITS = Limits(payload_bytes=10 * 2**20, compress_above_bytes=1000, message_bytes=100_000)
RANDOM = Random(7)
RECORDS = [{"sku": RANDOM.randbytes(8).hex(), "quantity": number, "note": "checked"} for number in range(20_000)]


def message(data: object) -> Envelope:
    return envelope("some.v1", data, id="1", source="/test", time=AT, correlationid="c", runid="r", attempt=2)


def noise(size: int) -> str:
    """Text that no compressor makes smaller by a quarter."""
    return base64.b64encode(RANDOM.randbytes(size * 3 // 4)).decode()


def compressed(data: bytes, size: int | None = None, /, **changes: object) -> bytes:
    """A message with `data` compressed, which it claims to be `size` bytes."""
    document = json.loads(encode(message(None)))
    del document["data"]
    content = base64.b64encode(zstandard.compress(data)).decode()
    document |= {"data_base64": content, "dataencoding": "zstd", "datasize": len(data) if size is None else size}
    return json.dumps({name: value for name, value in (document | changes).items() if value is not None}).encode()


def opened(body: bytes, content: bytes = b"") -> bytes:
    parcel = parse(body, LIMITS)
    return body if parcel is None else parcel.unpacked(content or parcel.content)


def test_a_small_payload_stays_as_it_is() -> None:
    small = message({"a": 1})
    assert pack(small, LIMITS) == (encode(small), "", b"")
    assert is_inline(encode(small))
    assert opened(encode(small)) == encode(small)


def test_what_has_its_data_inline_is_told_without_reading_it() -> None:
    assert is_inline(encode(message('","data_base64":"' + "dataref" * 1000)))
    assert not is_inline(pack(message(RECORDS[:500]), LIMITS).body)
    assert not is_inline(b"anything else has to be looked at")


def test_a_larger_payload_is_compressed_and_read_back_byte_for_byte() -> None:
    large = message(RECORDS[:500])
    packed = pack(large, LIMITS)
    assert not packed.name
    assert len(packed.body) < len(encode(large)) / 2
    assert opened(packed.body) == encode(large)


def test_every_other_attribute_of_a_packed_message_can_be_read_by_anybody() -> None:
    for data in (RECORDS[:500], RECORDS):
        document = json.loads(pack(message(data), LIMITS).body)
        plain = json.loads(encode(message(None)))
        del plain["data"]
        assert plain.items() <= document.items()
        assert all(name.isalnum() and name.islower() for name in document.keys() - {"data_base64"})


def test_what_hardly_shrinks_is_not_compressed() -> None:
    dense = message(noise(50_000))
    assert pack(dense, LIMITS) == (encode(dense), "", b"")


def test_what_no_message_can_hold_becomes_an_object_named_by_its_hash() -> None:
    for data, ending in ((RECORDS, ".json.zst"), (noise(200_000), ".json")):
        large = message(data)
        packed = pack(large, LIMITS)
        assert packed.name == hashlib.sha256(bytes(large.data)).hexdigest() + ending
        assert len(packed.body) < 600
        assert opened(packed.body, packed.content) == encode(large)


def test_a_payload_over_the_limit_is_refused_before_anything_is_done() -> None:
    with pytest.raises(TooLarge) as caught:
        pack(message(noise(11 * 2**20)), LIMITS)
    assert caught.value.limit_bytes == LIMITS.payload_bytes


@pytest.mark.parametrize("size", [2_000, 90_000, 5_000_000])
def test_we_write_nothing_that_we_would_refuse_as_a_bomb(size: int) -> None:
    for value in ([0] * (size // 2), "a" * size, [{"status": "ok"}] * (size // 15)):
        repeated = message(value)
        packed = pack(repeated, LIMITS)
        assert opened(packed.body, packed.content) == encode(repeated)


def test_attributes_of_a_newer_version_survive_packing_and_unpacking() -> None:
    body = compressed(b'{"a": 1}', later={"x": 1})
    assert json.loads(opened(body)) == {**json.loads(encode(message({"a": 1}))), "later": {"x": 1}}


def test_a_payload_that_expands_to_more_than_declared_is_refused() -> None:
    for size in (0, 1, 9_999):
        with pytest.raises(MalformedMessage, match="more than"):
            opened(compressed(json.dumps(noise(10_000)).encode(), size))


def test_a_payload_that_expands_to_less_than_declared_is_refused() -> None:
    with pytest.raises(MalformedMessage, match="were declared"):
        opened(compressed(json.dumps(noise(1000)).encode(), 1003))


def test_a_declared_size_over_the_limit_is_refused_and_the_setting_named() -> None:
    with pytest.raises(MalformedMessage, match="PHASEBUS_PAYLOAD_LIMIT_BYTES"):
        parse(compressed(b"[]", LIMITS.payload_bytes + 1), LIMITS)


def test_what_expands_too_many_times_is_refused_as_a_bomb() -> None:
    with pytest.raises(MalformedMessage, match="bomb"):
        opened(compressed(b" " * 2**20 + b"1"))


BOMB = """
import base64, json, resource, zstandard
from bus.errors import MalformedMessage
from bus.format.payload import Limits, parse

limits = Limits(64 * 2**20, 16_384, 2**20)
compressor = zstandard.ZstdCompressor(level=3).compressobj()
content = b"".join(compressor.compress(bytes(2**20)) for _ in range(1024)) + compressor.flush()
assert len(content) < 100_000
padded = content + zstandard.compress(b"") * 10_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for bomb in (content, padded):
    for size in (2**30, 64 * 2**20, 500 * len(content), 1):
        document = {{"data_base64": base64.b64encode(bomb).decode(), "dataencoding": "zstd", "datasize": size}}
        try:
            parcel = parse(json.dumps(document).encode(), limits)
            parcel.unpacked(parcel.content)
        except MalformedMessage:
            continue
        raise SystemExit("it was not refused")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // {unit})
"""


def test_a_gibibyte_in_a_few_kilobytes_is_refused_within_64_mib_of_memory() -> None:
    script = BOMB.format(unit=2**20 if sys.platform == "darwin" else 2**10)
    ended = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, timeout=60)
    assert int(ended.stdout) < 64


def test_a_window_of_gibibytes_is_refused() -> None:
    wide = zstandard.ZstdCompressionParameters.from_level(3, window_log=27)
    stream = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    data = json.dumps(noise(9 * 2**20)).encode()
    content = base64.b64encode(stream.compress(data) + stream.flush()).decode()
    with pytest.raises(MalformedMessage, match="not zstd"):
        opened(compressed(data, data_base64=content))


def test_expanded_bytes_can_not_add_attributes_to_the_message() -> None:
    with pytest.raises(MalformedMessage, match="JSON"):
        opened(compressed(b'1,"runid":"another"'))


def test_an_object_that_is_not_the_payload_it_is_named_for_is_lost() -> None:
    packed = pack(message(noise(200_000)), LIMITS)
    for content in (packed.content[:-1], b"", packed.content.replace(b"A", b"B", 1)):
        parcel = parse(packed.body, LIMITS)
        assert parcel is not None
        with pytest.raises(PayloadLost, match=parcel.name):
            parcel.unpacked(content)


REFERENCE = json.loads(pack(message(noise(200_000)), LIMITS).body)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": 1},
        {"data_base64": "AAAA"},
        {"dataref": None},
        {"dataref": "elsewhere"},
        {"dataref": "https://example.com/" + REFERENCE["dataref"]},
        {"dataref": REFERENCE["dataref"] + ".zst"},
        {"dataref": "a" * 64 + ".json"},
        {"datasha256": None},
        {"datasha256": "A" * 64},
        {"datasha256": "../" * 8, "dataref": "../" * 8 + ".json"},
        {"datasize": None},
        {"datasize": -1},
        {"datasize": 1.5},
        {"datasize": "1"},
        {"dataencoding": "gzip"},
        {"dataencoding": "zstd"},
    ],
)
def test_a_reference_in_any_other_form_is_malformed(changes: dict[str, object]) -> None:
    document = {name: value for name, value in (REFERENCE | changes).items() if value is not None}
    with pytest.raises(MalformedMessage):
        parse(json.dumps(document).encode(), LIMITS)


@pytest.mark.parametrize(
    "changes",
    [
        {"data": 1},
        {"data_base64": None},
        {"data_base64": "not base64!"},
        {"data_base64": ""},
        {"data_base64": "AAAA"},
        {"dataencoding": None},
        {"dataencoding": "br"},
        {"datasize": None},
        {"datasha256": "a" * 64},
        {"dataref": "a" * 64 + ".json"},
    ],
)
def test_a_compressed_payload_in_any_other_form_is_malformed(changes: dict[str, object]) -> None:
    with pytest.raises(MalformedMessage):
        opened(compressed(b"[1]", **changes))


def test_a_dictionary_nobody_has_is_malformed() -> None:
    samples = [json.dumps(record).encode() for record in RECORDS[:2000]]
    dictionary = zstandard.train_dictionary(4096, samples)
    content = zstandard.ZstdCompressor(dict_data=dictionary).compress(samples[0])
    with pytest.raises(MalformedMessage, match="zstd"):
        opened(compressed(samples[0], data_base64=base64.b64encode(content).decode()))


def test_nothing_is_compressed_before_it_is_needed() -> None:
    script = "import sys, bus, bus.log.payloads; assert 'zstandard' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=20)


def test_a_packed_message_that_nobody_unpacks_is_malformed_for_whoever_decodes_it() -> None:
    with pytest.raises(MalformedMessage, match="data"):
        decode(pack(message(RECORDS), LIMITS).body)
