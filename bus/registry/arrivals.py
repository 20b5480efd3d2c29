"""Arrivals: who is there now, and from then on who comes, goes, falls silent or stands otherwise.

Instances answer a question to everybody; after that their beats are heard, and what the log says of them is followed.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from functools import partial

import structlog

from bus.broker.connection import Connection, Message
from bus.broker.patience import patiently, until_others_are_back
from bus.broker.reach import ask_all
from bus.errors import InvalidName, MalformedMessage, NoResponders, Unavailable
from bus.log.log import Log
from bus.log.record import Record
from bus.registry.card import AgentDeregistered, AgentLost, Card, read_event
from bus.registry.presence import Beat, is_end_of_roster, read_beat, read_page, read_present
from bus.registry.roster import Change, Instance, Roster, instance_of, is_silent, suspected

logger = structlog.get_logger(__name__)

_SILENT = "connected, but does not answer"
_TELLING_S = 0.5
"""A leader that is silent for so long is not waited for."""
_RECORDS = 100
"""What of the log is read ahead of who listens."""


async def who_is_there(connection: Connection, log: Log, beat_s: float) -> list[Instance]:
    """Every instance there is, as the leader has heard of them if they are many, otherwise as they answer themselves.

    Who should have been heard and was not is suspected. `beat_s` is how often they beat who do not say otherwise.
    Raises Unavailable.
    """
    with suppress(NoResponders, Unavailable, MalformedMessage, _FewError):
        return await _told_by_the_leader(connection, log, beat_s)
    return await patiently(connection, partial(_asked_each, connection, log), log.patience_s)


async def _told_by_the_leader(connection: Connection, log: Log, beat_s: float) -> list[Instance]:
    """Raises _FewError: they can all be asked. Raises NoResponders: nobody leads, or the leader has not heard them
    all."""
    pages = await connection.request_page(log.subjects.roster, b"", is_end=is_end_of_roster, timeout_s=_TELLING_S)
    if len(pages) == 1:
        raise _FewError
    found: list[Instance] = []
    for present in itertools.chain.from_iterable(map(read_page, pages[:-1])):
        instance = instance_of(present.card, present.beat)
        if is_silent(present.silent_s, present.beat.every_s or beat_s):
            instance = suspected(instance, present.silent_s)
        found.append(instance)
    return found


class _FewError(Exception):
    """So few are there that each can say itself how it is at this moment."""


async def _asked_each(connection: Connection, log: Log) -> list[Instance]:
    """Every instance that answers; and, as suspected, those that were handed the question and say nothing.

    Raises Unavailable.
    """
    while await until_others_are_back(connection):
        pass
    reached = await ask_all(connection, log.subjects.everyone)
    answered = [present for each in reached.answers if (present := read_present(each)) is not None]
    found = {each.card.instance: instance_of(each.card, each.beat) for each in answered}
    for text in reached.names:
        agent, _, instance = text.removeprefix("agent/").partition("/")
        if text.startswith("agent/") and instance not in found:
            card = await card_of(log, agent, instance)
            if card is not None:
                found[instance] = instance_of(card, None, "suspected", _SILENT)
    return list(found.values())


async def card_of(log: Log, agent: str, instance: str) -> Card | None:
    """The card of an instance whose newest event is its registration. Raises Unavailable."""
    try:
        newest = await log.last(log.subjects.agent(agent, instance))
    except InvalidName:
        return None
    event = event_in(newest) if newest is not None else None
    return event if isinstance(event, Card) else None


def event_in(record: Record) -> Card | AgentDeregistered | AgentLost | None:
    """What a record says of an agent; None for what can't be read, which is logged."""
    try:
        return read_event(record.envelope())
    except MalformedMessage as error:
        logger.warning("record set aside", subject=record.subject, position=record.position, error=str(error))
        return None


class Arrivals:
    """What changes among the instances there are. `beat_s` is how often each says that it lives."""

    def __init__(self, connection: Connection, log: Log, beat_s: float) -> None:
        self._connection = connection
        self._log = log
        self._beat_s = beat_s
        self._look_s = beat_s / 20
        self._stood_still_s = beat_s / 2
        self._roster = Roster(beat_s)
        self._woken = asyncio.Event()
        # Only the latest beat of each counts, however slow the listener is.
        self._beats: dict[str, tuple[Beat, float]] = {}
        self._records: asyncio.Queue[Record] = asyncio.Queue(_RECORDS)

    async def changes(self) -> AsyncGenerator[Change, None]:
        """Those that are there, and then every change; never ends. Raises Unavailable."""
        newest = await self._log.last(self._log.subjects.agents)
        told = self._connection.subscribe(self._log.subjects.beats, self._hear)
        following = asyncio.create_task(self._follow(newest.position if newest is not None else 0))
        try:
            for instance in await who_is_there(self._connection, self._log, self._beat_s):
                for change in self._roster.found(instance, time.monotonic()):
                    yield change
            looked_s = time.monotonic()
            while not following.done():
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._look_s):
                        await self._woken.wait()
                self._woken.clear()
                for change in await self._news():
                    yield change
                now_s = time.monotonic()
                if now_s - looked_s >= self._look_s:
                    # If it was this process that stood still, what came meanwhile has to be read first.
                    for change in self._roster.look(now_s) if now_s - looked_s < self._stood_still_s else ():
                        yield change
                    looked_s = time.monotonic()
            await following
        finally:
            told.unsubscribe()
            following.cancel()

    async def _news(self) -> list[Change]:
        changes: list[Change] = []
        while not self._records.empty():
            event = event_in(self._records.get_nowait())
            if isinstance(event, Card):
                changes += self._roster.came(event, time.monotonic())
            elif event is not None:
                changes += self._roster.went(event)
        beats, self._beats = self._beats, {}
        for beat, at_s in beats.values():
            changes += await self._heard(beat, at_s)
        return changes

    async def _heard(self, beat: Beat, at_s: float) -> Iterable[Change]:
        known = self._roster.heard(beat, at_s)
        if known is not None:
            return known
        # It registered before this began, and was busy when everybody was asked.
        card = await card_of(self._log, beat.agent, beat.instance)
        return self._roster.came(card, at_s, beat) if card is not None else ()

    def _hear(self, message: Message) -> None:
        beat = read_beat(message)
        if beat is not None:
            # Looked at with the next tick: a thousand a second would wake it up as often.
            self._beats[beat.instance] = beat, time.monotonic()

    async def _follow(self, after: int) -> None:
        async for record in self._log.follow(self._log.subjects.agents, after=after):
            await self._records.put(record)
            self._woken.set()
