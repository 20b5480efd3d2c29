"""The arms of one capability at one instance: what a route gives to versions of its kind is asked and listened for.

An instance belongs to one arm of a route at most. Whatever comes this way is the capability's own work: it has the same
hands, breaker and cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bus.broker.connection import Message, Subscription
from bus.broker.pull import Delivery, Intake
from bus.client import Client
from bus.log.streams import EVERYBODY, ensure_consumer, set_up_work

FORGOTTEN_S = 3600.0
"""What only one instance, or some versions, take is forgotten so long after they have ended; the work itself is not."""


class Arms:
    """Opened and closed by their desk, which is given what is delivered and what is handed over."""

    def __init__(
        self,
        client: Client,
        deliver: Callable[[Intake, Delivery], None],
        hear: Callable[[Message], None],
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._client = client
        self._deliver = deliver
        self._hear = hear
        self._tasks = tasks
        self._intakes: dict[str, Intake] = {}
        self._pulling: set[asyncio.Task[None]] = set()
        self._listening: list[Subscription] = []

    def __contains__(self, intake: Intake) -> bool:
        return intake in self._intakes.values()

    @property
    def needs(self) -> set[str]:
        """What is taken."""
        return set(self._intakes)

    async def follow(self, needs: set[str]) -> None:
        """Take what is for these, and for no others any more. Raises Unavailable, Misconfigured."""
        for need in self._intakes.keys() - needs:
            self._intakes.pop(need).stop()
        for need in needs - self._intakes.keys():
            self._intakes[need] = await self._open(need)

    def grant(self, free: int) -> None:
        """Let as many come to each as there is room for."""
        for each in self._intakes.values():
            each.grant(max(free - each.credit, 0))

    def place(self, rank: int, *, held: bool) -> None:
        """Come after instances with a lower number; take nothing while `held`."""
        for each in self._intakes.values():
            each.rank(rank)
            each.hold(held)

    def listen(self, *, spare: bool | None) -> None:
        """Be handed work directly, at the first place to ask or at the `spare` one; None: not at all."""
        for each in self._listening:
            each.unsubscribe()
        hands = [] if spare is None else [self._client.subjects.hand(each, spare=spare) for each in self._intakes]
        self._listening = [self._client.connection.subscribe(each, self._hear, queue="instances") for each in hands]

    def close(self) -> None:
        """Take nothing more."""
        for each in self._intakes.values():
            each.stop()
        self._intakes = {}
        self.listen(spare=None)

    def cancel(self) -> None:
        """End what is left of pulling."""
        for task in self._pulling:
            task.cancel()

    async def _open(self, need: str) -> Intake:
        client = self._client

        async def ensure() -> str:
            return await ensure_consumer(
                client.connection, client.subjects, need, client.settings, inactive_s=FORGOTTEN_S
            )

        async def restore() -> None:
            await set_up_work(client.connection, client.subjects, client.settings)
            await ensure()

        intake = Intake(
            client.connection,
            client.subjects.work_stream,
            await ensure(),
            deliver=lambda delivery: self._deliver(intake, delivery),
            missing=restore,
            group=EVERYBODY,
        )
        task = self._tasks.create_task(intake.run())
        self._pulling.add(task)
        task.add_done_callback(self._pulling.discard)
        return intake
