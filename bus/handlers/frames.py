"""What a worker and the process of an isolated handler say to each other: JSON with its length before it."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Literal

import msgspec

from bus.format.envelope import UNDECODABLE
from bus.handlers.notebook import Note
from bus.logs import Level
from bus.problem import Problem
from bus.runs.causality import Facts

LENGTH_BYTES = 4


class _Frame(msgspec.Struct, frozen=True, tag=True):
    pass


class Setup(_Frame, frozen=True):
    """First: where the agent stands. `modules` (name, file) are imported in order, the agent is `name` in the last."""

    modules: list[tuple[str, str | None]]
    name: str
    capabilities: list[str]
    log_level: Level
    pretty: bool


class Ready(_Frame, frozen=True):
    """The agent has been imported. `forks`: the process can be copied, once for each attempt."""

    forks: bool


class Broken(_Frame, frozen=True):
    """The agent can't be had, for this reason."""

    reason: str
    trace: str


class Begin(_Frame, frozen=True):
    """Call the handler. `bound` are the fields of its log lines; the rest is what its notebook holds already."""

    capability: str
    input: msgspec.Raw
    facts: Facts
    bound: dict[str, Any]
    outcomes: dict[str, msgspec.Raw] = {}
    unknown: list[str] = []
    saved: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Alive(_Frame, frozen=True):
    """The handler has given a sign of life."""


class Reported(_Frame, frozen=True):
    """The handler's own word on how far it is."""

    fraction: float
    note: str


class Noted(_Frame, frozen=True):
    """To be written into the log: the handler waits for it."""

    number: int
    note: Note


class Written(_Frame, frozen=True):
    """The worker has written the note of that number, or has not."""

    number: int
    failure: Literal["", "refused", "unavailable", "malformed"] = ""
    reason: str = ""


class Emitted(_Frame, frozen=True):
    """A part of the result."""

    chunk: msgspec.Raw


class Answered(_Frame, frozen=True):
    """The handler's answer."""

    output: msgspec.Raw


class Failed(_Frame, frozen=True):
    """Why there is none."""

    problem: Problem


Frame = Setup | Ready | Broken | Begin | Alive | Reported | Emitted | Noted | Written | Answered | Failed
_decoder: msgspec.json.Decoder[Frame] = msgspec.json.Decoder(Frame)


def encode(frame: Frame) -> bytes:
    """The frame's bytes, their length before them."""
    body = msgspec.json.encode(frame, enc_hook=repr)
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


def length(head: bytes) -> int:
    return int.from_bytes(head, "big")


def decode(body: bytes) -> Frame:
    """The frame in these bytes. Raises msgspec.MsgspecError."""
    return _decoder.decode(body)


class Pipe(msgspec.Struct, frozen=True):
    """The worker's end of a socket."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def open(cls, sock: socket.socket) -> Pipe:
        return cls(*await asyncio.open_unix_connection(sock=sock))

    def send(self, frame: Frame) -> None:
        self.writer.write(encode(frame))

    async def receive(self) -> Frame | None:
        """The next frame, or None: there will be none any more, or what came is not one."""
        try:
            size = length(await self.reader.readexactly(LENGTH_BYTES))
            return decode(await self.reader.readexactly(size))
        except (asyncio.IncompleteReadError, OSError, *UNDECODABLE):
            return None

    def close(self) -> None:
        self.writer.transport.abort()
