"""A record as one line of JSON, without any loss: what an export, an archive and an import are made of.

The body of a message that is JSON on one line stands there as it is, byte for byte, so that a line can be read and
searched; any other bytes stand as base64. Whatever is not UTF-8 in a subject or a header is escaped.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from datetime import datetime
from typing import Annotated

import msgspec

from bus.errors import MalformedMessage
from bus.format.envelope import UNDECODABLE, Envelope, decode


class Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """One record: where and when it stood in the log it comes from (UTC), and what was published.

    Exactly one of `body` (JSON) and `base64` (of anything else) is there.
    """

    position: Annotated[int, msgspec.Meta(ge=1)]
    subject: str
    at: Annotated[datetime, msgspec.Meta(tz=True)]
    headers: dict[str, str] = {}
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    base64: str | None = None

    @property
    def content(self) -> bytes:
        """What was published, byte for byte."""
        return b64decode(self.base64 or "") if self.body is msgspec.UNSET else memoryview(self.body).tobytes()

    def envelope(self) -> Envelope:
        """Raises MalformedMessage if the content is not one of ours."""
        return decode(self.content)


_line = msgspec.json.Decoder(Line)
_any = msgspec.json.Decoder()


def line(position: int, subject: str, at: datetime, headers: dict[str, str], content: bytes) -> Line:
    """A record as a line."""
    if _stands_on_one_line(content):
        return Line(position, subject, at, headers, body=msgspec.Raw(content))
    return Line(position, subject, at, headers, base64=b64encode(content).decode())


def write(record: Line) -> bytes:
    """The line, with the line break that ends it."""
    try:
        return msgspec.json.encode(record) + b"\n"
    except UnicodeEncodeError:
        # Bytes that were not UTF-8 on the wire are lone surrogates here: only escapes can carry them.
        content = b64encode(record.content).decode()
        whole = msgspec.structs.replace(record, body=msgspec.UNSET, base64=content)
        return json.dumps(msgspec.to_builtins(whole)).encode() + b"\n"


def read(text: bytes, where: str) -> Line:
    """A line that was written. Raises MalformedMessage, beginning with `where` it stands, and nothing else."""
    try:
        found = _decode(text)
        b64decode(found.base64 or "", validate=True)
    except (*UNDECODABLE, ValueError) as error:
        raise MalformedMessage(f"{where} is not a record of a log: {error}") from None
    if (found.body is msgspec.UNSET) == (found.base64 is None):
        raise MalformedMessage(f"{where} is not a record of a log: there has to be either a `body` or a `base64`")
    return found


def _decode(text: bytes) -> Line:
    try:
        return _line.decode(text)
    except msgspec.DecodeError:
        if b"\\ud" not in text:
            raise
        return msgspec.convert(json.loads(text), Line, strict=False)


def _stands_on_one_line(content: bytes) -> bool:
    if b"\n" in content or b"\r" in content or content.strip() != content:
        return False
    try:
        content.decode()
        _any.decode(content)
    except UNDECODABLE:
        return False
    return True
