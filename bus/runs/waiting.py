"""How much of a sender's work waits: it says in which row more of it stands (`bus.rules.priority`).

What this process has sent is counted here, and what is left of it is asked of the server now and then, while it goes on
sending. Both are hints: a row too far back or too far in front changes who is served first, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

import msgspec
import structlog

from bus.broker.connection import Connection
from bus.errors import BusError
from bus.format.subjects import Subjects, Work
from bus.log.streams import waiting
from bus.rules.priority import MAIN, ROWS, row_of

logger = structlog.get_logger(__name__)

_OLD_S = 1.0
_AGAIN_S = 0.1
# The server counts one by one: of so many it is asked no more often than once a second.
_COUNTED_PER_S = 5_000
_RING_S = 5.0
_KNOWN = 10_000

_Account = tuple[str, str, str]


class _Count(msgspec.Struct):
    """How many wait, as of `at_s`; `since` are those sent while the server is asked, None: it is not."""

    at_s: float
    waiting: int = 0
    since: int | None = None


class Waiting:
    """As one process knows it."""

    def __init__(self, connection: Connection, subjects: Subjects, timeout_s: float) -> None:
        self._connection = connection
        self._subjects = subjects
        self._timeout_s = timeout_s
        self._counts: OrderedDict[_Account, _Count] = OrderedDict()
        self._rung: dict[tuple[str, str, int], float] = {}
        self._asking: set[asyncio.Task[None]] = set()

    def placed(self, work: Work) -> Work:
        """The work in its row. It counts as waiting from now on."""
        now_s = asyncio.get_running_loop().time()
        account = (work.capability, work.level, work.sender)
        count = self._counts.get(account)
        if count is None:
            count = self._counts[account] = _Count(now_s)
            if len(self._counts) > _KNOWN:
                self._counts.popitem(last=False)
        elif count.waiting >= ROWS[0] and count.since is None:
            age_s = now_s - count.at_s
            if age_s >= max(_AGAIN_S, count.waiting / _COUNTED_PER_S):
                if age_s >= _OLD_S:
                    # Most likely it was done long ago.
                    count.waiting, count.at_s = 0, now_s
                self._ask(account, count)
        row = row_of(count.waiting)
        count.waiting += 1
        if count.since is not None:
            count.since += 1
        return work._replace(row=row)

    def ring(self, work: Work) -> None:
        """Say that something waits in that queue, to instances that may not be asking there. Raises Unavailable."""
        place = (work.capability, work.level, work.row)
        if place[1:] == MAIN:
            return
        now_s = asyncio.get_running_loop().time()
        if now_s - self._rung.get(place, -_RING_S) >= _RING_S:
            if len(self._rung) > _KNOWN:
                self._rung.clear()
            self._rung[place] = now_s
            self._connection.publish(self._subjects.bell(work.capability), b"%b %d" % (work.level.encode(), work.row))

    def _ask(self, account: _Account, count: _Count) -> None:
        count.since = 0
        task = asyncio.get_running_loop().create_task(self._count(account, count))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _count(self, account: _Account, count: _Count) -> None:
        stream, sent = self._subjects.work_stream, self._subjects.sent(*account)
        try:
            there = await waiting(self._connection, stream, sent, self._timeout_s)
            count.waiting = there + (count.since or 0)
        except BusError as error:
            logger.debug("not counted", capability=account[0], error=str(error))
        finally:
            count.at_s, count.since = asyncio.get_running_loop().time(), None
