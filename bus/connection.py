"""One connection to NATS that nothing received can stop: requests, subscriptions and publishes on one socket.

nats-py makes the connection, signs in and reconnects; reading and writing are ours. Its read loop ends for good on a
subject that is not UTF-8, a header of three bytes or a late answer to a flush. Ours delivers whatever arrives as data
and leaves it to the receiver to call it malformed; a message is passed to a plain function, without a task or a queue.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import unquote, urlsplit

import structlog
from msgspec import Struct
from msgspec.json import decode
from nats import errors
from nats.aio.client import PING_PROTO, PONG_PROTO, Client, Server, Srv
from nats.aio.subscription import Subscription as Interest
from nats.aio.transport import TcpTransport

from bus.errors import InvalidName, NoResponders, SettingsError, TooLarge, Unavailable

logger = structlog.get_logger(__name__)

NO_RESPONDERS = 503
_WORD = r"[^\x00-\x20\x7f*>.\ud800-\udfff]+"
_SUBJECT = re.compile(rf"{_WORD}(?:\.{_WORD})*")
_FILTER = re.compile(rf"(?:(?:{_WORD}|\*)\.)*(?:{_WORD}|\*|>)")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_SUBJECT_BYTES = 1024
_BACKLOG_BYTES = 16 * 2**20
_READ_BYTES = 64 * 1024
_PING_S = 3
_CLOSE_S = 1.0
_random = random.SystemRandom()


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


Callback = Callable[[Message], None]


class Subscription:
    """Messages on one subject filter, passed to a function. Survives reconnects."""

    __slots__ = ("_client", "_sid")

    def __init__(self, client: _Client, sid: int) -> None:
        self._client = client
        self._sid = sid

    def unsubscribe(self) -> None:
        """End it now: the callback is not called again, what is on its way is dropped. Never raises."""
        self._client.lose_interest(self._sid)
        self._client.callbacks.pop(self._sid, None)

    async def drain(self, timeout_s: float) -> None:
        """End it, after the callback has had all that the server had sent by then.

        Raises Unavailable when the server does not confirm; the callback stays, and `drain` can be called again.
        """
        self._client.lose_interest(self._sid)
        await self._client.round_trip(timeout_s)
        self._client.callbacks.pop(self._sid, None)


class Connection:
    """One socket to the server, with a new one made for ever when it breaks. Made by `open`."""

    def __init__(self, client: _Client, inbox_prefix: str) -> None:
        self._client = client
        self._inbox_prefix = inbox_prefix
        self._inbox = f"{self.new_inbox()}."
        self._waiting: dict[str, asyncio.Future[Message]] = {}
        self._streams: dict[str, Callback] = {}

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str,
        *,
        name: str,
        inbox_prefix: str = "_INBOX",
        credentials: Path | None = None,
        connect_timeout_s: float = 5.0,
    ) -> AsyncIterator[Connection]:
        """Connect to `url`: one or several of `nats://user:password@host:port` or `tls://...`, joined by commas.

        `credentials` is a file: a `.creds` file (JWT and seed), or one that holds an nkey seed only.
        Raises Unavailable: no server took us within `connect_timeout_s`, or it refused the login (then at once).
        Raises SettingsError: a url or the credentials can't be used.
        """
        client = _Client()
        try:
            async with asyncio.timeout(connect_timeout_s):
                await client.connect(
                    **_options(url, name, credentials),
                    error_cb=client.on_error,
                    reconnected_cb=client.on_reconnected,
                    reconnect_to_server_handler=client.next_server,
                )
        except (TimeoutError, _LoginRefused) as error:
            reason = client.last_error or "it did not answer"
            raise Unavailable(
                f"no connection to {_without_login(url)} within {connect_timeout_s:g} s ({reason}): "
                "start the server, or correct the address or the login"
            ) from error
        except ModuleNotFoundError as error:
            raise SettingsError(f"credentials need the package {error.name!r}: pip install {error.name}") from error
        except (errors.Error, ValueError, OSError) as error:
            raise SettingsError(f"can't connect to {_without_login(url)}: {error}") from error
        finally:
            if not client.is_connected:
                await client.shut()
        connection = cls(client, inbox_prefix)
        connection.subscribe(f"{connection._inbox}*", connection._on_reply)
        try:
            yield connection
        finally:
            await connection.close()

    @property
    def is_connected(self) -> bool:
        return self._client.is_connected

    @property
    def is_closed(self) -> bool:
        """For good; a lost line is not closed."""
        return self._client.is_closed

    @property
    def max_payload(self) -> int:
        """The largest message the server takes, in bytes, headers included."""
        return self._client.max_payload

    @property
    def server_id(self) -> str:
        return str(self._client._server_info.get("server_id", ""))

    @property
    def server_version(self) -> str:
        return str(self._client._server_info.get("version", ""))

    @property
    def disconnects(self) -> int:
        """How often the line was lost so far."""
        return self._client.disconnects

    @property
    def callback_errors(self) -> int:
        """How many messages met a callback that raised; each was logged."""
        return self._client.callback_errors

    def on_disconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` when the line is lost, and when it is closed. Returns what takes it back."""
        return _register(self._client.on_lost, callback)

    def on_reconnect(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback` after each reconnect, subscriptions being restored. Returns what takes it back."""
        return _register(self._client.on_back, callback)

    def new_inbox(self) -> str:
        """A subject nobody can guess, below the prefix this connection may subscribe to."""
        return f"{self._inbox_prefix}.{token_hex(11)}"

    def publish(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Send without waiting for anything. While disconnected it is kept, up to 16 MiB, and sent afterwards.

        Raises InvalidName (subject, reply or a header), TooLarge, and Unavailable: closed, or 16 MiB are waiting to
        leave; `flush` before going on.
        """
        if reply and (not _SUBJECT.fullmatch(reply) or len(reply) > _SUBJECT_BYTES):
            raise InvalidName(f"reply {reply!r} is not a subject: tokens joined by dots, without spaces or wildcards")
        self._publish(subject, data, headers, reply)

    async def request(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout_s: float
    ) -> Message:
        """Send, and wait for one answer.

        Raises NoResponders at once if nobody listens, Unavailable after `timeout_s` or when the connection is closed:
        then the request may or may not have been carried out. Otherwise as `publish`.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Message] = loop.create_future()
        token = token_hex(8)
        self._publish(subject, data, headers, self._inbox + token)
        self._waiting[token] = answer
        timer = loop.call_later(timeout_s, _expire, answer, subject, timeout_s)
        try:
            message = await answer
        finally:
            timer.cancel()
            del self._waiting[token]
        if message.status == NO_RESPONDERS:
            raise NoResponders(subject)
        return message

    async def request_many(self, subject: str, data: bytes = b"", *, timeout_s: float) -> AsyncGenerator[Message, None]:
        """Send, and yield every answer until none has come for `timeout_s`, or the caller stops.

        Raises NoResponders, and Unavailable when the line is lost on the way: answers may be missing, ask again from
        the last one seen. Otherwise as `publish`.
        """
        answers: deque[Message] = deque()
        woken = asyncio.Event()

        def take(message: Message) -> None:
            answers.append(message)
            woken.set()

        token = token_hex(8)
        disconnects = self._client.disconnects
        self._streams[token] = take
        forget = self.on_disconnect(woken.set)
        try:
            self._publish(subject, data, None, self._inbox + token)
            while True:
                while answers:
                    message = answers.popleft()
                    if message.status == NO_RESPONDERS:
                        raise NoResponders(subject)
                    yield message
                if self._client.disconnects != disconnects or self._client.is_closed:
                    raise Unavailable(f"the line was lost while {subject!r} was answered: ask again")
                woken.clear()
                try:
                    async with asyncio.timeout(timeout_s):
                        await woken.wait()
                except TimeoutError:
                    return
        finally:
            del self._streams[token]
            forget()

    def subscribe(self, subject: str, callback: Callback, *, queue: str = "") -> Subscription:
        """Call `callback` for every message on `subject` (wildcards allowed), from the read loop: it must not block.

        An exception it raises is logged and counted. With `queue`, each message goes to one member of that group.
        Raises InvalidName, and Unavailable if the connection is closed.
        """
        if not _FILTER.fullmatch(subject) or (queue and not _SUBJECT.fullmatch(queue)):
            raise InvalidName(f"{subject!r} (queue {queue!r}) can't be subscribed to: a token is empty or has spaces")
        return Subscription(self._client, self._client.gain_interest(subject, queue, callback))

    async def flush(self, timeout_s: float) -> None:
        """Wait until the server has taken everything published so far. Raises Unavailable."""
        await self._client.round_trip(timeout_s)

    async def close(self) -> None:
        """Send what is left, then close; takes a second at most. Every request still waiting raises Unavailable."""
        with suppress(Unavailable):
            await self._client.round_trip(_CLOSE_S)
        await self._client.shut()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(Unavailable("the connection was closed before the answer came"))

    def _publish(self, subject: str, data: bytes, headers: Mapping[str, str] | None, reply: str) -> None:
        if not _SUBJECT.fullmatch(subject):
            raise InvalidName(f"{subject!r} is not a subject: tokens joined by dots, without spaces or wildcards")
        name = subject.encode()
        if len(name) > _SUBJECT_BYTES:
            raise InvalidName(f"subject {subject[:40]!r}... has {len(name)} bytes, the limit is {_SUBJECT_BYTES}")
        head = _header_block(headers) if headers else b""
        size = len(head) + len(data)
        if size > self._client.max_payload:
            raise TooLarge(f"the message to {subject!r}", size, self._client.max_payload)
        if head:
            self._client.send(b"HPUB %b %b %d %d\r\n%b" % (name, reply.encode(), len(head), size, head), data, b"\r\n")
        else:
            self._client.send(b"PUB %b %b %d\r\n" % (name, reply.encode(), size), data, b"\r\n")

    def _on_reply(self, message: Message) -> None:
        token = message.subject[len(self._inbox) :]
        if answer := self._waiting.get(token):
            if not answer.done():
                answer.set_result(message)
        elif take := self._streams.get(token):
            take(message)


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
            reply = _text(words[3]) if len(words) == 5 + with_headers else ""
            yield int(words[2]), Message(_text(words[1]), buffer[body:stop], reply, headers, status)
            position, missing = stop + 2, 1
        self._parts = [buffer[position:]]
        self._missing = missing


class _LoginRefused(Exception):
    """Ends the first connect at once: another try would be refused too."""


class _Client(Client):
    """nats-py's client with our own reading and writing. It calls the overridden methods; their names are its."""

    def __init__(self) -> None:
        super().__init__()
        self.callbacks: dict[int, Callback] = {}
        self.on_lost: dict[object, Callable[[], None]] = {}
        self.on_back: dict[object, Callable[[], None]] = {}
        self.disconnects = 0
        self.callback_errors = 0
        self._connected_at_s = -float("inf")
        self._write_is_due = False

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

    def gain_interest(self, subject: str, queue: str, callback: Callback) -> int:
        self._sid += 1
        if self.is_connected:
            self.send(f"SUB {subject} {queue} {self._sid}\r\n".encode())
        elif self.is_closed:
            raise Unavailable("the connection is closed")
        self._subs[self._sid] = Interest(self, self._sid, subject, queue)  # what a reconnect subscribes to again
        self.callbacks[self._sid] = callback
        return self._sid

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
        await self._close(Client.CLOSED, do_cbs=False)
        self._lost()

    def next_server(self, servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
        """The server to try, and the pause before: none for the first try after a line that was good for a second."""
        server = min(servers, key=lambda server: server.reconnects)
        was_good = time.monotonic() - self._connected_at_s > 1
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
            if self._connected_at_s < 0 and "auth" in str(error).lower():
                self._err = error
                raise _LoginRefused from error
            raise
        if not self.is_connected:
            raise errors.UnexpectedEOF
        self._connected_at_s = time.monotonic()

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
                logger.warning("refused by the server", reason=_text(reason))
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
        for pong in self._pongs:
            if not pong.done():
                pong.set_result(False)
        for callback in list(self.on_lost.values()):
            self._call(callback)

    async def _process_pong(self) -> None:
        self._pings_outstanding = 0
        if self._pongs and not (pong := self._pongs.pop(0)).done():
            pong.set_result(True)

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        # Not queued: a ping left over from a broken line would answer for the next one's.
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        self._write()
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


def _options(url: str, name: str, credentials: Path | None) -> dict[str, Any]:
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
        "ping_interval": _PING_S,
        "max_outstanding_pings": 2,
    }


def _without_login(url: str) -> str:
    return re.sub(r"//[^/@,]*@", "//", url)


def _register(callbacks: dict[object, Callable[[], None]], callback: Callable[[], None]) -> Callable[[], None]:
    key = object()
    callbacks[key] = callback

    def unregister() -> None:
        callbacks.pop(key, None)

    return unregister


def _expire(answer: asyncio.Future[Message], subject: str, timeout_s: float) -> None:
    if not answer.done():
        answer.set_exception(Unavailable(f"no answer on {subject!r} within {timeout_s:g} s"))


def _header_block(headers: Mapping[str, str]) -> bytes:
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
    first, *lines = _text(block).split("\r\n")
    headers: dict[str, str] = {}
    status = first[9:12] if first.startswith("NATS/1.0 ") else ""
    if status and (description := first[13:]):
        headers["Description"] = description
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name] = value.strip()
    return headers or None, int(status) if status.isascii() and status.isdecimal() else 0


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")
