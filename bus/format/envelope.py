"""The envelope: every message is one CloudEvents 1.0 event in structured JSON.

`data` stays raw bytes until someone who knows its schema decodes it, so routing, storing and auditing never pay for
a payload they do not look at. Extension attributes follow the standard's style: lower case, no underscore.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, TypeVar

import msgspec

from bus.errors import MalformedMessage

CONTENT_TYPE = "application/cloudevents+json"
T = TypeVar("T")


class Envelope(msgspec.Struct, frozen=True, gc=False, kw_only=True, omit_defaults=True):
    """One message. `id` is unique per sender and is what a resend repeats; `time` is UTC."""

    specversion: Literal["1.0"]
    id: str
    source: str
    type: str
    time: Annotated[datetime, msgspec.Meta(tz=True)]
    datacontenttype: Literal["application/json"]
    data: msgspec.Raw
    subject: str | None = None
    correlationid: str | None = None
    causationid: str | None = None
    traceparent: str | None = None
    runid: str | None = None
    phase: str | None = None
    attempt: int | None = None
    agent: str | None = None


# Deep nesting ends in RecursionError, bytes that are not UTF-8 in UnicodeDecodeError; both are just bad bytes here.
UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Envelope)


def envelope(
    type: str,  # the attribute's name in the standard
    data: object,
    *,
    id: str,
    source: str,
    time: datetime,
    correlationid: str | None = None,
    causationid: str | None = None,
    traceparent: str | None = None,
    runid: str | None = None,
    phase: str | None = None,
    attempt: int | None = None,
    agent: str | None = None,
) -> Envelope:
    """An envelope around `data`: anything msgspec can write as JSON, or a `Raw` that already is JSON."""
    raw = data if isinstance(data, msgspec.Raw) else msgspec.Raw(_encoder.encode(data))
    return Envelope(
        specversion="1.0",
        id=id,
        source=source,
        type=type,
        time=time,
        datacontenttype="application/json",
        data=raw,
        correlationid=correlationid,
        causationid=causationid,
        traceparent=traceparent,
        runid=runid,
        phase=phase,
        attempt=attempt,
        agent=agent,
    )


def encode(message: Envelope) -> bytes:
    """The bytes on the wire; golden files pin them."""
    return _encoder.encode(message)


def decode(body: bytes) -> Envelope:
    """The envelope in `body`. Raises MalformedMessage, and nothing else, for any other bytes."""
    return _strictly(_decoder, body, "a CloudEvents 1.0 envelope")


def decode_data(message: Envelope, decoder: msgspec.json.Decoder[T], what: str) -> T:
    """The payload in its own type. Raises MalformedMessage, and nothing else."""
    return _strictly(decoder, message.data, what)


def _strictly(decoder: msgspec.json.Decoder[T], body: bytes | msgspec.Raw, what: str) -> T:
    try:
        return decoder.decode(body)
    except UNDECODABLE as error:
        raise MalformedMessage(f"not {what}: {error}") from error
