"""Parking: the lines of keys that wait behind work of theirs that died, as the log has them.

Nothing of it is kept in memory: the newest record on a key's own subject says whether anything waits there, and where
to begin to read. All that is written is expected to stand behind what was seen, so of two who were handed the same
place one does it, and the other begins anew.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import NamedTuple
from uuid import uuid4

import structlog
from msgspec.structs import replace

from bus.client import Client
from bus.clock import utc_now
from bus.errors import MalformedMessage
from bus.format.envelope import envelope
from bus.runs.lane import PARKED, RESUMED, UNPARKED, Parked, Resumed, Row, Unparked, lane_of, row_of, token_of

logger = structlog.get_logger(__name__)


class Waiting(NamedTuple):
    """A run in the line: where it stands there, its name, and the id of the commit that began it."""

    position: int
    run: str
    begun: str


class Parking:
    """Of one capability."""

    def __init__(self, client: Client, capability: str) -> None:
        self._client = client
        self._capability = capability

    async def row(self, key: str) -> Row:
        """How its line stands now. Raises Unavailable."""
        subject = self._subject(key)
        newest = await self._client.log.last(subject)
        if newest is None:
            return Row()
        try:
            return row_of(newest.position, newest.envelope())
        except MalformedMessage as error:
            # Anybody could have published it: the newest of ours counts.
            logger.warning("record set aside", position=newest.position, error=str(error))
        async with aclosing(self._client.log.read_back(subject, before=newest.position)) as records:
            async for record in records:
                with suppress(MalformedMessage):
                    return replace(row_of(record.position, record.envelope()), position=newest.position)
        return Row(newest.position)

    async def waiting(self, key: str, row: Row) -> AsyncGenerator[Waiting, None]:
        """What waits in the line, in order."""
        async with aclosing(self._client.log.read(self._subject(key), after=row.after)) as records:
            async for record in records:
                try:
                    message = record.envelope()
                except MalformedMessage as error:
                    logger.warning("record set aside", position=record.position, error=str(error))
                    continue
                if message.type == PARKED and message.runid is not None:
                    yield Waiting(record.position, message.runid, message.causationid or message.id)

    async def park(self, key: str, row: Row, run: str, begun: str) -> None:
        """Let a run, begun by that commit, wait at the end of the line. Raises VersionConflict: somebody else has
        written there."""
        await self._write(key, row, PARKED, Parked(key, row.after), run, begun)

    async def unpark(self, key: str, row: Row, after: int, *, waiting: bool) -> None:
        """Say up to where all is over. What is left may go on in its turn: with the others of its lane.

        Raises VersionConflict: somebody else has written there.
        """
        await self._write(key, row, UNPARKED, Unparked(key, after, waiting))

    async def again(self, key: str, run: str, resumed: Resumed | None = None) -> None:
        """Have the line looked at once more because of a run, behind what stands in its lane now."""
        client, said = self._client, resumed or Resumed(key)
        message = envelope(RESUMED, said, id=uuid4().hex, source=client.source, time=utc_now(), runid=run)
        await client.log.append(client.subjects.line(self._capability, lane_of(key)), message)

    async def _write(
        self, key: str, row: Row, kind: str, what: object, run: str | None = None, causation: str | None = None
    ) -> None:
        client = self._client
        said = envelope(
            kind, what, id=uuid4().hex, source=client.source, time=utc_now(), causationid=causation, runid=run
        )
        await client.log.append(self._subject(key), said, expected=row.position)

    def _subject(self, key: str) -> str:
        return self._client.subjects.parked(self._capability, token_of(key))
