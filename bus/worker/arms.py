"""The arms of one capability at one instance: what a route gives to versions of its kind is asked and listened for.

An instance belongs to one arm of a route at most. Whatever comes this way is the capability's own work: it has the same
hands, breaker and cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bus.broker.connection import Message, Subscription
from bus.client import Client
from bus.rules.priority import Priority
from bus.worker.queues import Queues, Take

FORGOTTEN_S = 3600.0
"""What only one instance, or some versions, take is forgotten so long after they have ended; the work itself is not."""


class Arms:
    """Opened and closed by their desk, which is given what is delivered and what is handed over."""

    def __init__(
        self,
        client: Client,
        take: Take,
        free: Callable[[], int],
        refill: Callable[[], None],
        hear: Callable[[Message], None],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._client = client
        self._take = take
        self._free = free
        self._refill = refill
        self._hear = hear
        self._tasks = tasks
        self._queues: dict[str, Queues] = {}
        self._left: list[Queues] = []
        self._listening: list[Subscription] = []

    @property
    def needs(self) -> set[str]:
        """What is taken."""
        return set(self._queues)

    async def follow(self, needs: set[str]) -> None:
        """Take what is for these, and for no others any more. Raises Unavailable, Misconfigured."""
        for need in self._queues.keys() - needs:
            self._leave(need)
        for need in needs - self._queues.keys():
            queues = Queues(self._client, need, self._take, self._free, self._refill, self._tasks, FORGOTTEN_S)
            await queues.open()
            self._queues[need] = queues

    def fill(self) -> None:
        """Ask for as much as there is room for."""
        for each in self._queues.values():
            each.fill()

    def has_before(self, level: Priority) -> bool:
        """Whether work waits that more of this level has to stand behind."""
        return any(each.has_before(level) for each in self._queues.values())

    def place(self, rank: int, *, held: bool) -> None:
        """Come after instances with a lower number; take nothing while `held`."""
        for each in self._queues.values():
            each.place(rank, held=held)

    def listen(self, *, spare: bool | None) -> None:
        """Be handed work directly, at the first place to ask or at the `spare` one; None: not at all."""
        for each in self._listening:
            each.unsubscribe()
        hands = [] if spare is None else [self._client.subjects.hand(each, spare=spare) for each in self._queues]
        self._listening = [self._client.connection.subscribe(each, self._hear, queue="instances") for each in hands]

    def close(self) -> None:
        """Take nothing more."""
        for need in list(self._queues):
            self._leave(need)
        self.listen(spare=None)

    def cancel(self) -> None:
        """End what is left of pulling."""
        for each in self._left:
            each.cancel()

    def _leave(self, need: str) -> None:
        queues = self._queues.pop(need)
        queues.close()
        # What is on its way is still delivered, and handed on.
        self._left.append(queues)
