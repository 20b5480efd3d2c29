"""A feed: waiting, without asking again and again, until there is more to read.

The server announces what it has stored on a live subject; a feed remembers the highest position announced, and what
is read comes from the stream. So nothing depends on an announcement arriving: after a reconnect, and once in a while,
it is read again anyway.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from bus.broker.connection import Connection, Message
from bus.errors import NoResponders, Unavailable
from bus.eventsourcing.names import live
from bus.log.record import POSITION

_AGAIN_S = 5.0
_PAUSE_S = 0.01
_AWAY_S = 0.1


class Feed:
    """Lives in the loop's thread, from when it is made until `close`."""

    def __init__(self, connection: Connection, subject: str) -> None:
        self._woken = asyncio.Event()
        self._announced = 0
        self._subscription = connection.subscribe(live(subject), self._take)
        self._unregister = connection.on_reconnect(self._woken.set)

    async def until(self, read: Callable[[], Awaitable[tuple[bool, int]]]) -> None:
        """Call `read` whenever there may be more, until it says that it found enough.

        It says also up to which position it has read: less than was announced means that whom it asked does not have
        it yet. While the server is away it is tried again for ever.
        """
        while True:
            self._woken.clear()
            try:
                enough, position = await read()
            except (Unavailable, NoResponders):
                await asyncio.sleep(_AWAY_S)
                continue
            if enough:
                return
            if position < self._announced:
                await asyncio.sleep(_PAUSE_S)
                continue
            try:
                async with asyncio.timeout(_AGAIN_S):
                    await self._woken.wait()
            except TimeoutError:
                continue

    def close(self) -> None:
        self._unregister()
        self._subscription.unsubscribe()

    def _take(self, message: Message) -> None:
        self._announced = max(self._announced, int(message.stamp(POSITION) or 0))
        self._woken.set()
