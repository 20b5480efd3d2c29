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
    head: bytes = b""

    @property
    def headers(self) -> dict[str, str]:
        """Parsed when asked for: of a hundred thousand records read, hardly one is looked at that closely.

        Of two headers with one name the last counts, lines that are none are left out.
        """
        return _parse_headers(self.head)

    @property
    def status(self) -> int:
        if not self.head.startswith(b"NATS/1.0 "):
            return 0
        digits = self.head[9:12]
        return int(digits) if digits.isdigit() else 0

    def stamp(self, name: bytes) -> bytes | None:
        """The last header of that name, the others unparsed."""
        return stamped(self.head, name)


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
            reply = text(words[3]) if len(words) == 5 + with_headers else ""
            yield int(words[2]), Message(text(words[1]), buffer[body:stop], reply, buffer[begin:body])
            position, missing = stop + 2, 1
        self._parts = [buffer[position:]]
        self._missing = missing


def stamped(head: bytes, name: bytes) -> bytes | None:
    """The last header of that name: the server writes its own behind the publisher's."""
    line = b"\r\n%b: " % name
    begin = head.rfind(line)
    if begin < 0:
        return None
    begin += len(line)
    return head[begin : head.find(b"\r\n", begin)].strip()


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


def _parse_headers(block: bytes) -> dict[str, str]:
    """A broken first line does not hide the others: in the answer to a Direct Get the server's own headers come behind
    whatever the publisher had stored.
    """
    first, *lines = text(block).split("\r\n")
    headers: dict[str, str] = {}
    if first.startswith("NATS/1.0 ") and (description := first[13:]):
        headers["Description"] = description
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name] = value.strip()
    return headers


def text(raw: bytes) -> str:
    """As UTF-8; bytes that are not are kept as lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")
