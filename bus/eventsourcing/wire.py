"""What the messages hold: MessagePack arrays, so that one is read without looking at its headers.

Pure, and knows nothing of the library: ids are text, states are bytes. New fields go to the end, with a default.
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import DecodeError, Struct, msgpack

from bus.errors import MalformedMessage


class Stored(Struct, frozen=True, array_like=True, gc=False):
    """One event or snapshot. `save` names the call that stored it, the same for all events of one call.

    `is_uuid`: the id was given as a UUID; `id` is then its usual text.
    """

    id: str
    version: int
    topic: str
    state: bytes
    save: bytes
    is_uuid: bool = False


class Position(Struct, frozen=True, array_like=True, gc=False):
    """How far events of `application` were processed, and what a small view keeps beside that."""

    application: str
    notification_id: int
    save: bytes
    state: bytes | None = None


Change = Callable[[bytes | None], bytes]
"""The next state from the one before, None at first. Called again if another process was faster."""

_encoder = msgpack.Encoder()
_stored = msgpack.Decoder(Stored)
_position = msgpack.Decoder(Position)


def encode(message: Stored | Position) -> bytes:
    """Raises MalformedMessage for what can't be written: text that is not Unicode, a number over 64 bits."""
    try:
        return _encoder.encode(message)
    except (TypeError, ValueError, OverflowError) as error:
        raise MalformedMessage(f"{message!r:.200} can't be stored: {error}") from error


def read_stored(body: bytes) -> Stored:
    """Raises MalformedMessage."""
    try:
        return _stored.decode(body)
    except DecodeError as error:
        raise MalformedMessage(f"{body[:40]!r} is not a stored event: {error}") from error


def read_position(body: bytes) -> Position:
    """Raises MalformedMessage."""
    try:
        return _position.decode(body)
    except DecodeError as error:
        raise MalformedMessage(f"{body[:40]!r} is not a position: {error}") from error
