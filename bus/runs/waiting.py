"""How much of a sender's work waits: it says in which row more of it stands (`bus.rules.priority`).

What this process has sent is counted here, and what is left of it is asked of the server now and then, while it goes on
sending. Both are hints: a row too far back or too far in front changes who is served first, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

import msgspec
import structlog

from bus.broker.connection import Connection
from bus.errors import BusError
from bus.format.envelope import UNDECODABLE
from bus.format.subjects import Subjects, Work
from bus.log.streams import waiting
from bus.rules.priority import MAIN, QUEUES, ROWS, Priority, Queue, checked, row_of

logger = structlog.get_logger(__name__)

# Asked before it matters, and again when as many more were sent as there were; what is older may be done long ago. How
# soon it is asked again depends on what the answer costs the server: it goes through all that wait.
_FIRST = ROWS[0] - 2
_OLD_S, _OLD_EACH_S, _OLDEST_S = 0.01, 1e-4, 1.0
_PATIENCE_S = 2.0
_RING_S = 5.0
_KNOWN = 10_000

_Account = tuple[str, str, str]
Publish = Callable[[Work], None]


class Bell(msgspec.Struct, frozen=True):
    """Something waits in this queue, where instances may not be asking."""

    level: Priority
    row: int


_bell = msgspec.json.Decoder(Bell)


def read_bell(data: bytes) -> Queue | None:
    """The queue that a bell names; None: anybody may ring anything."""
    try:
        bell = _bell.decode(data)
    except UNDECODABLE:
        return None
    queue = Queue(bell.level, bell.row)
    return queue if queue in QUEUES else None


class _Count(msgspec.Struct):
    """How many wait: `counted` by the server at `at_s`, and those sent since then.

    `since` are those sent while it is asked, `held` those that are sent when it has answered; None: not so.
    """

    at_s: float
    waiting: int = 0
    counted: int = 0
    since: int | None = None
    held: list[tuple[Work, Publish]] | None = None


class Waiting:
    """As one process knows it."""

    def __init__(self, connection: Connection, subjects: Subjects) -> None:
        self._connection = connection
        self._subjects = subjects
        self._counts: OrderedDict[_Account, _Count] = OrderedDict()
        self._rung: dict[tuple[str, str, int], float] = {}
        self._asking: set[asyncio.Task[None]] = set()

    def put(self, work: Work, publish: Publish) -> None:
        """Have work published in its row: at once, or when the server has told what still waits. It must not raise."""
        account = (work.capability, work.level, work.sender)
        now_s = asyncio.get_running_loop().time()
        count = self._counts.get(account)
        if count is None:
            count = self._counts[account] = _Count(now_s)
            if len(self._counts) > _KNOWN:
                self._counts.popitem(last=False)
        if count.held is not None:
            count.held.append((work, publish))
            return
        if count.waiting >= _FIRST:
            is_old = now_s - count.at_s >= min(max(_OLD_S, count.counted * _OLD_EACH_S), _OLDEST_S)
            if count.since is None and (is_old or count.waiting >= 2 * count.counted):
                self._ask(account, count)
            # What was sent long ago may be done: nobody is sent back for it.
            if count.since is not None and is_old and row_of(count.waiting):
                count.held = [(work, publish)]
                return
        _place(count, work, publish)

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
            bell = Bell(checked(work.level), work.row)
            self._connection.publish(self._subjects.bell(work.capability), msgspec.json.encode(bell))

    def _ask(self, account: _Account, count: _Count) -> None:
        count.since = 0
        task = asyncio.get_running_loop().create_task(self._count(account, count))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _count(self, account: _Account, count: _Count) -> None:
        stream, sent = self._subjects.work_stream, self._subjects.sent(*account)
        try:
            count.counted = await waiting(self._connection, stream, sent, _PATIENCE_S)
            count.waiting = count.counted + (count.since or 0)
        except BusError as error:
            logger.debug("not counted", capability=account[0], error=str(error))
        finally:
            held = count.held or ()
            count.at_s, count.since, count.held = asyncio.get_running_loop().time(), None, None
            for work, publish in held:
                _place(count, work, publish)


def _place(count: _Count, work: Work, publish: Publish) -> None:
    row = row_of(count.waiting)
    publish(work._replace(row=row) if row != work.row else work)
    count.waiting += 1
    if count.since is not None:
        count.since += 1
