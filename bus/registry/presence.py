"""Presence: an instance says that it lives, how it stands, and which attempts it holds.

Beats come from the event loop that runs the handlers, so a blocked loop falls silent by itself. They are not facts
and not stored; what follows from their absence is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Literal

import msgspec

from bus.broker.connection import Connection, Message, Subscription
from bus.broker.patience import until_others_are_back
from bus.broker.rhythm import until_next_s
from bus.errors import MalformedMessage, NoResponders, Unavailable
from bus.format.envelope import UNDECODABLE
from bus.format.subjects import Subjects, personal, versioned
from bus.registry.card import Card, without_schemas
from bus.registry.health import Level

Standing = Literal["live", "draining", "quarantined"]
"""How an instance stands: it takes work, it finishes and ends, or it takes nothing more until it is released."""


_SLOWEST_S = 60.0
_SILENT_S = 0.25
"""So long is one of those who take work waited for, if it is asked whether anybody does."""


class Held(msgspec.Struct, frozen=True, array_like=True):
    """An attempt an instance holds."""

    run: str
    phase: str
    item: int | None
    attempt: int


class Load(msgspec.Struct, frozen=True, array_like=True):
    """How many attempts of a capability an instance holds, of how many at once."""

    held: int
    concurrency: int


class Beat(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sign of life: only what changes; the rest is on the instance's card.

    `note` says why it stands as it does, `lag_s` how late its event loop was, `memory_mb` what its process takes.
    `paused` are the capabilities that take nothing more since something died (`on_dead="pause"`). How well it is
    (`bus.registry.health`) says how much it takes. `every_s` is when the next one is due, if not as the settings say.
    """

    agent: str
    instance: str
    standing: Standing = "live"
    note: str = ""
    capabilities: Mapping[str, Load] = {}
    held: Sequence[Held] = ()
    lag_s: float = 0.0
    memory_mb: int = 0
    paused: Sequence[str] = ()
    health: Level = "healthy"
    every_s: float = 0.0


class Pace(msgspec.Struct, frozen=True):
    """What a leader asks of an instance that holds nothing: to beat this often, and no more."""

    every_s: float


class Present(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an instance answers to a question to everybody: its card, without schemas, and a beat.

    A leader answers for all, with the newest beat of each, heard `silent_s` ago.
    """

    card: Card
    beat: Beat
    silent_s: float = 0.0


class Page(msgspec.Struct, frozen=True):
    """Some of those a leader has heard of. An empty message comes after the last one."""

    present: Sequence[Present]


_beat = msgspec.json.Decoder(Beat)
_present = msgspec.json.Decoder(Present)
_pace = msgspec.json.Decoder(Pace)
_page = msgspec.json.Decoder(Page)


def read_beat(message: Message) -> Beat | None:
    """The beat in a message, or None: a malformed one counts as silence."""
    try:
        return _beat.decode(message.data)
    except UNDECODABLE:
        return None


def read_present(message: Message) -> Present | None:
    """The answer of an instance, or None: a malformed one counts as silence."""
    try:
        return _present.decode(message.data)
    except UNDECODABLE:
        return None


def read_page(message: Message) -> Sequence[Present]:
    """Some of those a leader has heard of. Raises MalformedMessage."""
    try:
        return _page.decode(message.data).present
    except UNDECODABLE as error:
        raise MalformedMessage(f"not a page of the roster: {error}") from error


def is_end_of_roster(message: Message) -> bool:
    """Whether a leader's answer is complete with this one."""
    return not message.data


class Presence:
    """What one instance says of itself, and when. `beat` is called with how late the event loop was, in seconds."""

    def __init__(
        self, connection: Connection, subjects: Subjects, card: Card, beat: Callable[[float], Beat], every_s: float
    ) -> None:
        self._connection = connection
        self._subjects = subjects
        self._instance = card.instance
        self._version = card.version
        self._capabilities = card.capabilities
        # The same in every answer.
        self._card = msgspec.Raw(msgspec.json.encode(without_schemas(card)))
        self._beat = beat
        self._every_s = every_s
        self._pace_s = every_s
        self._beat_at_s = 0.0
        self._said = asyncio.Event()
        self._offered: dict[str, Subscription] = {}
        self._everyone: Subscription | None = None

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """Answer who asks for this instance while the block runs, and once it has appeared, who asks for everybody."""
        pings = self._connection.subscribe(self._subjects.ping(self._instance), self._answer_one)
        try:
            yield
        finally:
            self.offer(False)
            pings.unsubscribe()
            if self._everyone is not None:
                self._everyone.unsubscribe()

    def appear(self) -> None:
        """Be one of everybody: who is seen there takes work already, or says why not."""
        if self._everyone is None:
            self._everyone = self._connection.subscribe(self._subjects.everyone, self._answer_all)

    def offer(self, is_offered: bool, needs: Iterable[str] = ()) -> None:
        """Whether work is taken, also what routes give to versions of this kind (`needs`): who asks for what nobody
        offers is told so at once by the server."""
        asked = {self._subjects.who(each) for each in needs} if is_offered else set()
        for name, each in self._capabilities.items() if is_offered else ():
            asked |= {self._subjects.who(name)}
            asked |= {self._subjects.who(name, ordered=True)} if each.ordered else set()
            asked |= {self._subjects.who(personal(self._instance, name))} if each.broadcast else set()
            asked |= {self._subjects.who(versioned(self._version, name))} if each.versioned else set()
        for subject in asked - self._offered.keys():
            # One of them answers: a thousand would be woken by each question.
            self._offered[subject] = self._connection.subscribe(subject, self._answer_who, queue="instances")
        for subject in self._offered.keys() - asked:
            self._offered.pop(subject).unsubscribe()

    def say(self) -> None:
        """Beat now: something has changed."""
        self._said.set()

    def took(self) -> None:
        """Something is held now: the next beat is due when a holder's would be."""
        if self._pace_s > self._every_s:
            asyncio.get_running_loop().call_at(self._beat_at_s + self._every_s, self._said.set)

    async def beating(self) -> None:
        """Beat until cancelled: as often as the settings say while something is held, otherwise at the pace that a
        leader wants. Raises Unavailable when the connection is closed."""
        loop = asyncio.get_running_loop()
        lag_s = 0.0
        while True:
            self._said.clear()
            beat = self._now(lag_s)
            self._beat_at_s = loop.time()
            try:
                self._connection.publish(self._subjects.beat(self._instance), msgspec.json.encode(beat))
            except Unavailable:
                # Too much waits to be sent: a beat less is the least of it. A closed connection is another matter.
                if self._connection.is_closed:
                    raise
            due = loop.time() + until_next_s(time.time(), beat.every_s or self._every_s, self._connection.name)
            timer = loop.call_at(due, self._said.set)
            try:
                await self._said.wait()
            finally:
                timer.cancel()
            lag_s = max(loop.time() - due, 0.0)

    def _now(self, lag_s: float = 0.0) -> Beat:
        beat = self._beat(lag_s)
        is_slower = not beat.held and self._pace_s > self._every_s
        return msgspec.structs.replace(beat, every_s=self._pace_s) if is_slower else beat

    def _answer_all(self, message: Message) -> None:
        self._answer(message, b'{"card":%b,"beat":%b}' % (bytes(self._card), msgspec.json.encode(self._now())))

    def _answer_one(self, message: Message) -> None:
        with suppress(*UNDECODABLE):
            if message.data:
                self._pace_s = min(max(_pace.decode(message.data).every_s, self._every_s), _SLOWEST_S)
        self._answer(message, msgspec.json.encode(self._now()))

    def _answer_who(self, message: Message) -> None:
        self._answer(message, b"")

    def _answer(self, message: Message, data: bytes) -> None:
        if message.reply and self._connection.is_connected:
            self._connection.publish(message.reply, data)


async def is_offered(
    connection: Connection, subjects: Subjects, capability: str, timeout_s: float, *, ordered: bool = False
) -> bool:
    """Whether some instance takes work for the capability, or work with a key. The server says so if none does."""
    subject = subjects.who(capability, ordered=ordered)
    while True:
        try:
            # Who is asked may be frozen, but was there to be asked: the server would have said otherwise long before.
            await connection.request(subject, timeout_s=min(timeout_s, _SILENT_S))
        except NoResponders:
            if not await until_others_are_back(connection):
                return False
        except Unavailable:
            # Somebody is subscribed but busy: alive as far as anybody can tell.
            return True
        else:
            return True
