"""One connection to NATS that nothing received can stop: requests, subscriptions and publishes on one socket.

nats-py makes the connection, signs in and reconnects; reading and writing are ours. Its read loop ends for good on a
subject that is not UTF-8, a header of three bytes or a late answer to a flush. Ours delivers whatever arrives as data
and leaves it to the receiver to call it malformed; a message is passed to a plain function, without a task or a queue.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from secrets import token_hex
from typing import Protocol

from nats import errors

from bus.alarms import Alarms
from bus.broker.answers import Answers
from bus.broker.line import Callback, Line, LoginRefused, options
from bus.broker.wire import Message, header_block
from bus.errors import Forbidden, InvalidName, NoResponders, SettingsError, TooLarge, Unavailable

__all__ = ["NO_RESPONDERS", "Answer", "Callback", "Connection", "Message", "Subscription"]

NO_RESPONDERS = 503
_WORD = r"[^\x00-\x20\x7f*>.\ud800-\udfff]+"
_SUBJECT = re.compile(rf"{_WORD}(?:\.{_WORD})*")
_FILTER = re.compile(rf"(?:(?:{_WORD}|\*)\.)*(?:{_WORD}|\*|>)")
_SUBJECT_BYTES = 1024
_CLOSE_S = 1.0
_AGAIN_S = 1.0


class Answer(Protocol):
    """Who waits for an answer: an `asyncio.Future`, or anything with these methods of it."""

    def done(self) -> bool: ...
    def set_result(self, result: Message, /) -> None: ...
    def set_exception(self, exception: BaseException, /) -> None: ...


class Subscription:
    """Messages on one subject filter, passed to a function. Survives reconnects."""

    __slots__ = ("_client", "_sid")

    def __init__(self, client: Line, sid: int) -> None:
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

    def __init__(self, client: Line, inbox_prefix: str) -> None:
        self._client = client
        self._inbox_prefix = inbox_prefix
        self._inbox = f"{self.new_inbox()}."
        self._waiting: dict[str, tuple[Answer, str]] = {}
        self._streams: dict[str, Callback] = {}
        self._pages: set[Answers] = set()
        # What clears the alarm that sends a question again.
        self._repeating: dict[str, int] = {}
        # Nobody can guess the inbox; within it a number will do.
        self._tokens = count(1)
        self._alarms = Alarms()

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
        client = Line()
        try:
            async with asyncio.timeout(connect_timeout_s):
                await client.connect(
                    **options(url, name, credentials),
                    error_cb=client.on_error,
                    reconnected_cb=client.on_reconnected,
                    reconnect_to_server_handler=client.next_server,
                )
        except (TimeoutError, LoginRefused) as error:
            reason = str(client.last_error or "") or "it did not answer"
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
        connection.on_disconnect(connection._fail_waiting)
        client.on_forbidden = connection._on_forbidden
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
    def name(self) -> str:
        """As the server knows it."""
        return str(self._client.options["name"])

    @property
    def disconnects(self) -> int:
        """How often the line was lost so far."""
        return self._client.disconnects

    @property
    def callback_errors(self) -> int:
        """How many messages met a callback that raised; each was logged."""
        return self._client.callback_errors

    @property
    def regained_s(self) -> float:
        """How long ago the line was made again that had been lost, in seconds; infinite if none was."""
        return time.monotonic() - self._client.connected_at_s if self._client.disconnects else math.inf

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

    def check(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Whether `publish` would take it, without sending anything. Raises InvalidName, TooLarge."""
        self._frame(subject, data, headers, "")

    async def request(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout_s: float
    ) -> Message:
        """Send, and wait for one answer.

        Raises NoResponders at once if nobody listens, Forbidden if this login may not ask that, Unavailable after
        `timeout_s` or when the line is lost: then the request may or may not have been carried out. Otherwise as
        `publish`.
        """
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        forget = self.ask(answer, subject, data, headers=headers, timeout_s=timeout_s)
        try:
            return await answer
        finally:
            forget()

    async def inquire(self, subject: str, data: bytes = b"", *, timeout_s: float) -> Message:
        """`request` what changes nothing, or no more when it is asked twice; the first answer counts.

        It is sent again after a second, and then less and less often, since who had it may have ended: one of several
        servers, or the one that led.
        Raises as `request`.
        """
        token = f"{next(self._tokens):x}"
        frame = self._frame(subject, data, None, self._inbox + token)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._client.send(*frame)
        forget = self._expect(answer, token, subject, timeout_s)
        self._repeat(token, frame, _AGAIN_S)
        try:
            return await answer
        finally:
            forget()
            self._alarms.clear(self._repeating.pop(token))

    def request_soon(
        self, subject: str, data: bytes = b"", *, headers: Mapping[str, str] | None = None, timeout_s: float
    ) -> asyncio.Future[Message]:
        """Send now; the future gets what `request` returns or raises. What is wrong with the request raises here."""
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        forget = self.ask(answer, subject, data, headers=headers, timeout_s=timeout_s)
        answer.add_done_callback(lambda _: forget())
        return answer

    async def request_batch(
        self, members: Sequence[tuple[str, bytes, Mapping[str, str]]], *, timeout_s: float
    ) -> Message:
        """Send (subject, data, headers) of each, next to each other on the line, and wait for the answer to the last.

        Raises as `request`; what can't be sent is refused before the first has left.
        """
        token = f"{next(self._tokens):x}"
        frames: list[bytes] = []
        for number, (subject, data, headers) in enumerate(members, 1):
            frames += self._frame(subject, data, headers, self._inbox + token if number == len(members) else "")
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._client.send(*frames)
        forget = self._expect(answer, token, members[-1][0], timeout_s)
        try:
            return await answer
        finally:
            forget()

    async def request_page(
        self, subject: str, data: bytes, *, is_end: Callable[[Message], bool], timeout_s: float
    ) -> list[Message]:
        """Send, and wait for all answers up to and including the one that is the end.

        Raises Unavailable if none has come for `timeout_s`, or when the line is lost: ask again from the last one that
        was taken. NoResponders, and otherwise, as `request`.
        """
        answers = Answers(subject, is_end, timeout_s)
        token = f"{next(self._tokens):x}"
        self._streams[token] = answers.take
        self._pages.add(answers)
        forget = self.on_disconnect(answers.lose)
        try:
            self._publish(subject, data, None, self._inbox + token)
            await answers.ended
        finally:
            answers.close()
            self._pages.remove(answers)
            del self._streams[token]
            forget()
        if answers.messages[-1].status == NO_RESPONDERS:
            raise NoResponders(subject)
        return answers.messages

    def ask(
        self,
        answer: Answer,
        subject: str,
        data: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout_s: float,
    ) -> Callable[[], None]:
        """Send, and give `answer` what comes, or what `request` raises; without a task.

        Returns what ends waiting: to be called when it has been given or is not wanted any more.
        """
        token = f"{next(self._tokens):x}"
        self._publish(subject, data, headers, self._inbox + token)
        return self._expect(answer, token, subject, timeout_s)

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

        token = f"{next(self._tokens):x}"
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

    def subscribe(self, subject: str, callback: Callback, *, queue: str = "", once: bool = False) -> Subscription:
        """Call `callback` for every message on `subject` (wildcards allowed), from the read loop: it must not block.

        An exception it raises is logged and counted. With `queue`, each message goes to one member of that group. With
        `once` it ends with the first message, of which the server need not be told. Raises InvalidName, and Unavailable
        if the connection is closed.
        """
        check_filter(subject)
        if queue and not _SUBJECT.fullmatch(queue):
            raise InvalidName(f"queue {queue!r} can't be subscribed to: a token is empty or has spaces")
        return Subscription(self._client, self._client.gain_interest(subject, queue, callback, once=once))

    async def flush(self, timeout_s: float) -> None:
        """Wait until the server has taken everything published so far. Raises Unavailable."""
        await self._client.round_trip(timeout_s)

    async def close(self) -> None:
        """Send what is left, then close; takes a second at most. Every request still waiting raises Unavailable."""
        with suppress(Unavailable):
            await self._client.round_trip(_CLOSE_S)
        await self._client.shut()
        self._fail_waiting()

    def _fail_waiting(self) -> None:
        """The line has gone: the answers to what was sent on it will not come."""
        for answer, _ in list(self._waiting.values()):
            if not answer.done():
                answer.set_exception(
                    Unavailable("the line was lost before the answer came: it may have been carried out")
                )

    def _on_forbidden(self, subject: str) -> bool:
        """Whether somebody has asked there, who will get no answer: the server names the subject, not the message."""
        answers = [answer for answer, asked in self._waiting.values() if asked == subject]
        pages = [page for page in self._pages if page.subject == subject]
        for answer in answers:
            if not answer.done():
                answer.set_exception(Forbidden(subject))
        for page in pages:
            page.fail(Forbidden(subject))
        return bool(answers or pages)

    def _publish(self, subject: str, data: bytes, headers: Mapping[str, str] | None, reply: str) -> None:
        self._client.send(*self._frame(subject, data, headers, reply))

    def _frame(
        self, subject: str, data: bytes, headers: Mapping[str, str] | None, reply: str
    ) -> tuple[bytes, bytes, bytes]:
        """A message as it goes on the line. Raises InvalidName, TooLarge."""
        if not _SUBJECT.fullmatch(subject):
            raise InvalidName(f"{subject!r} is not a subject: tokens joined by dots, without spaces or wildcards")
        name = subject.encode()
        if len(name) > _SUBJECT_BYTES:
            raise InvalidName(f"subject {subject[:40]!r}... has {len(name)} bytes, the limit is {_SUBJECT_BYTES}")
        head = header_block(headers) if headers else b""
        size = len(head) + len(data)
        if size > self._client.max_payload:
            raise TooLarge(f"the message to {subject!r}", size, self._client.max_payload)
        if head:
            return b"HPUB %b %b %d %d\r\n%b" % (name, reply.encode(), len(head), size, head), data, b"\r\n"
        return b"PUB %b %b %d\r\n" % (name, reply.encode(), size), data, b"\r\n"

    def _expect(self, answer: Answer, token: str, subject: str, timeout_s: float) -> Callable[[], None]:
        """Give `answer` what comes to what was sent with this token; returns what ends that."""
        self._waiting[token] = answer, subject
        alarm = self._alarms.set(timeout_s, partial(_expire, answer, subject, timeout_s))

        def forget() -> None:
            self._alarms.clear(alarm)
            self._waiting.pop(token, None)

        return forget

    def _repeat(self, token: str, frame: Sequence[bytes], after_s: float) -> None:
        """Send it again and again. Who is merely slow has each of them to answer: they come less and less often."""
        self._repeating[token] = self._alarms.set(after_s, partial(self._send_again, token, frame, after_s))

    def _send_again(self, token: str, frame: Sequence[bytes], after_s: float) -> None:
        self._repeat(token, frame, after_s * 1.5)
        # Without a line what was sent first waits for one; where there is no room for it twice, it is waited on.
        if self.is_connected:
            with suppress(Unavailable):
                self._client.send(*frame)

    def _on_reply(self, message: Message) -> None:
        token = message.subject[len(self._inbox) :]
        if waiting := self._waiting.get(token):
            answer, subject = waiting
            if answer.done():
                return
            if message.status == NO_RESPONDERS:
                answer.set_exception(NoResponders(subject))
            else:
                answer.set_result(message)
        elif take := self._streams.get(token):
            take(message)


def is_subject(text: str) -> bool:
    """Whether a message can be on it."""
    return _SUBJECT.fullmatch(text) is not None


def check_filter(subject: str) -> None:
    """Raises InvalidName for what can't name subjects, with wildcards or without."""
    if not _FILTER.fullmatch(subject):
        raise InvalidName(f"{subject!r} can't be a subject, nor stand for some: a token is empty or has spaces")


def _without_login(url: str) -> str:
    return re.sub(r"//[^/@,]*@", "//", url)


def _register(callbacks: dict[object, Callable[[], None]], callback: Callable[[], None]) -> Callable[[], None]:
    key = object()
    callbacks[key] = callback

    def unregister() -> None:
        callbacks.pop(key, None)

    return unregister


def _expire(answer: Answer, subject: str, timeout_s: float) -> None:
    if not answer.done():
        answer.set_exception(Unavailable(f"no answer on {subject!r} within {timeout_s:g} s"))
