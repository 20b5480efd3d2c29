"""The queues of one capability at one instance: it asks where it is whose turn it is, as it has room.

Nearly all work waits in the main queue, and while nothing waits elsewhere that is the only one asked at. A bell says
that there is something in another; from then on each place that is free is asked for where `Turns` says, of those
where something is known to wait. Where nothing is, one request lingers and tells of the next that comes: it is taken if
there is room, and otherwise handed back at once, now that it is known to wait. A queue that is silent for long is
left again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Protocol

import msgspec
import structlog

from bus.broker.connection import Message, Subscription
from bus.broker.pull import Delivery, Intake
from bus.client import Client
from bus.errors import BusError
from bus.log.consumers import EVERYBODY, consumer_of, ensure_consumer
from bus.log.layout import work_config
from bus.log.reading import Reader
from bus.log.streams import ensure_stream
from bus.rules.priority import LEVELS, MAIN, QUEUES, Priority, Queue, Turns, in_order
from bus.runs.waiting import read_bell

logger = structlog.get_logger(__name__)

# What came too late is handed on, when the server has heard that no more is wanted here.
_HAND_ON_S = 0.02
# What is there is delivered in the usual time; what is not after some times that was taken by somebody else.
_TIMES, _SMOOTH = 4, 16
_SHORTEST_S, _LONGEST_S = 0.03, 0.5
# What comes in vain is handed back one by one.
_AT_ONCE = 16
_SILENT_S = 30.0
_LATER_S = 0.01
_FORGOTTEN_S = 3600.0


class Take(Protocol):
    """Begin with what was delivered, if there is room; otherwise, if it `waits`, when there is. False: not begun."""

    def __call__(self, delivery: Delivery, *, waits: bool) -> bool: ...


class _Place(msgspec.Struct):
    """One queue as this instance knows it.

    `left` is how much waits there beyond what was asked for; `asked` how much of the intake's credit was for a turn of
    the queue and has not come, `asked_s` when that was, or when something came; `heard_s` when something was last
    known to be there.
    """

    intake: Intake
    heard_s: float
    asked_s: float = 0.0
    left: int = 0
    asked: int = 0

    def ask(self, count: int, now_s: float) -> None:
        self.asked_s = now_s
        self.intake.grant(count)


class Queues:
    """Opened and closed by their desk, which is given what was delivered."""

    def __init__(
        self,
        client: Client,
        capability: str,
        take: Take,
        free: Callable[[], int],
        refill: Callable[[], None],
        tasks: asyncio.TaskGroup,
        inactive_s: float | None,
    ) -> None:
        """`free` says how many attempts there is room for; `refill` is called when there is a reason to `fill`.

        With `inactive_s` the server forgets the queues when nobody has asked for so long.
        """
        self._client = client
        self._capability = capability
        self._take = take
        self._free = free
        self._refill = refill
        self._tasks = tasks
        self._inactive_s = inactive_s
        self._turns = Turns()
        self._places: dict[Queue, _Place] = {}
        self._rank, self._held = 0, False
        self._usual_s = 0.0
        self._settling: asyncio.TimerHandle | None = None
        self._listening: Subscription | None = None
        self._forget: Callable[[], None] | None = None
        self._opening: dict[Queue, asyncio.Task[None]] = {}
        self._running: set[asyncio.Task[None]] = set()

    @property
    def _settled_s(self) -> float:
        """How long something that was asked for can be on its way."""
        return min(max(_TIMES * self._usual_s, _SHORTEST_S), _LONGEST_S)

    @property
    def is_open(self) -> bool:
        return MAIN in self._places

    async def open(self) -> None:
        """Ask for work as there is room. Raises Unavailable, Misconfigured."""
        connection, subjects = self._client.connection, self._client.subjects
        # Before looking: what comes later rings.
        self._listening = connection.subscribe(subjects.bell(self._capability), self._hear)
        self._forget = connection.on_reconnect(self._look_soon)
        waiting = await self._waiting()
        for queue in dict.fromkeys([*waiting, MAIN]):
            await self._ensure(queue)
            self._begin(queue).left = int(queue in waiting)

    def close(self) -> None:
        """Ask for nothing more."""
        if self._listening is not None:
            self._listening.unsubscribe()
            self._listening = None
        if self._forget is not None:
            self._forget()
            self._forget = None
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        for opening in self._opening.values():
            opening.cancel()
        for place in self._places.values():
            place.intake.stop()
        self._places = {}

    def cancel(self) -> None:
        """End what is left of it."""
        for task in self._running:
            task.cancel()

    def place(self, rank: int, *, held: bool) -> None:
        """Come after instances with a lower number; take nothing while `held`."""
        self._rank, self._held = rank, held
        for each in self._places.values():
            each.intake.rank(rank)
            each.intake.hold(held)

    def fill(self) -> None:
        """Ask for as much as there is room for, where it is whose turn it is."""
        main = self._places.get(MAIN)
        if main is None:
            return
        free, now_s = self._free(), asyncio.get_running_loop().time()
        self._leave_silent(now_s)
        if len(self._places) == 1:
            if free > main.intake.credit:
                main.ask(free - main.intake.credit, now_s)
            return
        asked = sum(each.asked for each in self._places.values())
        waiting = [queue for queue, each in self._places.items() if each.left > 0]
        while waiting and asked < free:
            queue = self._turns.next(waiting)
            place = self._places[queue]
            place.left -= 1
            place.asked += 1
            place.ask(1, now_s)
            asked += 1
            if not place.left:
                waiting.remove(queue)
        if asked and self._settling is None:
            self._settling = asyncio.get_running_loop().call_later(self._settled_s, self._settle)
        # Where nothing is, what comes next is welcome; while there is work elsewhere, one request tells of it.
        for queue, each in self._places.items():
            welcome = 1 if asked else max(free if queue == MAIN else min(free, _AT_ONCE), 1)
            if not each.left and each.intake.credit < welcome:
                each.ask(welcome - each.intake.credit, now_s)

    def glance(self) -> None:
        """Ask for one more although there is no room: somebody else waits for it, and what is stored goes first."""
        main = self._places.get(MAIN)
        if main is not None and len(self._places) == 1 and not main.left and not main.intake.credit:
            main.ask(1, asyncio.get_running_loop().time())

    def has_before(self, level: Priority) -> bool:
        """Whether, as far as is known, work waits that more of this level has to stand behind."""
        now_s = asyncio.get_running_loop().time()
        before = LEVELS[: LEVELS.index(level) + 1]
        return any(
            each.left > 0 and (each.intake.credit <= 0 or now_s - each.asked_s < self._settled_s)
            for queue, each in self._places.items()
            if queue.level in before
        )

    def _begin(self, queue: Queue) -> _Place:
        client = self._client
        intake = Intake(
            client.connection,
            client.subjects.work_stream,
            consumer_of(self._capability, *queue),
            deliver=lambda delivery: self._deliver(queue, intake, delivery),
            missing=partial(self._restore, queue),
            group=EVERYBODY,
        )
        intake.rank(self._rank)
        intake.hold(self._held)
        self._keep(intake.run())
        # In the order they are served.
        place = self._places[queue] = _Place(intake, asyncio.get_running_loop().time())
        self._places = {each: self._places[each] for each in in_order(self._places)}
        return place

    def _deliver(self, queue: Queue, intake: Intake, delivery: Delivery) -> None:
        place = self._places.get(queue)
        if place is None or place.intake is not intake:
            delivery.nak(_HAND_ON_S)
            return
        now_s = asyncio.get_running_loop().time()
        if place.asked:
            took_s = now_s - place.asked_s
            self._usual_s = max(took_s, self._usual_s + (took_s - self._usual_s) / _SMOOTH)
        place.heard_s = place.asked_s = now_s
        # What came by itself leaves room for what was asked for at queues in front of it.
        kept = 0 if place.asked else self._asked_before(queue)
        place.left = max(delivery.pending - intake.credit, 0)
        place.asked = max(place.asked - 1, 0)
        is_alone = len(self._places) == 1
        # Who goes on with what his own result makes ready leaves out whatever waits in any of them.
        delivery.pending += sum(each.left for each in self._places.values() if each is not place)
        if (kept and self._free() <= kept) or not self._take(delivery, waits=is_alone):
            place.left += 1
            delivery.nak(0)
        elif not is_alone:
            self._refill()

    def _asked_before(self, queue: Queue) -> int:
        return sum(each.asked for other, each in self._places.items() if QUEUES.index(other) < QUEUES.index(queue))

    def _settle(self) -> None:
        """What was asked for and has not come is not there: somebody else was faster."""
        self._settling = None
        now_s = asyncio.get_running_loop().time()
        for each in self._places.values():
            if each.asked and now_s - each.asked_s >= self._settled_s:
                each.left = each.asked = 0
        self._refill()

    def _leave_silent(self, now_s: float) -> None:
        for queue, each in list(self._places.items()):
            if queue != MAIN and not each.left and not each.asked and now_s - each.heard_s > _SILENT_S:
                each.intake.stop()
                del self._places[queue]

    def _hear(self, message: Message) -> None:
        queue = read_bell(message.data)
        if queue is not None and queue != MAIN:
            self._join(queue)

    def _join(self, queue: Queue) -> None:
        """Ask there as well: something is, or may be."""
        place = self._places.get(queue)
        if place is not None:
            place.heard_s = asyncio.get_running_loop().time()
        elif self.is_open and queue not in self._opening:
            self._opening[queue] = self._keep(self._open(queue))

    async def _open(self, queue: Queue) -> None:
        try:
            # Who is to come first has asked by then.
            await asyncio.sleep(self._rank * _LATER_S)
            await self._ensure(queue)
            if self.is_open:
                self._begin(queue)
                self._refill()
        except BusError as error:
            # The supervisor rings for what waits too long.
            logger.warning("queue not opened", capability=self._capability, queue=queue, error=str(error))
        finally:
            self._opening.pop(queue, None)

    def _look_soon(self) -> None:
        self._keep(self._look())

    async def _look(self) -> None:
        """Join where something waits of which no bell was heard."""
        try:
            for queue in await self._waiting():
                if queue != MAIN:
                    self._join(queue)
        except BusError as error:
            # The supervisor rings for what waits too long.
            logger.warning("queues not looked at", capability=self._capability, error=str(error))

    async def _waiting(self) -> list[Queue]:
        """Where something waits at the moment. Raises Unavailable."""
        client, capability = self._client, self._capability
        reader = Reader(client.connection, client.subjects.work_stream, timeout_s=client.settings.request_timeout_s)
        if await reader.first(client.subjects.work_for(capability)) is None:
            return []
        return [queue for queue in QUEUES if await reader.first(client.subjects.queue(capability, *queue)) is not None]

    def _keep(self, running: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._tasks.create_task(running)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _ensure(self, queue: Queue) -> None:
        client = self._client
        inactive_s = self._inactive_s if queue == MAIN else _FORGOTTEN_S
        await ensure_consumer(
            client.connection,
            client.subjects,
            self._capability,
            client.settings,
            level=queue.level,
            row=queue.row,
            inactive_s=inactive_s,
        )

    async def _restore(self, queue: Queue) -> None:
        client = self._client
        await ensure_stream(
            client.connection, work_config(client.subjects, client.settings.replicas), client.settings.request_timeout_s
        )
        await self._ensure(queue)
