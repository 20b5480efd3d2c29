"""Handing: the asker's side of a handover. It speaks with one instance that has the capability, whichever that is."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from uuid import uuid4

from bus.broker.connection import Connection, Message
from bus.clock import utc_now
from bus.errors import BusError, NoResponders
from bus.format.envelope import decode, encode, envelope
from bus.format.subjects import live_copy
from bus.log.log import Log
from bus.log.record import is_record, read_record
from bus.messages.handover import ASKED, HANDED, Answered, Busy, Enclosed, Reply, read_reply, read_story
from bus.runs.causality import served

_FEW = 8
# An instance listens from when a question has taken it a moment.
_WITHDRAW_S = (0.0, 0.05, 0.2, 0.5)
_WORD_S = 1.0


class Handing:
    """Of one client."""

    def __init__(self, connection: Connection, log: Log, source: str) -> None:
        self._connection = connection
        self._log = log
        self._subjects = log.subjects
        self._source = source
        self._under_way = 0

    async def put(self, kind: str, run: str, capability: str, what: object, timeout_s: float) -> Reply:
        """The word of an instance; of one that comes after others, if those are not there or have no hand free."""
        reply: Reply | None = None
        with suppress(NoResponders):
            reply = await self._request(kind, run, self._subjects.hand(capability), what, timeout_s)
        if reply is None or (kind == ASKED and isinstance(reply, Busy)):
            with suppress(NoResponders):
                return await self._request(kind, run, self._subjects.hand(capability, spare=True), what, timeout_s)
        if reply is None:
            raise NoResponders(self._subjects.hand(capability))
        return reply

    async def _request(self, kind: str, run: str, subject: str, what: object, timeout_s: float) -> Reply:
        facts = served()
        message = envelope(
            kind,
            what,
            id=uuid4().hex,
            source=self._source,
            time=utc_now(),
            correlationid=facts.correlation if facts is not None else None,
            causationid=facts.causation if facts is not None else None,
            runid=run,
        )
        body = encode(message)
        if kind == ASKED and len(body) > self._connection.max_payload:
            body = await self._log.pack(subject, message)
        told: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

        def take(copy: Message) -> None:
            if not told.done() and is_record(copy):
                told.set_result(copy)

        # The server tells of what it has stored sooner than who had it stored. Of many at once that costs too much:
        # then the instance's own word, which comes when the log has it, will do.
        story = live_copy(self._subjects.run(run))
        is_followed = kind == HANDED and self._under_way < _FEW
        following = self._connection.subscribe(story, take) if is_followed else None
        self._under_way += 1
        try:
            forget = self._connection.ask(told, subject, body, timeout_s=timeout_s)
            try:
                answer = await told
            finally:
                forget()
        finally:
            self._under_way -= 1
            if following is not None:
                following.unsubscribe()
        if answer.subject == story:
            return read_story(answer.data, read_record(answer).position)
        reply = read_reply(answer.data)
        if isinstance(reply, Enclosed):
            return Answered(decode(await self._log.unpack(bytes(reply.message))).data)
        return reply

    async def withdraw(self, run: str) -> None:
        """Tell who works on a question that is not stored that nobody waits any more, if it takes long enough for that.

        It may be on its way still, or wait for a free hand. Who is not reached ends it at its deadline.
        """
        for pause_s in _WITHDRAW_S:
            await asyncio.sleep(pause_s)
            with suppress(BusError):
                await self._connection.request(self._subjects.withdrawn(run), timeout_s=_WORD_S)
                return
