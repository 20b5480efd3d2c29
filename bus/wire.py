"""What is on the line to a NATS server, as values: bytes in, messages out, and the headers of a message both ways.

Pure: no socket, no clock. Whatever arrives is a message; nothing a publisher can send makes reading stop.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from msgspec import Struct

from bus.errors import InvalidName

_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")


class Message(Struct, frozen=True, gc=False):
    """What arrived. Bytes that are not UTF-8 are kept as lone surrogates (PEP 383) in subject, reply and headers.

    `status` is the number in the first line of the headers, 0 if none. Whoever publishes can write one: it means
    something only to code that expects a status on an inbox of its own. A header called `Status` never sets it.
    """

    subject: str
    data: bytes
    reply: str = ""
    headers: dict[str, str] | None = None
    status: int = 0


class Frames:
    """The server's side of the protocol: bytes in, cut anywhere; messages and control lines out."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._missing = 0

    def feed(self, chunk: bytes) -> Iterator[tuple[int, Message] | bytes]:
        """Yield (subscription id, message), or a control line such as `PING`; to be read to its end.

        Raises ValueError for what can't come from a server: only a new connection helps.
        """
        self._parts.append(chunk)
        self._missing -= len(chunk)
        if self._missing > 0:  # a large message is joined once, not once per chunk
            return
        buffer = b"".join(self._parts)
        position, size, missing = 0, len(buffer), 1
        while (end := buffer.find(b"\r\n", position)) >= 0:
            line = buffer[position:end]
            if not line.startswith((b"MSG ", b"HMSG ")):
                yield line
                position = end + 2
                continue
            # Split at spaces only: other white space is a legal, if hostile, part of a subject.
            words = line.split(b" ")
            begin, stop = end + 2, end + 2 + int(words[-1])
            if (missing := stop + 2 - size) > 0:
                break
            with_headers = line[0] == ord("H")
            body = begin + int(words[-2]) if with_headers else begin
            headers, status = _parse_headers(buffer[begin:body]) if with_headers else (None, 0)
            reply = text(words[3]) if len(words) == 5 + with_headers else ""
            yield int(words[2]), Message(text(words[1]), buffer[body:stop], reply, headers, status)
            position, missing = stop + 2, 1
        self._parts = [buffer[position:]]
        self._missing = missing


def header_block(headers: Mapping[str, str]) -> bytes:
    """Headers as sent. Raises InvalidName for one that would break the line."""
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or "\r" in value or "\n" in value:
            raise InvalidName(f"header {name!r}: {value!r} can't be sent: a name has no spaces, a value no line breaks")
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    try:
        return f"NATS/1.0\r\n{lines}\r\n".encode()
    except UnicodeEncodeError as error:
        raise InvalidName(f"a header is not UTF-8: {error}") from error


def _parse_headers(block: bytes) -> tuple[dict[str, str] | None, int]:
    """Headers and status; lines that are none are left out, and None says that nothing was left.

    Of two headers with one name the last counts, and a broken first line does not hide the others: in the answer to
    a Direct Get the server's own headers come behind whatever the publisher had stored.
    """
    first, *lines = text(block).split("\r\n")
    headers: dict[str, str] = {}
    status = first[9:12] if first.startswith("NATS/1.0 ") else ""
    if status and (description := first[13:]):
        headers["Description"] = description
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name] = value.strip()
    return headers or None, int(status) if status.isascii() and status.isdecimal() else 0


def text(raw: bytes) -> str:
    """As UTF-8; bytes that are not are kept as lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")
