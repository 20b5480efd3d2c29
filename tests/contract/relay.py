"""A relay between a client and its server that loses what a test wants lost, at the byte where it wants it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Relay:
    """Passes bytes on both ways, until a marked one comes: then the line breaks, once."""

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._lose_answer = b""
        self._cut_at = b""
        self.losses = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_answer(self, mark: bytes) -> None:
        """The next thing the server says that has `mark` in it never arrives, and the line breaks."""
        self._lose_answer = mark

    def cut_at(self, mark: bytes) -> None:
        """The line breaks just before `mark` in what the client says; what stands before it arrives."""
        self._cut_at = mark

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                threading.Thread(target=self._pass, args=(client, server, True), daemon=True).start()
                threading.Thread(target=self._pass, args=(server, client, False), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, to_server: bool) -> None:
        with suppress(OSError):
            while chunk := source.recv(1 << 16):
                if to_server and self._cut_at and self._cut_at in chunk:
                    sink.sendall(chunk[: chunk.index(self._cut_at)])
                    self._cut_at, self.losses = b"", self.losses + 1
                    break
                if not to_server and self._lose_answer and self._lose_answer in chunk:
                    self._lose_answer, self.losses = b"", self.losses + 1
                    break
                sink.sendall(chunk)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@contextmanager
def relay(port: int) -> Iterator[Relay]:
    made = Relay(port)
    try:
        yield made
    finally:
        made.close()
