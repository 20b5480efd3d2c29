"""A line to the server that breaks when it is told to: in front of some bytes, in the middle of them, or right behind.

What the server answers after the cut never arrives: the client can't know what became of what it sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Self

_CHUNK = 65_536


@dataclass
class Cutter:
    """Stands between a client and the server at `port`; `cut` says where the next line breaks. `heard` is what came
    from the client, as it came."""

    port: int
    cuts: int = 0
    heard: list[bytes] = field(default_factory=list)
    _cut: tuple[bytes, int] | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)
    _server: asyncio.Server | None = None

    @classmethod
    @asynccontextmanager
    async def before(cls, port: int) -> AsyncIterator[Self]:
        cutter = cls(port)
        cutter._server = await asyncio.start_server(cutter._serve, "127.0.0.1", 0)
        try:
            yield cutter
        finally:
            cutter._server.close()
            for writer in cutter._writers:
                writer.transport.abort()

    def url(self, url: str) -> str:
        """The server's url, through here."""
        assert self._server is not None
        return f"{url.rpartition(':')[0]}:{self._server.sockets[0].getsockname()[1]}"

    def cut(self, at: bytes, behind: int = 0) -> None:
        """Break the line `behind` bytes after the first byte of `at`, once, when the client sends it."""
        self._cut = at, behind

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers |= {writer, to_server}
        answers = asyncio.create_task(self._pass(from_server, writer))
        try:
            while data := await reader.read(_CHUNK):
                self.heard.append(data)
                if self._cut is not None and self._cut[0] in data:
                    at, behind = self._cut
                    self._cut = None
                    answers.cancel()
                    to_server.write(data[: data.index(at) + behind])
                    await to_server.drain()
                    await asyncio.sleep(0.05)  # the server acts on what it got while nobody hears its answer
                    self.cuts += 1
                    break
                to_server.write(data)
        finally:
            answers.cancel()
            for each in (to_server, writer):
                each.close()
                self._writers.discard(each)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(_CHUNK):
                writer.write(data)
            writer.close()
