"""Presence: an instance says that it lives, what it can do and which attempts it holds.

Beats come from the event loop that runs the handlers, so a blocked loop falls silent by itself. They are not facts
and not stored; what follows from their absence is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack

import msgspec

from bus.connection import Connection, Message
from bus.errors import BusError, NoResponders, Unavailable
from bus.subjects import Subjects


class Held(msgspec.Struct, frozen=True, array_like=True):
    """An attempt an instance holds."""

    run: str
    phase: str
    item: int | None
    attempt: int


class Beat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sign of life. `capabilities` maps each to its concurrency; `lag_s` is how late the event loop was.

    `paused` are those that take nothing more since something died (`on_dead="pause"`).
    """

    agent: str
    version: str
    instance: str
    host: str
    pid: int
    capabilities: dict[str, int]
    held: Sequence[Held] = ()
    lag_s: float = 0.0
    paused: Sequence[str] = ()


_decoder = msgspec.json.Decoder(Beat)


def read_beat(message: Message) -> Beat | None:
    """The beat in a message, or None: a malformed one counts as silence."""
    try:
        return _decoder.decode(message.data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


async def announce(
    connection: Connection, subjects: Subjects, beat: Callable[[float], Beat], every_s: float, ready: asyncio.Event
) -> None:
    """Answer who asks for this instance or its capabilities, and beat, until cancelled. Sets `ready` when it does."""
    loop = asyncio.get_running_loop()
    first = beat(0.0)

    def answer(message: Message) -> None:
        if message.reply and connection.is_connected:
            connection.publish(message.reply, msgspec.json.encode(beat(0.0)))

    async with AsyncExitStack() as stack:
        asked = [subjects.everyone, subjects.ping(first.instance), *map(subjects.who, first.capabilities)]
        for subject in asked:
            stack.callback(connection.subscribe(subject, answer).unsubscribe)
        ready.set()
        due = loop.time()
        while True:
            try:
                connection.publish(
                    subjects.beat(first.instance), msgspec.json.encode(beat(max(loop.time() - due, 0.0)))
                )
            except Unavailable:
                # Too much waits to be sent: a beat less is the least of it. A closed connection is another matter.
                if connection.is_closed:
                    raise
            due = loop.time() + every_s
            await asyncio.sleep(every_s)


async def is_offered(connection: Connection, subjects: Subjects, capability: str, timeout_s: float) -> bool:
    """Whether some live instance has the capability. The server knows at once when there is none."""
    try:
        await connection.request(subjects.who(capability), timeout_s=timeout_s)
    except NoResponders:
        return False
    except Unavailable:
        # Somebody is subscribed but busy: alive as far as anybody can tell.
        return True
    return True


async def roster(connection: Connection, subjects: Subjects, *, quiet_s: float = 0.2) -> list[Beat]:
    """Every instance that answers now, by agent and instance; waits until none has answered for `quiet_s`."""
    beats: dict[str, Beat] = {}
    try:
        async for message in connection.request_many(subjects.everyone, timeout_s=quiet_s):
            beat = read_beat(message)
            if beat is not None:
                beats[beat.instance] = beat
    except NoResponders:
        return []
    except BusError as error:
        raise Unavailable(f"the agents could not be asked: {error}") from error
    return sorted(beats.values(), key=lambda beat: (beat.agent, beat.instance))
