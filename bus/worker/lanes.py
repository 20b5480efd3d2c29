"""The lanes of one ordered capability at one instance: what stands first in each is asked for, and seen through.

A lane's consumer hands out one place at a time, and the next when that is acknowledged, which happens when its run has
ended. So the order does not depend on who serves it: whoever is handed a place goes on where the log says it stands.
Work of a lane goes to the same instance while that has room for it: each instance asks first for the lanes that are at
home with it, as of the beats it hears.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from bus.broker.connection import Message, Subscription
from bus.broker.pull import Delivery, Intake
from bus.client import Client
from bus.handlers.agent import Capability
from bus.log.consumers import EVERYBODY, ensure_lane
from bus.registry.presence import read_beat
from bus.runs.lane import LANES, is_home

_GUEST_RANK = 4
_LAST_RANK = 9


class Lanes:
    """Opened and closed by their desk, which is given what was delivered."""

    def __init__(
        self, client: Client, capability: Capability, instance: str, deliver: Callable[[Delivery], None]
    ) -> None:
        self._client = client
        self._capability = capability
        self._instance = instance
        self._deliver = deliver
        self._intakes: list[Intake] = []
        self._rank = 0
        self._held = False
        self._heard: dict[str, float] = {}
        self._hearing: Subscription | None = None

    async def open(self, tasks: asyncio.TaskGroup) -> set[asyncio.Task[None]]:
        """Ask for work as it is granted; returns what does that. Raises Unavailable, Misconfigured."""
        client = self._client
        names = await asyncio.gather(*(self._ensure(lane) for lane in range(LANES)))
        self._intakes = [
            Intake(
                client.connection,
                client.subjects.stream,
                name,
                deliver=self._deliver,
                missing=partial(self._restore, lane),
                group=EVERYBODY,
            )
            for lane, name in enumerate(names)
        ]
        self._hearing = client.connection.subscribe(client.subjects.beats, self._hear)
        self.place(self._rank, held=self._held)
        return {*map(tasks.create_task, (each.run() for each in self._intakes)), tasks.create_task(self._keep_homes())}

    def close(self) -> None:
        for each in self._intakes:
            each.stop()
        self._intakes = []
        if self._hearing is not None:
            self._hearing.unsubscribe()
            self._hearing = None

    def grant(self) -> None:
        """Let the first of each lane come: there is room for one more."""
        for each in self._intakes:
            each.grant(max(1 - each.credit, 0))

    def place(self, rank: int, *, held: bool) -> None:
        """Come after instances with a lower number; take nothing while `held`."""
        self._rank, self._held = rank, held
        for lane, each in enumerate(self._intakes):
            is_at_home = is_home(lane, self._instance, self._heard)
            each.rank(rank if is_at_home else min(rank + _GUEST_RANK, _LAST_RANK))
            each.hold(held)

    def _hear(self, message: Message) -> None:
        beat = read_beat(message)
        if beat is None or self._capability.name not in beat.capabilities or beat.instance == self._instance:
            return
        if beat.standing != "live":
            if self._heard.pop(beat.instance, None) is not None:
                self.place(self._rank, held=self._held)
            return
        is_new = beat.instance not in self._heard
        self._heard[beat.instance] = asyncio.get_running_loop().time()
        if is_new:
            self.place(self._rank, held=self._held)

    async def _keep_homes(self) -> None:
        """Forget who is not heard any more, while open."""
        loop, lease_s = asyncio.get_running_loop(), self._client.settings.lease_s
        while self._intakes:
            await asyncio.sleep(self._client.settings.beat_s)
            silent = [each for each, at_s in self._heard.items() if loop.time() - at_s > lease_s]
            for each in silent:
                del self._heard[each]
            if silent:
                self.place(self._rank, held=self._held)

    async def _ensure(self, lane: int) -> str:
        client = self._client
        return await ensure_lane(client.connection, client.subjects, self._capability.name, lane, client.settings)

    async def _restore(self, lane: int) -> None:
        await self._ensure(lane)
