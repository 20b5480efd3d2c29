"""The census: which instances live. Suspect, then confirm, and only then say that one is gone.

A dead process is suspected 3 ms after its end, when the server tells the system account that its connection closed;
a frozen one when its beats stop. Confirming is asking it: the server answers for those that are gone.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal

import msgspec
import structlog

from bus.broker.connection import Connection, Message
from bus.client import Client
from bus.errors import BusError, NoResponders, Unavailable
from bus.registry.presence import Beat, read_beat

logger = structlog.get_logger(__name__)

Fate = Literal["alive", "crashed", "mute"]
# A living client whose line was cut is back within this time; a dead one is not.
_RECONNECT_S = 0.02
_ANSWER_S = 0.5


class _Peer(msgspec.Struct, frozen=True):
    name: str = ""


class _Disconnect(msgspec.Struct, frozen=True):
    client: _Peer = _Peer()


_disconnect = msgspec.json.Decoder(_Disconnect)


class Census:
    """Signs of life of every instance since `watching` began. `suspect` is called with an instance's name."""

    def __init__(self, client: Client, suspect: Callable[[str], None]) -> None:
        self._client = client
        self._suspect = suspect
        # Both questions of a whole lease's silence are answered, or not, well before another lease is over.
        self._answer_s = min(_ANSWER_S, client.settings.lease_s / 6)
        self._began = 0.0
        self._seen: dict[str, float] = {}
        self._beats: dict[str, Beat] = {}

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Hear beats and, with a login of the system account, disconnects. What was heard before does not count."""
        self._began = time.monotonic()
        self._seen.clear()
        self._beats.clear()
        async with AsyncExitStack() as stack:
            stack.callback(self._client.connection.subscribe(self._client.subjects.beats, self._hear).unsubscribe)
            if self._client.system_url is not None:
                try:
                    system = await stack.enter_async_context(Connection.open(self._client.system_url, name="census"))
                    system.subscribe("$SYS.ACCOUNT.*.DISCONNECT", self._notice)
                except BusError as error:
                    # Beats alone tell the same, a lease later.
                    logger.warning("crashes are not told at once", error=str(error))
            yield

    def beat(self, instance: str) -> Beat | None:
        """The newest beat of an instance."""
        return self._beats.get(instance)

    @property
    def patience_s(self) -> float:
        """How long `confirm` may take to call an instance mute."""
        return _RECONNECT_S + 2 * self._answer_s

    def heard_at(self, instance: str) -> float:
        """When its newest beat came (monotonic); 0 if none has."""
        return self._seen.get(instance, 0.0)

    @property
    def beats(self) -> list[Beat]:
        """The newest beat of every instance that has been heard."""
        return list(self._beats.values())

    def silent_s(self, instance: str) -> float:
        """For how long nothing has been heard of it."""
        return time.monotonic() - self._seen.get(instance, self._began)

    def forget(self, known: Iterable[str]) -> None:
        """Keep only what is known of these instances, and of those heard lately."""
        kept = set(known)
        for instance in [name for name in self._seen if name not in kept and self.silent_s(name) > 60]:
            self._seen.pop(instance, None)
            self._beats.pop(instance, None)

    async def confirm(self, instance: str) -> Fate:
        """Ask the instance itself. Nobody subscribed: crashed. Subscribed, and no answer twice: mute, so it is frozen,
        or its loop is blocked.

        Raises Unavailable if it is our own line that is silent: then nothing is known of anybody.
        """
        await asyncio.sleep(_RECONNECT_S)
        connection = self._client.connection
        for _ in range(2):
            disconnects = connection.disconnects
            try:
                answer = await connection.request(self._client.subjects.ping(instance), timeout_s=self._answer_s)
            except NoResponders:
                return "crashed"
            except Unavailable:
                await connection.flush(self._answer_s)
                if connection.disconnects != disconnects:
                    raise
            else:
                self._hear(answer)
                return "alive"
        return "mute"

    def _hear(self, message: Message) -> None:
        beat = read_beat(message)
        if beat is not None:
            self._seen[beat.instance] = time.monotonic()
            self._beats[beat.instance] = beat

    def _notice(self, message: Message) -> None:
        name = _disconnect.decode(message.data).client.name
        if name.startswith("agent/"):
            self._suspect(name.rpartition("/")[2])
