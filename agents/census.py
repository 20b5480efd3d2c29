"""The census: which instances live. Suspect, then confirm, and only then say that one is gone.

A dead process is suspected 3 ms after its end, when the server tells the system account that its connection closed;
a frozen one when its beats stop. Confirming is asking it: the server answers for those that are gone.

Beats cost the server something, so there is a limit to all of them together: when many are there, those that hold
nothing are asked to beat less often.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Literal

import msgspec
import structlog

from bus.broker.connection import Connection, Message
from bus.client import Client
from bus.errors import BusError, NoResponders, Unavailable
from bus.registry.presence import Beat, Pace, read_beat

logger = structlog.get_logger(__name__)

Fate = Literal["alive", "crashed", "mute"]
# A living client whose line was cut is back within this time; a dead one is not.
_RECONNECT_S = 0.02
_ANSWER_S = 0.5
# Of all instances together. What is above a quarter less keeps its pace, so that nobody is told to and fro.
_BEATS_PER_S = 250
_SLACK = 0.75


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
        self._system: Connection | None = None
        self._beat_s = client.settings.beat_s
        self._pace = 1

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
                    self._system = system
                except BusError as error:
                    # Beats alone tell the same, a lease later.
                    logger.warning("crashes are not told at once", error=str(error))
            yield

    def beat(self, instance: str) -> Beat | None:
        """The newest beat of an instance."""
        return self._beats.get(instance)

    def beat_as_json(self, instance: str) -> bytes | None:
        """The same as it is sent."""
        beat = self._beats.get(instance)
        return msgspec.json.encode(beat) if beat is not None else None

    @property
    def hears_ends(self) -> bool:
        """Whether it is told at once who is gone."""
        return self._system is not None and self._system.is_connected

    def lease_s(self, instance: str) -> float:
        """How long an instance may be silent: longer if it was last heard to beat less often than the settings say."""
        beat = self._beats.get(instance)
        every_s = beat.every_s if beat is not None and beat.every_s else self._beat_s
        return self._client.settings.lease_s * max(every_s / self._beat_s, 1.0)

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
            self.note(beat)

    def note(self, beat: Beat) -> None:
        """A sign of life of an instance, made just now."""
        self._seen[beat.instance] = time.monotonic()
        self._beats[beat.instance] = beat
        wanted_s = self._wanted_s()
        if not beat.held and (beat.every_s or self._beat_s) != wanted_s:
            subject = self._client.subjects.ping(beat.instance)
            with suppress(BusError):
                self._client.connection.publish(subject, msgspec.json.encode(Pace(wanted_s)))

    def _wanted_s(self) -> float:
        """How often each is to beat who holds nothing."""
        per_s = len(self._beats) / self._beat_s
        if not _BEATS_PER_S * (self._pace - 1) * _SLACK < per_s <= _BEATS_PER_S * self._pace:
            self._pace = max(math.ceil(per_s / _BEATS_PER_S), 1)
        return self._beat_s * self._pace

    def _notice(self, message: Message) -> None:
        name = _disconnect.decode(message.data).client.name
        if name.startswith("agent/"):
            self._suspect(name.rpartition("/")[2])
