"""The events and positions of one application, as one stream: the core that knows nothing of the library.

Ids are text, states are bytes. The adapter to a version of the library is `recorders`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from secrets import token_bytes
from typing import NamedTuple, TypeVar

from bus.broker.connection import Connection
from bus.broker.patience import patiently
from bus.errors import NoResponders, Unavailable
from bus.eventsourcing import wire
from bus.eventsourcing.append import Conflict, Member, append
from bus.eventsourcing.names import Names
from bus.eventsourcing.read import PAGE, Item, exactly, page, subjects
from bus.eventsourcing.wire import Position, Stored
from bus.log.jetstream import newest
from bus.log.streams import ensure_stream
from bus.settings import Settings

Found = TypeVar("Found")

_SAVE_BYTES = 9
_EXACT_PAGE = 100


class _Place(NamedTuple):
    """Where an upstream's position is stored, and what it says."""

    sequence: int
    notification_id: int
    state: bytes | None


_NOWHERE = _Place(0, 0, None)


class Entry(NamedTuple):
    """One event to be stored."""

    id: str
    version: int
    topic: str
    state: bytes
    is_uuid: bool


class Notice(NamedTuple):
    """One stored event and its notification id: its position in the stream."""

    id: int
    event: Stored


class Notices(NamedTuple):
    """What was found, the position read up to, and whether there may be more."""

    found: list[Notice]
    last: int
    more: bool


class Events:
    """The stream of one application for one purpose. It owns nothing that has to be closed."""

    def __init__(self, names: Names, settings: Settings) -> None:
        self.names = names
        self.settings = settings
        # What each upstream's position was last. If it still is, the server stores what follows it.
        self._seen: dict[str, _Place] = {}

    async def set_up(self, connection: Connection, *, create: bool) -> None:
        """Raises Misconfigured; without `create`, NotFound."""
        config = self.names.config(self.settings.replicas)
        await ensure_stream(connection, config, self.settings.request_timeout_s, create=create)

    def members(self, entries: Sequence[Entry]) -> list[Member]:
        """What to store, as messages. Raises Conflict: a version is there twice; InvalidName, MalformedMessage."""
        save = token_bytes(_SAVE_BYTES)
        members: dict[str, Member] = {}
        for id, version, topic, state, is_uuid in entries:
            subject = self.names.event(id, version)
            if subject in members:
                raise Conflict(subject)
            members[subject] = Member(subject, wire.encode(Stored(id, version, topic, state, save, is_uuid)), 0)
        return list(members.values())

    async def insert(self, connection: Connection, members: Sequence[Member]) -> list[int]:
        """Store all or none, each version once; returns their notification ids. Raises Conflict."""
        first = await append(connection, self.names.stream, members, self.settings)
        return list(range(first, first + len(members)))

    async def advance(
        self,
        connection: Connection,
        upstream: str,
        notification_id: int,
        entries: Sequence[Entry] = (),
        change: wire.Change | None = None,
    ) -> list[int]:
        """Store entries together with how far `upstream` was processed, which only rises. Raises Conflict.

        `change` makes the state kept beside the position from the one that is there.
        """
        members = self.members(entries)
        subject = self.names.position(upstream)
        place = self._seen.get(upstream)
        while True:
            place = place or await self._place(connection, upstream)
            if place.sequence and place.notification_id >= notification_id:
                raise Conflict(subject)
            state = change(place.state) if change else place.state
            position = Position(upstream, notification_id, token_bytes(_SAVE_BYTES), state)
            # Behind the events, so that an application's first event has the notification id 1.
            together = [*members, Member(subject, wire.encode(position), place.sequence)]
            try:
                first = await append(connection, self.names.stream, together, self.settings)
            except Conflict as conflict:
                if conflict.subject != subject:
                    raise
                place = None  # another process has moved it; whether past us, the next round sees
                continue
            self._seen[upstream] = _Place(first + len(members), notification_id, state)
            return list(range(first, first + len(members)))

    async def position(self, connection: Connection, upstream: str) -> int | None:
        """How far `upstream` was processed, as the stream's leader knows it."""
        place = await self._place(connection, upstream)
        return place.notification_id if place.sequence else None

    async def positions(self, connection: Connection) -> list[Position]:
        """Of every upstream."""
        items = await self._exactly(connection, [self.names.all_positions])
        return [wire.read_position(item.body) for item in items]

    async def last(self, connection: Connection) -> int | None:
        """The highest notification id."""
        found = await self._newest(connection, self.names.all_events)
        return found[0] if found else None

    async def select(
        self, connection: Connection, id: str, *, gt: int | None, lte: int | None, desc: bool, limit: int | None
    ) -> list[Stored]:
        """Events of one aggregate, by version. Raises Unavailable.

        Events are stored in the order of their versions; snapshots need not be, and a reader from the end would read
        all: for these the versions are asked for first, without what they hold.
        """
        if limit is not None and limit < 1:
            return []
        if desc or not self.names.is_law:
            return await self._listed(connection, id, gt, lte, desc=desc, limit=limit)
        found: list[Stored] = []
        after, more = await self._before(connection, id, gt), True
        while more:
            count = PAGE if limit is None else min(PAGE, limit - len(found))
            items, after, more = await self._page(connection, self.names.aggregate(id), after, count, bare=True)
            for item in items:
                event = wire.read_stored(item.body)
                if (gt is None or event.version > gt) and (lte is None or event.version <= lte):
                    found.append(event)
                more = more and (lte is None or event.version < lte)
            more = more and (limit is None or len(found) < limit)
        found.sort(key=_version)
        return found[:limit]

    async def notices(
        self, connection: Connection, *, after: int, upto: int | None, limit: int, topics: Sequence[str]
    ) -> Notices:
        """Up to `limit` events of all aggregates, in order. Raises Unavailable."""
        found: list[Notice] = []
        more = True
        while more and len(found) < limit:
            # With topics the server sends what is then left out, so a full page may yield little.
            count = PAGE if topics else min(PAGE, limit - len(found))
            items, last, more = await self._page(connection, self.names.all_events, after, count, bare=False)
            for item in items:
                if upto is not None and item.position > upto:
                    return Notices(found, item.position - 1, False)
                event = wire.read_stored(item.body)
                if not topics or event.topic in topics:
                    found.append(Notice(item.position, event))
                    if len(found) == limit:
                        return Notices(found, item.position, True)
            after = last
        return Notices(found, after, more)

    async def _before(self, connection: Connection, id: str, version: int | None) -> int:
        """A position with all events above `version` behind it, near to them where that can be known."""
        if version is None:
            return 0
        pair = [self.names.event(id, version), self.names.event(id, version + 1)]
        items = await self._exactly(connection, pair)
        # `version` itself is not wanted; what follows it may, against all habit, have been stored before it.
        return min((item.position - (wire.read_stored(item.body).version != version) for item in items), default=0)

    async def _listed(
        self, connection: Connection, id: str, gt: int | None, lte: int | None, *, desc: bool, limit: int | None
    ) -> list[Stored]:
        filter = self.names.aggregate(id)
        listed = await self._asked(connection, lambda: subjects(connection, self.names.stream, filter, self.settings))
        versions = sorted((int(subject.rpartition(".")[2]) for subject in listed), reverse=desc)
        wanted = [each for each in versions if (gt is None or each > gt) and (lte is None or each <= lte)][:limit]
        found: list[Stored] = []
        for start in range(0, len(wanted), _EXACT_PAGE):
            chunk = [self.names.event(id, version) for version in wanted[start : start + _EXACT_PAGE]]
            found.extend(wire.read_stored(item.body) for item in await self._exactly(connection, chunk))
        found.sort(key=_version, reverse=desc)
        return found

    async def _place(self, connection: Connection, upstream: str) -> _Place:
        subject = self.names.position(upstream)
        found = await self._newest(connection, subject)
        if found is None:
            return _NOWHERE
        position = wire.read_position(found[1])
        self._seen[upstream] = place = _Place(found[0], position.notification_id, position.state)
        return place

    async def _newest(self, connection: Connection, subject: str) -> tuple[int, bytes] | None:
        timeout_s = self.settings.request_timeout_s
        return await self._asked(connection, lambda: newest(connection, self.names.stream, subject, timeout_s))

    async def _exactly(self, connection: Connection, wanted: list[str]) -> list[Item]:
        return await self._asked(connection, lambda: exactly(connection, self.names.stream, wanted, self.settings))

    async def _page(
        self, connection: Connection, subject: str, after: int, count: int, *, bare: bool
    ) -> tuple[list[Item], int, bool]:
        return await self._asked(
            connection,
            lambda: page(connection, self.names.stream, subject, self.settings, after=after, count=count, bare=bare),
        )

    async def _asked(self, connection: Connection, ask: Callable[[], Awaitable[Found]]) -> Found:
        """What comes to a question, asked for as long as an append is tried. Raises Unavailable."""
        try:
            return await patiently(connection, ask, self.settings.append_timeout_s, passing=(Unavailable, NoResponders))
        except NoResponders as error:
            raise Unavailable(f"no answer for {self.settings.append_timeout_s:g} s: {error}") from error


def _version(event: Stored) -> int:
    return event.version
