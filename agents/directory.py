"""The directory: the leader says who is there, when they are too many to be asked one by one.

It has followed who registered and ended, hears every beat, and is told by the server whose connection closes. So it
knows what each would answer, at the cost of one question instead of a thousand. Of few it says nothing: they are asked
themselves, and know better how they are at this moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import structlog

from agents.census import Census
from agents.registrar import Registrar
from bus.broker.connection import Message
from bus.broker.reach import ask_all
from bus.client import Client
from bus.errors import BusError, MalformedMessage
from bus.format.subjects import live_copy
from bus.log.record import read_record
from bus.registry.presence import read_present

logger = structlog.get_logger(__name__)

_FEW = 100
_PAGE_BYTES = 200_000
_CATCH_UP_S = 0.2
_AGAIN_S = 1.0


class Directory:
    """Of one leader's term. It answers when all have been heard of, and anew after each lost line."""

    def __init__(self, client: Client, registrar: Registrar, census: Census) -> None:
        self._client = client
        self._registrar = registrar
        self._census = census
        self._told_of = 0
        self._mute: set[str] = set()
        self._answering: set[asyncio.Task[None]] = set()

    async def serve(self, upto: int) -> None:
        """Answer until cancelled, as soon as the log has been followed up to a position."""
        connection, subjects = self._client.connection, self._client.subjects
        lost = asyncio.Event()
        forget = connection.on_disconnect(lost.set)
        hinting = connection.subscribe(live_copy(subjects.agents), self._hint)
        try:
            await self._registrar.has_read(upto)
            while True:
                lost.clear()
                try:
                    await self._call_over()
                except BusError as error:
                    logger.info("nobody is told of", error=str(error))
                    await asyncio.sleep(_AGAIN_S)
                    continue
                asked = connection.subscribe(subjects.roster, self._take, queue="leaders")
                try:
                    await lost.wait()
                finally:
                    asked.unsubscribe()
        finally:
            forget()
            hinting.unsubscribe()
            for task in self._answering:
                task.cancel()

    async def _call_over(self) -> None:
        """Hear of everybody once. Raises Unavailable."""
        reached = await ask_all(self._client.connection, self._client.subjects.everyone)
        answered = [present for each in reached.answers if (present := read_present(each)) is not None]
        for present in answered:
            self._census.note(present.beat)
        names = {name.rpartition("/")[2] for name in reached.names if name.startswith("agent/")}
        self._mute = names - {present.card.instance for present in answered}

    def _hint(self, copy: Message) -> None:
        try:
            self._told_of = max(self._told_of, read_record(copy).position)
        except MalformedMessage as error:
            logger.warning("live copy set aside", error=str(error))

    def _take(self, message: Message) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(message))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, message: Message) -> None:
        if not message.reply:
            return
        try:
            async with asyncio.timeout(_CATCH_UP_S):
                # Who had registered, or ended, before somebody asked is known of.
                await self._registrar.has_read(self._told_of)
            if len(self._registrar) > _FEW and self._census.hears_ends:
                for page in self._pages():
                    self._client.connection.publish(message.reply, page)
            self._client.connection.publish(message.reply, b"")
        except (BusError, TimeoutError) as error:
            # Who asks hears nothing, and asks everybody.
            logger.info("who is there was not told", error=str(error))

    def _pages(self) -> Iterator[bytes]:
        """Those that were heard since they registered: who is seen takes work already."""
        page, size = list[bytes](), 0
        now_s = time.monotonic()
        for instance, card in self._registrar.cards():
            beat = self._census.beat_as_json(instance)
            silent_s = now_s - self._census.heard_at(instance)
            if beat is None and instance not in self._mute:
                continue
            page.append(b'{"card":%b,"beat":%b,"silent_s":%.3f}' % (card, beat or _no_beat(instance), silent_s))
            size += len(page[-1])
            if size > _PAGE_BYTES:
                yield b'{"present":[%b]}' % b",".join(page)
                page, size = [], 0
        yield b'{"present":[%b]}' % b",".join(page)


def _no_beat(instance: str) -> bytes:
    """Of one that is connected, and has said nothing since this leader began."""
    return b'{"agent":"","instance":"%b"}' % instance.encode()
