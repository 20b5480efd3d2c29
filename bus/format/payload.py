"""A payload's three forms in a message: as it is, compressed, or a reference to an object named by its hash.

Only the envelope's `data` changes its form, at the same place; every other attribute stays readable for anybody:

    data                                             JSON, as it is
    data_base64, dataencoding, datasize              compressed (zstd)
    dataref, datasha256, datasize[, dataencoding]    an object of the namespace's bucket

Size and hash are of the JSON itself. Whoever reads trusts neither: nothing is expanded beyond what was declared, and
nothing may be declared beyond the limits. Source: CloudEvents 1.0, its JSON format and its extension `dataref`.
"""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from bus.errors import MalformedMessage, PayloadLost, TooLarge
from bus.format.envelope import UNDECODABLE, Envelope, encode

NAME = re.compile(r"[0-9a-f]{64}\.json(?:\.zst)?")
"""How an object is called: by what it holds, so the same payload is one object."""

# Measured with level 3: JSON of events, texts, code and numbers shrinks 2 to 22 times, a sparse matrix 290 times. What
# shrinks more (one record repeated: 10,000 times) is a bomb for whoever trusts it; we write it as it is.
_MOST_RATIO = 500
_LEVEL = 3
# Decoders need not support more (RFC 8878, 3.1.1.1.2); level 3 makes windows of 2 MiB.
_WINDOW_BYTES = 8 * 2**20
# Each reader expands it again, so it has to be worth it.
_WORTH = 0.75
# How `encode` begins the data, after an attribute that is text; inside of a text the quotes would be escaped.
_INLINE = b'","data":'
_INLINE_WITHIN = 1024
_ATTRIBUTES = {"data", "data_base64", "dataref", "dataencoding", "datasize", "datasha256"}
_FORMS = (
    {"data_base64", "dataencoding", "datasize"},
    {"dataref", "datasize", "datasha256"},
    {"dataref", "dataencoding", "datasize", "datasha256"},
)

T = TypeVar("T")
_encoder = msgspec.json.Encoder()


class Limits(Struct, frozen=True):
    """In bytes: a payload as it is, from where on it is compressed, and what fits into one message."""

    payload_bytes: int
    compress_above_bytes: int
    message_bytes: int


class Packed(NamedTuple):
    """A message's bytes, and the object that has to be stored before they are sent; no name, no object."""

    body: bytes
    name: str = ""
    content: bytes = b""


class _Forms(Struct, frozen=True):
    """What an envelope says of its data."""

    data: Raw | UnsetType = UNSET
    data_base64: bytes | UnsetType = UNSET
    dataref: str | UnsetType = UNSET
    dataencoding: Literal["zstd"] | UnsetType = UNSET
    datasize: Annotated[int, msgspec.Meta(ge=0)] | UnsetType = UNSET
    datasha256: str | UnsetType = UNSET


_forms = msgspec.json.Decoder(_Forms)
_attributes = msgspec.json.Decoder(dict[str, Raw])
_document = msgspec.json.Decoder(Raw)


class Parcel(Struct, frozen=True):
    """A message whose data is not inline. With a `name`, its content is that object's; `size_bytes` is expanded."""

    attributes: dict[str, Raw]
    size_bytes: int
    is_compressed: bool
    content: bytes = b""
    name: str = ""

    def unpacked(self, content: bytes) -> bytes:
        """The message with its data inline, byte for byte what `encode` had made of it.

        Raises MalformedMessage if the content is not what was declared; PayloadLost if it is an object's.
        """
        try:
            data = self._data(content)
        except MalformedMessage as error:
            if self.name:
                raise PayloadLost(f"object {self.name} is not the payload it is named for: {error}") from error
            raise
        return _rewritten(self.attributes, {"data": Raw(data)})

    def _data(self, content: bytes) -> bytes:
        data = _expanded(content, self.size_bytes) if self.is_compressed else content
        if len(data) != self.size_bytes:
            raise MalformedMessage(f"the payload has {len(data)} bytes, {self.size_bytes} were declared")
        if self.name and hashlib.sha256(data).hexdigest() != self.name[:64]:
            raise MalformedMessage("its hash is another")
        # Without this, what follows the first value would become attributes of the envelope.
        _strictly(_document, data, "one JSON document")
        return data


def pack(message: Envelope, limits: Limits) -> Packed:
    """The message in the form that suits its size. Raises TooLarge: the payload is over the limit."""
    size = len(memoryview(message.data))
    if size > limits.payload_bytes:
        raise TooLarge(f"the payload of {message.type}", size, limits.payload_bytes)
    fits = size < limits.message_bytes and len(body := encode(message)) <= limits.message_bytes
    if fits and size <= limits.compress_above_bytes:
        return Packed(body)
    data = bytes(message.data)
    small = _compressed(data)
    is_smaller = len(small) < _WORTH * size and size <= _MOST_RATIO * len(small)
    if len(small) * 4 / 3 < _WORTH * size and is_smaller:
        inside = _in_form(message, {"data_base64": small, "dataencoding": "zstd", "datasize": size})
        if len(inside) <= limits.message_bytes:
            return Packed(inside)
    if fits:
        return Packed(body)
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"{sha256}.json.zst" if is_smaller else f"{sha256}.json"
    encoding = {"dataencoding": "zstd"} if is_smaller else {}
    body = _in_form(message, {"dataref": name, **encoding, "datasize": size, "datasha256": sha256})
    return Packed(body, name, small if is_smaller else data)


def is_inline(body: bytes) -> bool:
    """Whether `parse` need not look: true for what `encode` has written with its data inline, at no cost (0.2 µs)."""
    return body.find(_INLINE, 0, _INLINE_WITHIN) >= 0


def parse(body: bytes, limits: Limits) -> Parcel | None:
    """What has to be expanded or fetched, None if the data is inline. Raises MalformedMessage, and nothing else."""
    forms = _strictly(_forms, body, "an envelope with data")
    given = {name for name in _ATTRIBUTES if getattr(forms, name) is not UNSET}
    if given == {"data"}:
        return None
    size = forms.datasize
    if size is UNSET or given not in _FORMS:
        raise MalformedMessage(f"an envelope has its data in one of three forms, not {', '.join(sorted(given)) or '-'}")
    if size > limits.payload_bytes:
        raise MalformedMessage(
            f"a payload of {size} bytes is declared, the limit is {limits.payload_bytes} "
            "(PHASEBUS_PAYLOAD_LIMIT_BYTES, the same for all who write and read)"
        )
    attributes = _strictly(_attributes, body, "an envelope")
    is_compressed = forms.dataencoding == "zstd"
    if forms.data_base64 is not UNSET:
        return Parcel(attributes, size, is_compressed, content=forms.data_base64)
    name = f"{forms.datasha256}.json{'.zst' if is_compressed else ''}"
    if forms.dataref != name or not NAME.fullmatch(name):
        raise MalformedMessage(f"an envelope refers to its data by the hash of it, not {forms.dataref!r}")
    return Parcel(attributes, size, is_compressed, name=name)


def _in_form(message: Envelope, form: dict[str, object]) -> bytes:
    empty = encode(msgspec.structs.replace(message, data=Raw(b"null")))
    return _rewritten(_attributes.decode(empty), form)


def _rewritten(attributes: dict[str, Raw], form: dict[str, object]) -> bytes:
    """The envelope with its data in another form, at the same place; attributes of newer versions are kept."""
    written: dict[str, object] = {}
    for name, value in attributes.items():
        written |= form if name in _ATTRIBUTES else {name: value}
    return _encoder.encode(written)


def _check_ratio(size: int, expanded: int) -> None:
    if expanded > _MOST_RATIO * size:
        raise MalformedMessage(f"{size} bytes that expand to {expanded} are a bomb: {_MOST_RATIO} times is the limit")


def _compressed(data: bytes) -> bytes:
    import zstandard  # noqa: PLC0415 - most processes never meet a payload that needs it

    return zstandard.ZstdCompressor(level=_LEVEL).compress(data)


def _expanded(content: bytes, size: int) -> bytes:
    """At most `size` bytes, whatever the content says of itself. Raises MalformedMessage."""
    import zstandard  # noqa: PLC0415 - most processes never meet a payload that needs it

    _check_ratio(len(content), size)
    try:
        reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).stream_reader(
            content, read_across_frames=True
        )
        data = reader.read(size)
        more = reader.read(1)
    except (zstandard.ZstdError, MemoryError) as error:
        raise MalformedMessage(f"not zstd: {error}") from error
    if more:
        raise MalformedMessage(f"the payload expands to more than the {size} bytes that were declared")
    return data


def _strictly(decoder: msgspec.json.Decoder[T], body: bytes, what: str) -> T:
    try:
        return decoder.decode(body)
    except UNDECODABLE as error:
        raise MalformedMessage(f"not {what}: {error}") from error
