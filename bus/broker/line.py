"""The line to a NATS server: nats-py's client, with our own reading and writing.

nats-py connects, signs in and reconnects. Its read loop ends for good on a subject that is not UTF-8, a header of
three bytes or a late answer to a flush, and it closes for good when the server refuses something; this one does not.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog
from msgspec.json import decode
from nats import errors
from nats.aio.client import PING_PROTO, PONG_PROTO, Client, Server, Srv
from nats.aio.subscription import Subscription as Interest
from nats.aio.transport import TcpTransport

from bus.broker.rhythm import until_next_s
from bus.broker.wire import Frames, Message, text
from bus.errors import Unavailable

logger = structlog.get_logger(__name__)

Callback = Callable[[Message], None]

_BACKLOG_BYTES = 16 * 2**20
_READ_BYTES = 64 * 1024
# So often, and so long is its answer waited for: then the line is dead without a word, and given up.
_PING_S = 4.0
# Who writes when it is about time takes it along; so long after, it goes alone.
_ALMOST = 0.95
_ALONE_S = 0.025
_NOT_ALLOWED = re.compile(rb"'Permissions Violation for Publish to \"(.*)\"'", re.DOTALL)
_random = random.SystemRandom()


class LoginRefused(Exception):
    """Ends the first connect at once: another try would be refused too."""


class Line(Client):
    """nats-py's client with our own reading and writing. It calls the overridden methods; their names are its."""

    def __init__(self) -> None:
        super().__init__()
        self.callbacks: dict[int, Callback] = {}
        self.on_lost: dict[object, Callable[[], None]] = {}
        self.on_back: dict[object, Callable[[], None]] = {}
        self.on_forbidden: Callable[[str], bool] = lambda _subject: False
        self.disconnects = 0
        self.callback_errors = 0
        self.connected_at_s = -float("inf")
        self._write_is_due = False
        self._pinged_at_s = -float("inf")
        self._pong_due: asyncio.TimerHandle | None = None
        self._is_silent = asyncio.Event()

    def send(self, *parts: bytes) -> None:
        """Queue for the socket. What is sent during one pass of the event loop leaves in one write."""
        if self.is_closed:
            raise Unavailable("the connection is closed")
        if self._pending_data_size > _BACKLOG_BYTES:
            raise Unavailable(f"{self._pending_data_size} bytes wait to be sent: flush before going on")
        self._pending.extend(parts)
        self._pending_data_size += sum(map(len, parts))
        if not self._write_is_due:
            self._write_is_due = True
            asyncio.get_running_loop().call_soon(self._write)

    def gain_interest(self, subject: str, queue: str, callback: Callback, *, once: bool = False) -> int:
        sid = self._sid = self._sid + 1
        if self.is_connected:
            self.send(f"SUB {subject} {queue} {sid}\r\n".encode(), f"UNSUB {sid} 1\r\n".encode() if once else b"")
        elif self.is_closed:
            raise Unavailable("the connection is closed")
        # What a reconnect subscribes to again.
        self._subs[sid] = Interest(self, sid, subject, queue, max_msgs=int(once))

        def take_first(message: Message) -> None:
            # The server has ended it by itself.
            self._subs.pop(sid, None)
            self.callbacks.pop(sid, None)
            callback(message)

        self.callbacks[sid] = take_first if once else callback
        return sid

    def lose_interest(self, sid: int) -> None:
        if self._subs.pop(sid, None) and self.is_connected:
            with suppress(Unavailable):
                self.send(f"UNSUB {sid}\r\n".encode())

    async def round_trip(self, timeout_s: float) -> None:
        """Wait until the server has read all that was sent, and we all it had sent before. Raises Unavailable."""
        if not self.is_connected:
            raise Unavailable("there is no line to the server at the moment")
        pong: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(timeout_s):
                await self._send_ping(pong)
                answered = await pong
        except TimeoutError as error:
            raise Unavailable(f"the server did not answer within {timeout_s:g} s") from error
        if not answered:
            raise Unavailable("the line was lost before the server answered")

    async def shut(self) -> None:
        """Close without waiting for the peer."""
        self._pending.clear()
        self._pending_data_size = 0
        self._abort()
        try:
            await self._close(Client.CLOSED, do_cbs=False)
        except asyncio.CancelledError:
            # Closing cancels the task that makes a new line; if that waits for the old one to end, as we do here, its
            # cancellation comes out of the future both wait for.
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
        finally:
            self._lost()

    def next_server(self, servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
        """The server to try, and the pause before: none for the first try after a line that was good for a second."""
        server = min(servers, key=lambda server: server.reconnects)
        was_good = time.monotonic() - self.connected_at_s > 1
        return server, 0.0 if was_good and server.reconnects == 0 else _random.uniform(0.2, 0.5)

    async def on_error(self, error: Exception) -> None:
        logger.debug("connection", error=repr(error))

    async def on_reconnected(self) -> None:
        logger.info("reconnected", server=self._server_info.get("server_name"), disconnects=self.disconnects)
        for callback in list(self.on_back.values()):
            self._call(callback)

    async def _connect_to_server(self, s: Srv) -> None:
        self._abort()
        self._transport = None  # a new one for each try, so that nothing of an older try can read from it
        await super()._connect_to_server(s)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        secure = self._current_server is not None and self._current_server.uri.scheme == "tls"
        if initial_connection and secure and not info.get("tls_required"):
            raise errors.Error("the address says tls:// and the server offers none")
        await super()._process_info(info, initial_connection)

    async def _process_connect_init(self) -> None:
        # A try that failed half-way has left its loops running, and two of them can't read one socket.
        for task in (self._reading_task, self._ping_interval_task, self._flusher_task):
            if task:
                task.cancel()
        try:
            await super()._process_connect_init()
        except errors.Error as error:
            if self.connected_at_s < 0 and "auth" in str(error).lower():
                self._err = error
                raise LoginRefused from error
            raise
        if not self.is_connected:
            raise errors.UnexpectedEOF
        self.connected_at_s = time.monotonic()

    async def _read_loop(self) -> None:
        assert self._transport, "nats-py starts this loop when it has connected"
        frames = Frames()
        try:
            while chunk := await self._transport.read(_READ_BYTES):
                for frame in frames.feed(chunk):
                    if isinstance(frame, bytes):
                        await self._control(frame)
                    elif callback := self.callbacks.get(frame[0]):
                        self._call(callback, frame[1])
        except OSError as error:
            logger.info("line broken", error=repr(error))
        except Exception:
            logger.exception("reading failed")
        # However the reading ended, only a new line brings it back.
        await self._process_op_err(errors.UnexpectedEOF())

    async def _control(self, line: bytes) -> None:
        match line.split(b" ", 1):
            case [b"PING"]:
                self.send(PONG_PROTO)
            case [b"PONG"]:
                await self._process_pong()
            case [b"INFO", info]:
                await self._process_info(decode(info, type=dict[str, Any]))
            case [b"-ERR", reason]:
                # Where it can't go on, the server closes the line itself; nats-py would close for good.
                found = _NOT_ALLOWED.fullmatch(reason)
                # Who waits for an answer is told; of what nobody waits for, only this says it.
                if found is None or not self.on_forbidden(text(found[1])):
                    logger.warning("refused by the server", reason=text(reason))
            case [b"+OK"]:
                pass
            case _:
                raise ValueError(f"unknown control line {line[:40]!r}")

    def _call(self, callback: Callable[..., None], *arguments: Message) -> None:
        try:
            callback(*arguments)
        except Exception:
            self.callback_errors += 1
            logger.exception("callback failed", subject=arguments[0].subject if arguments else None)

    async def _attempt_reconnect(self) -> None:
        self.disconnects += 1
        logger.info("disconnected", disconnects=self.disconnects)
        self._abort()
        self._lost()
        await super()._attempt_reconnect()

    def _lost(self) -> None:
        self._hear_of()
        for pong in self._pongs:
            if not pong.done():
                pong.set_result(False)
        for callback in list(self.on_lost.values()):
            self._call(callback)

    async def _process_pong(self) -> None:
        self._hear_of()
        if self._pongs and not (pong := self._pongs.pop(0)).done():
            pong.set_result(True)

    async def _ping_interval(self) -> None:
        name = str(self.options["name"])
        self._hear_of()
        while not self._is_silent.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(until_next_s(time.time() - _ALONE_S, _PING_S, name)):
                    await self._is_silent.wait()
            if self.is_connected and self._is_ping_due(_PING_S / 2):
                self._wait_for_pong()
                await self._send_ping()
        await self._process_op_err(errors.StaleConnectionError())

    def _is_ping_due(self, after_s: float) -> bool:
        return self._pong_due is None and time.monotonic() - self._pinged_at_s > after_s

    def _wait_for_pong(self) -> None:
        self._pinged_at_s = time.monotonic()
        self._pong_due = asyncio.get_running_loop().call_later(_PING_S, self._is_silent.set)

    def _hear_of(self) -> None:
        """The server is there: what was waited for has come, or is not expected of this line."""
        if self._pong_due is not None:
            self._pong_due.cancel()
            self._pong_due = None
        self._is_silent.clear()

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # Not queued: a ping left over from a broken line would answer for the next one's.
        self._write()
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        if writer := self._writer:
            writer.write(PING_PROTO)

    async def _flush_pending(self, force_flush: bool = False) -> None:
        self._write()

    def _write(self) -> None:
        self._write_is_due = False
        writer = self._writer
        if not self._pending or not self.is_connected or not writer:
            return
        if writer.transport.get_write_buffer_size() > _BACKLOG_BYTES:
            self._write_is_due = True
            asyncio.get_running_loop().call_later(0.01, self._write)
            return
        if self._is_ping_due(_PING_S * _ALMOST):
            self._pongs.append(asyncio.get_running_loop().create_future())
            self._wait_for_pong()
            self._pending.append(PING_PROTO)
        writer.write(b"".join(self._pending))
        self._pending.clear()
        self._pending_data_size = 0

    @property
    def _writer(self) -> asyncio.StreamWriter | None:
        return self._transport._io_writer if isinstance(self._transport, TcpTransport) else None

    def _abort(self) -> None:
        # nats-py's close() waits for the peer to take what is buffered; a frozen one never does.
        if writer := self._writer:
            writer.transport.abort()


def options(url: str, name: str, credentials: Path | None) -> dict[str, Any]:
    """What nats-py's `connect` takes. Raises ValueError, and OSError if the credentials can't be read."""
    addresses = [address if "://" in address else f"nats://{address}" for address in url.replace(" ", "").split(",")]
    parts = urlsplit(addresses[0])
    if any(urlsplit(address).scheme not in {"nats", "tls"} for address in addresses):
        raise ValueError("an address begins with nats:// or tls://")
    login: dict[str, str | Path | None] = {}
    if credentials:
        kind = "user_credentials" if "NATS USER JWT" in credentials.read_text() else "nkeys_seed"
        login = {kind: credentials}
    elif parts.username and parts.password:
        # Not left to nats-py: it does not unquote, and forgets them for servers that the cluster tells it of.
        login = {"user": unquote(parts.username), "password": unquote(parts.password)}
    elif parts.username:
        login = {"token": unquote(parts.username)}
    return login | {
        "servers": addresses,
        "name": name,
        "connect_timeout": 2,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": 0.2,
    }
