"""Messages of a durable consumer, asked for by credit: as many as the owner can take, never more.

Requests for what is granted linger at the server, which sends a heartbeat while it has nothing to send. Silence, a
reconnect or a refusal ends the *session*: its inbox is closed, what was on its way is still delivered, and then what
is left of the credit is asked for again on a new inbox. So nothing is asked for twice, and nothing waits for ever.

A session in which nothing came is followed by a quiet one: it has a heartbeat every five seconds instead of two a
second, and ends when something has come and then nothing for half a second, as a heartbeat would end it. So a worker
that has nothing to do costs the server next to nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime

import structlog

from bus.broker.connection import NO_RESPONDERS, Connection, Message
from bus.errors import BusError, Unavailable

logger = structlog.get_logger(__name__)

_HEARTBEAT = 100
_EXPIRED = 408
_BATCH = 256  # the most that the server's max_request_batch allows in our configuration
_HEARTBEAT_S, _QUIET_HEARTBEAT_S = 0.5, 5.0
_DRAIN_S = 2.0
_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 2.0


class Delivery:
    """A message handed to us, and what can be said about it. Answers are sent without waiting; they may get lost.

    `stream_sequence` is its position in the stream, `stored_at` when that was stored; `delivered` counts from 1, and
    may repeat after a server crash; `pending` is how many more the consumer had for us at that moment.
    """

    __slots__ = ("_connection", "delivered", "message", "pending", "stored_at", "stream_sequence")

    def __init__(self, connection: Connection, message: Message) -> None:
        """Raises ValueError if the message was not delivered by a consumer."""
        words = message.reply.split(".")
        # $JS.ACK.<stream>.<consumer>.<delivered>.<sequence>.<its own>.<time>.<pending>; or, from 11 words on, with
        # <domain>.<account> before the stream.
        first = {9: 4, 11: 6, 12: 6}.get(len(words))
        if first is None or words[:2] != ["$JS", "ACK"]:
            raise ValueError(f"{message.reply!r} is not the reply subject of a consumer")
        self._connection = connection
        self.message = message
        self.delivered = int(words[first])
        self.stream_sequence = int(words[first + 1])
        self.stored_at = datetime.fromtimestamp(int(words[first + 3]) / 1e9, UTC)
        self.pending = int(words[first + 4])

    def ack(self) -> None:
        """It is done; do not deliver it again."""
        self._connection.publish(self.message.reply, b"+ACK")

    def nak(self, delay_s: float) -> None:
        """Not now: deliver it again after `delay_s`. There is no default: without a delay, attempts burn in ms."""
        self._connection.publish(self.message.reply, b'-NAK {"delay": %d}' % int(delay_s * 1e9))

    def term(self, reason: str) -> None:
        """Never deliver it again; a work queue forgets it. `reason` is told in the server's advisory."""
        self._connection.publish(self.message.reply, f"+TERM {reason}".encode(errors="replace"))

    def in_progress(self) -> None:
        """Still at work: count the time to redelivery from now."""
        self._connection.publish(self.message.reply, b"+WPI")

    async def ack_sync(self, timeout_s: float) -> None:
        """As `ack`, and wait until the server has taken it. Raises NoResponders (no such consumer), Unavailable."""
        await self._connection.request(self.message.reply, b"+ACK", timeout_s=timeout_s)


class Intake:
    """Pulls from one consumer for one owner. `grant` credit, and `run` it."""

    def __init__(
        self,
        connection: Connection,
        stream: str,
        consumer: str,
        *,
        deliver: Callable[[Delivery], None],
        missing: Callable[[], Awaitable[None]],
        group: str = "",
        expires_s: float = 30.0,
    ) -> None:
        """`deliver` is called from the connection's read loop and must not block.

        `missing` is awaited when stream or consumer seem not to exist: it makes them if so. The reason may also be a
        cluster without a leader, so it must do no harm to what exists. An error it raises is logged and it is asked
        again after a pause.

        `expires_s` is how long a request lingers, and how long nothing comes before a session is quiet.

        `group` is that of a consumer which serves who asks with the lowest number first: see `rank`.
        """
        self._connection = connection
        self._consumer = consumer
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._deliver = deliver
        self._missing = missing
        self._expires_s = expires_s
        # The server refuses those that come less than twice in the time.
        self._quiet_s = min(_QUIET_HEARTBEAT_S, expires_s / 3)
        self._is_quiet = self._has_come = False
        self._credit = 0  # granted and not yet delivered
        self._asked = 0  # the part of it that this session has asked the server for
        self._requests = 0
        self._inbox = ""
        self._ended: Message | None = None
        self._alive_at_s = 0.0
        self._stopped = False
        self._is_held = False
        self._group = group
        self._rank = 0
        self._asked_as = 0  # the rank this session asks with
        self._woken = asyncio.Event()

    @property
    def credit(self) -> int:
        """How many messages are granted and not yet delivered."""
        return self._credit

    def grant(self, count: int) -> None:
        """Let `count` more messages come. What is granted in one pass of the event loop is asked for together."""
        self._credit += count
        self._woken.set()

    def hold(self, held: bool) -> None:
        """Ask for nothing while this is so. What is on its way is still delivered."""
        self._is_held = held
        self._woken.set()

    def rank(self, rank: int) -> None:
        """Come after whoever asks with a lower number, 0 to 9: also with what was asked for before."""
        self._rank = rank
        self._woken.set()

    def stop(self) -> None:
        """Ask for nothing more; `run` returns when all that was on its way has been delivered."""
        self._stopped = True
        self._woken.set()

    async def run(self) -> None:
        """Pull until stopped or cancelled. Raises Unavailable if the connection is closed."""
        forget = self._connection.on_disconnect(self._woken.set), self._connection.on_reconnect(self._woken.set)
        fruitless = 0
        try:
            while await self._is_wanted():
                alive_at_s = self._alive_at_s
                try:
                    await self._session()
                    if self._ended and _is_missing(self._ended) and not self._stopped:
                        # The server says that a consumer is deleted while it still removes its files; made again at
                        # once, it may lose them too (error 10012, "o.dat.tmp: no such file").
                        await asyncio.sleep(_PAUSE_S)
                        await self._missing()
                except BusError as error:
                    logger.warning("pull failed", consumer=self._consumer, error=str(error))
                fruitless = 0 if self._alive_at_s > alive_at_s else fruitless + 1
                if fruitless > 1:
                    await asyncio.sleep(min(_PAUSE_S * 2 ** (fruitless - 2), _LONGEST_PAUSE_S))
        finally:
            for unregister in forget:
                unregister()

    async def _is_wanted(self) -> bool:
        """False when stopped, True as soon as there is a line and credit to use it for."""
        while not self._stopped and (self._credit <= 0 or self._is_held or not self._connection.is_connected):
            if self._connection.is_closed:
                raise Unavailable("the connection is closed")
            self._woken.clear()
            await self._woken.wait()
        return not self._stopped

    async def _session(self) -> None:
        """Keep all credit asked for on one inbox, until there is a reason for a new one."""
        self._inbox = self._connection.new_inbox()
        self._asked = self._requests = 0
        self._asked_as = self._rank
        self._is_quiet = self._ended is not None and self._ended.status == _EXPIRED and not self._has_come
        self._has_come = False
        self._ended = None
        disconnects = self._connection.disconnects
        subscription = self._connection.subscribe(self._inbox, self._take)
        try:
            await self._ask_until_ended(disconnects)
            # The next session must not ask again for what is on its way. A lost line has nothing on its way.
            while self._is_same_line(disconnects):
                with suppress(Unavailable):
                    await subscription.drain(_DRAIN_S)
                    break
        finally:
            subscription.unsubscribe()

    async def _ask_until_ended(self, disconnects: int) -> None:
        loop = asyncio.get_running_loop()
        asked_at_s = loop.time()
        while self._goes_on and not self._ended and self._is_same_line(disconnects):
            self._woken.clear()
            if self._asked <= 0:
                asked_at_s = loop.time()
            self._ask()
            is_over = self._is_quiet and self._has_come
            deadline_s = max(asked_at_s, self._alive_at_s) + (_HEARTBEAT_S if is_over else 2 * self._heartbeat_s)
            if self._asked > 0 and deadline_s <= loop.time():
                if not is_over:
                    logger.info("no heartbeat", consumer=self._consumer, credit=self._credit)
                return
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline_s if self._asked > 0 else None):
                    await self._woken.wait()

    @property
    def _goes_on(self) -> bool:
        """Whether what this session has asked for is still what is wanted."""
        return not self._stopped and not self._is_held and self._asked_as == self._rank

    @property
    def _heartbeat_s(self) -> float:
        return self._quiet_s if self._is_quiet else _HEARTBEAT_S

    def _is_same_line(self, disconnects: int) -> bool:
        return self._connection.is_connected and self._connection.disconnects == disconnects

    def _ask(self) -> None:
        while (batch := min(self._credit - self._asked, _BATCH)) > 0:
            times = int(self._expires_s * 1e9), int(self._heartbeat_s * 1e9)
            request = b'{"batch":%d,"expires":%d,"idle_heartbeat":%d%b}' % (batch, *times, self._claim)
            self._connection.publish(self._subject, request, reply=self._inbox)
            self._asked += batch
            self._requests += 1

    @property
    def _claim(self) -> bytes:
        return b',"group":"%b","priority":%d' % (self._group.encode(), self._asked_as) if self._group else b""

    def _take(self, message: Message) -> None:
        # Only the server's words about a request come on the inbox itself: a message keeps its own subject, and may
        # have any status or header its publisher liked.
        if message.subject == self._inbox:
            self._heed(message)
            return
        delivery = Delivery(self._connection, message)
        self._alive_at_s = asyncio.get_running_loop().time()
        if self._is_quiet and not self._has_come:
            self._woken.set()
        self._has_come = True
        self._credit -= 1
        self._asked -= 1
        self._deliver(delivery)

    def _heed(self, message: Message) -> None:
        if message.status == _HEARTBEAT:
            self._alive_at_s = asyncio.get_running_loop().time()
            # Each open request has a heartbeat of its own: while there is time, make them one.
            if self._requests <= -(-self._asked // _BATCH):
                return
        elif message.status != _EXPIRED:
            logger.info("pull ended", consumer=self._consumer, status=message.status, reason=_description(message))
        self._ended = message
        self._woken.set()


def _description(message: Message) -> str:
    return message.headers.get("Description", "")


def _is_missing(ended: Message) -> bool:
    return ended.status == NO_RESPONDERS or _description(ended) == "Consumer Deleted"
