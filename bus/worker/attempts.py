"""The attempts an instance holds: from a delivered order to a result in the log.

Work is a hint, the log is the truth: who takes work first appends `phase.started` for exactly that attempt, and a
result counts by an append that names it. The message is acknowledged in between, when the log has it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

import structlog

from bus.broker.pull import Delivery
from bus.client import Client
from bus.errors import BusError, CircuitOpen, MalformedMessage, Refused
from bus.format.envelope import decode
from bus.format.subjects import Work
from bus.guards.circuit import Circuit, Passage
from bus.handlers.agent import Agent, Capability
from bus.handlers.context import Pulse
from bus.handlers.handling import Answer, Halted, answer
from bus.letters.burying import bury
from bus.problem import Problem, told
from bus.registry.presence import Held
from bus.registry.service import Tally
from bus.rules.commands import Offer, Take
from bus.rules.events import PhaseFailed, PhaseStarted
from bus.rules.inputs import Order
from bus.rules.inputs import order as order_of
from bus.runs.halts import Halt, is_held
from bus.runs.hearing import Again
from bus.runs.runs import Decided
from bus.worker.attempt import Attempt
from bus.worker.beginning import Beginning
from bus.worker.brake import Brake
from bus.worker.recall import Recall, Recalled

logger = structlog.get_logger(__name__)

_NOT_NOW_S = 1.0
_LET_OTHERS_S = 0.1


class Attempts:
    """What one instance of an agent has in hand. `draining` ends the taking of more; `state` is its lifespan's.

    `apart` makes the answers of isolated handlers. `tallies` counts what came of each capability. `took` is called when
    an attempt is held where none was.
    """

    def __init__(self, client: Client, agent: Agent, instance: str, apart: Answer) -> None:
        self._client = client
        self._agent = agent
        self._instance = instance
        self._apart = apart
        self._recall = Recall(client, agent)
        # Bound once: structlog would make a new logger for each line, also for those below the level.
        self._logger = logger.bind()
        self._held: dict[Held, Pulse] = {}
        self._doubted: set[Held] = set()
        self.took: Callable[[], None] = lambda: None
        self.tallies = {name: Tally() for name in agent.capabilities}
        self.state: Any = None
        self.brakes: dict[str, Brake] = {}
        self.draining = False

    @property
    def held(self) -> Sequence[Held]:
        return list(self._held)

    async def serve(self, capability: Capability, delivery: Delivery, circuit: Circuit | None = None) -> None:
        """One delivery, from the message to its result in the log. What goes wrong is recorded, not raised.

        What an open `circuit` does not let through goes back to the queue: it costs the work no attempt.
        """
        if self.is_paused(capability):
            # It was on its way when something died.
            delivery.nak(_NOT_NOW_S)
            return
        try:
            message = decode(delivery.message.data)
            work = self._client.subjects.parse_work(delivery.message.subject)
        except MalformedMessage as error:
            await self.bury(capability.name, delivery, str(error))
            return
        try:
            passage = await circuit.enter() if circuit is not None else None
        except CircuitOpen as error:
            self._logger.debug("not let through", reason=str(error))
            delivery.nak(_LET_OTHERS_S)
            return
        with structlog.contextvars.bound_contextvars(
            agent=self._agent.name,
            instance=self._instance,
            run=work.run,
            correlation=message.correlationid,
            causation=message.causationid or message.id,
        ):
            recalled = await self._recall.look(capability, work)
            decided = await self._take(capability, work, delivery, message.causationid or message.id, recalled)
            if decided is not None and recalled.reuse is not None:
                self._logger.info("cached", phase=work.phase, item=work.item, source=recalled.reuse.source.run)
            if (decided is None or recalled.reuse is not None) and passage is not None:
                passage.abandon()
            if recalled.reuse is not None:
                return
            # Nobody else waits for this capability: what the result makes ready may stay with us. What may be cached
            # is looked up first.
            offers = work.capability if not delivery.pending and capability.cache is None else ""
            while decided is not None and (started := _next_start(decided, self._instance)) is not None:
                decided = await self._go_on(capability, started, decided, recalled, passage, offers)
                passage = circuit.passing() if circuit is not None else None
                offers = offers if circuit is None or circuit.state.status == "closed" else ""

    async def take(self, capability: Capability, work: Work, causation: str, circuit: Circuit | None) -> None:
        """Take this attempt, if it can be taken, and make it. What goes wrong is recorded, not raised."""
        try:
            passage = await circuit.enter() if circuit is not None else None
        except CircuitOpen as error:
            self._logger.debug("not let through", reason=str(error))
            return
        with structlog.contextvars.bound_contextvars(
            agent=self._agent.name, instance=self._instance, run=work.run, causation=causation
        ):
            recalled = await self._recall.look(capability, work)
            decided = await self._take(capability, work, None, causation, recalled)
            started = _next_start(decided, self._instance) if recalled.reuse is None else None
            if decided is None or started is None:
                if passage is not None:
                    passage.abandon()
                return
            await self._go_on(capability, started, decided, recalled, passage)

    async def _go_on(
        self,
        capability: Capability,
        started: PhaseStarted,
        decided: Decided,
        recalled: Recalled,
        passage: Passage | None,
        offers: str = "",
    ) -> Decided | None:
        """Make the attempt that was taken, and keep what it gave if that may be used again."""
        part = started.phase if started.item is None else f"{started.phase}:{started.item}"
        with structlog.contextvars.bound_contextvars(phase=part, attempt=started.attempt):
            pulse = Pulse()
            order = order_of(decided.state, started.phase, started.item)
            attempt = self._of(capability, order, decided.commit, pulse, key=recalled.key)
            made = await self._attempt(
                capability, attempt, started.deadline_at, pulse, passage, offers=offers, because=started.because
            )
            if made is not None:
                await self._recall.keep(capability, recalled, made)
            return made

    async def make(
        self,
        capability: Capability,
        order: Order,
        deadline_at: datetime,
        beginning: Beginning,
        pulse: Pulse,
        passage: Passage | None,
    ) -> Decided | None:
        """Make an attempt that was handed over, from its handler to its result in the log. None: that is not there."""
        attempt = self._of(capability, order, beginning.id, pulse, beginning)
        return await self._attempt(capability, attempt, deadline_at, pulse, passage, beginning=beginning)

    def _of(
        self,
        capability: Capability,
        order: Order,
        causation: str,
        pulse: Pulse,
        beginning: Beginning | None = None,
        key: str = "",
    ) -> Attempt:
        return Attempt(
            self._client, self._agent.name, self._instance, capability, order, causation, pulse, beginning, key
        )

    def hold(self, held: Held, pulse: Pulse) -> None:
        """The log gives this attempt to the instance: its beats say that it has it."""
        self._held[held] = pulse
        if len(self._held) == 1:
            self.took()

    def is_paused(self, capability: Capability) -> bool:
        """Whether nothing of it is taken since something died."""
        return capability.name in self.brakes and self.brakes[capability.name].is_on

    async def heed(self, halt: Halt) -> None:
        """Stop what the log no longer gives to this instance. A halt can be forged: the log is asked."""
        for held in halt.held:
            pulse = self._held.get(held)
            if pulse is None or not pulse.wanted or held in self._doubted:
                continue
            self._doubted.add(held)
            try:
                state = await self._client.runs.load(held.run)
            except BusError as error:
                # The supervisor says it again, as long as the attempt is in our beats.
                self._logger.warning("halt not checked", run=held.run, phase=held.phase, error=str(error))
                continue
            finally:
                self._doubted.discard(held)
            if not is_held(state, held, self._instance):
                pulse.drop(halt.reason)

    async def _take(
        self, capability: Capability, work: Work, delivery: Delivery | None, causation: str, recalled: Recalled
    ) -> Decided | None:
        """Append that this instance holds the attempt, then acknowledge: the log has it. None: it is not ours."""
        command = Take(
            work.phase,
            work.item,
            work.attempt,
            work.capability,
            self._agent.name,
            self._instance,
            capability.timeout_s,
            recalled.because,
            recalled.reuse,
        )
        try:
            decided = await self._client.runs.submit(work.run, command, causation=causation)
        except Refused as refused:
            self._logger.debug("stale work", reason=refused.reason)
            if delivery is not None:
                delivery.ack()
            return None
        except BusError as error:
            self._logger.warning("not taken", error=str(error))
            if delivery is not None:
                delivery.nak(_NOT_NOW_S)
            return None
        if delivery is not None:
            delivery.ack()
        return decided

    async def _attempt(
        self,
        capability: Capability,
        attempt: Attempt,
        deadline_at: datetime,
        pulse: Pulse,
        passage: Passage | None,
        *,
        offers: str = "",
        because: str = "",
        beginning: Beginning | None = None,
    ) -> Decided | None:
        """Call the handler and put what comes of it into the log; nothing, if nobody wants it any more."""
        if beginning is None:
            self.hold(attempt.held, pulse)
        began = time.monotonic()
        result: bytes | Problem | Halted | None = None
        self._logger.info("started", capability=capability.name, **({"because": because} if because else {}))
        try:
            result = await attempt.perform(
                deadline_at, self.state, answer if capability.isolation is None else self._apart
            )
            took_s = time.monotonic() - began
            if isinstance(result, Halted):
                self._logger.info("halted", reason=result.reason, duration_ms=_ms(took_s))
                return None
            if passage is not None:
                passage.end(result if isinstance(result, Problem) else None)
            if (lost := await attempt.flush()) is not None:
                result = lost
            self.tallies[capability.name].count(took_s, result if isinstance(result, Problem) else None)
            goes_on = bool(offers) and not self.draining and not self.is_paused(capability)
            offer = Offer(offers, self._agent.name, capability.timeout_s) if goes_on else None
            decided = await attempt.conclude(result, offer)
            if capability.name in self.brakes and decided is not None and _has_died(decided, attempt.order):
                # Before anything more is asked for: the log says so to everybody else a moment later.
                self.brakes[capability.name].put(on=True)
            duration_ms = _ms(time.monotonic() - began)
            if isinstance(result, Problem):
                self._logger.warning("failed", problem=told(result), error=str(result), duration_ms=duration_ms)
            else:
                self._logger.info("completed", duration_ms=duration_ms)
        except asyncio.CancelledError:
            if result is None and pulse.wanted and (beginning is None or beginning.is_stored):
                await attempt.conclude(Problem("handed_back", f"{self._instance} was stopped", "transient"))
            raise
        finally:
            if passage is not None:
                # Of what has not ended here, nobody knows how it would have.
                passage.abandon()
            self._held.pop(attempt.held, None)
        return decided

    async def bury(self, capability: str, delivery: Delivery, reason: str, again: Again | None = None) -> None:
        """Keep a message that nobody can read as a dead letter of the capability, then acknowledge it.

        With `again` it is what that tells once more, and could not be read before.
        """
        client, message = self._client, delivery.message
        try:
            await bury(
                client.log,
                client.subjects,
                capability,
                again.subject if again is not None else message.subject,
                again.body if again is not None else message.data,
                reason,
                limit_bytes=client.connection.max_payload,
                source=client.source,
                instance=self._instance,
                agent=self._agent.name,
                headers={} if again is not None else message.headers,
                origin=again.origin if again is not None else delivery.stream_sequence,
                stored_at=delivery.stored_at,
                delivered=delivery.delivered,
            )
        except BusError as error:
            self._logger.warning("dead letter not stored", error=str(error))
            delivery.nak(_NOT_NOW_S)
            return
        self._logger.warning("unreadable work", reason=reason)
        # Only now: what is acknowledged is gone from the work queue.
        delivery.ack()


def _has_died(decided: Decided, order: Order) -> bool:
    """Whether the work was given up with this result."""
    return any(
        isinstance(event, PhaseFailed) and (event.phase, event.item) == (order.phase, order.item)
        for event in decided.events
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)


def _next_start(decided: Decided | None, instance: str) -> PhaseStarted | None:
    """The attempt that a commit gave to this instance."""
    happened = decided.events if decided is not None else ()
    return next((each for each in happened if isinstance(each, PhaseStarted) and each.instance == instance), None)
