"""The attempts an instance holds: from a delivered order to a result in the log.

Work is a hint, the log is the truth: who takes work first appends `phase.started` for exactly that attempt, and a
result counts by an append that names it. The message is acknowledged in between, when the log has it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from uuid import uuid4

import msgspec
import structlog

from bus.broker.pull import Delivery
from bus.client import Client
from bus.clock import utc_now
from bus.errors import BusError, CircuitOpen, MalformedMessage, Refused, TooLarge
from bus.format.envelope import decode, envelope
from bus.format.subjects import Work
from bus.guards.circuit import Circuit, Passage
from bus.handlers.agent import Agent, Capability
from bus.handlers.context import Context, Pulse, Report
from bus.handlers.emitting import Emitter
from bus.handlers.handling import Answer, Halted, answer, perform
from bus.handlers.llm import LLM_CALLED, LLMCall, LLMCalled
from bus.handlers.progress import Reporter
from bus.handlers.scribe import Scribe, notebook
from bus.letters.burying import bury
from bus.problem import Problem, told
from bus.registry.presence import Held
from bus.registry.service import Tally
from bus.rules.commands import Command, Complete, Fail, Offer, Take
from bus.rules.events import Cause, PhaseFailed, PhaseStarted, ResultRefused
from bus.rules.inputs import Order
from bus.rules.inputs import order as order_of
from bus.runs.halts import Halt, is_held
from bus.runs.hearing import Again
from bus.runs.runs import Decided
from bus.worker.beginning import Beginning
from bus.worker.brake import Brake
from bus.worker.recall import Recall, Recalled

logger = structlog.get_logger(__name__)

_NOT_NOW_S = 1.0
_LET_OTHERS_S = 0.1
_CAUSES: dict[str, Cause] = {
    "timed_out": "timed_out",
    "silent": "silent",
    "crashed": "crashed",
    "handed_back": "handed_back",
}


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
            made = await self._attempt(
                capability,
                order_of(decided.state, started.phase, started.item),
                started.deadline_at,
                decided.commit,
                Pulse(),
                passage=passage,
                offers=offers,
                key=recalled.key,
                because=started.because,
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
        return await self._attempt(
            capability, order, deadline_at, beginning.id, pulse, passage=passage, beginning=beginning
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
        order: Order,
        deadline_at: datetime,
        causation: str,
        pulse: Pulse,
        *,
        passage: Passage | None,
        offers: str = "",
        key: str = "",
        because: str = "",
        beginning: Beginning | None = None,
    ) -> Decided | None:
        """Call the handler and put what comes of it into the log; nothing, if nobody wants it any more.

        With a `beginning` the log does not have the attempt yet.
        """
        held = Held(order.run, order.phase, order.item, order.attempt)
        said = partial(self._call, order)
        report: Report = Reporter(self._client.runs, held, self._instance, pulse).report
        if beginning is None:
            self.hold(held, pulse)
            submit: Callable[[Command], Awaitable[Decided]] = partial(
                self._client.runs.submit, order.run, causation=causation
            )
        else:
            report, submit = beginning.reporting(report), beginning.conclude
        begun = beginning.store if beginning is not None else _begun
        emitter = Emitter(
            self._client.log,
            held,
            source=self._client.source,
            correlation=order.correlation,
            causation=causation,
            begun=begun,
        )
        context = Context(
            run=order.run,
            plan=order.plan,
            phase=order.phase,
            item=order.item,
            attempt=order.attempt,
            agent=self._agent.name,
            instance=self._instance,
            correlation=order.correlation,
            sticky=order.sticky,
            causation=causation,
            deadline_at=deadline_at,
            begun=order.begun,
            undoes=order.undoes,
            priority=order.priority,
            sender=order.sender,
            report=report,
            sink=emitter.emit,
            pulse=pulse,
            notebook=notebook(order, Scribe(self._client.runs, held, self._instance, pulse, begun, said)),
            state=self.state,
            door=self._client,
        )
        began = time.monotonic()
        timeout_s = (deadline_at - utc_now()).total_seconds()
        result: bytes | Problem | Halted | None = None
        self._logger.info("started", capability=capability.name, **({"because": because} if because else {}))
        try:
            result = await perform(
                capability,
                order.input,
                context,
                timeout_s=max(timeout_s, 0.0),
                silence_s=order.silence_timeout_s or capability.silence_s,
                answer=answer if capability.isolation is None else self._apart,
            )
            if passage is not None and not isinstance(result, Halted):
                passage.end(result if isinstance(result, Problem) else None)
            took_s = time.monotonic() - began
            duration_ms = round(took_s * 1000, 1)
            if isinstance(result, Halted):
                self._logger.info("halted", reason=result.reason, duration_ms=duration_ms)
                return None
            if (lost := await _flushed(emitter)) is not None:
                result = lost
            self.tallies[capability.name].count(took_s, result if isinstance(result, Problem) else None)
            offer = Offer(offers, self._agent.name, capability.timeout_s)
            goes_on = bool(offers) and not self.draining and not self.is_paused(capability)
            decided = await self._conclude(order, result, submit, offer if goes_on else None, key)
            if capability.name in self.brakes and decided is not None and _has_died(decided, order):
                # Before anything more is asked for: the log says so to everybody else a moment later.
                self.brakes[capability.name].put(on=True)
            duration_ms = round((time.monotonic() - began) * 1000, 1)
            if isinstance(result, Problem):
                self._logger.warning("failed", problem=told(result), error=str(result), duration_ms=duration_ms)
            else:
                self._logger.info("completed", duration_ms=duration_ms)
        except asyncio.CancelledError:
            if result is None and pulse.wanted and (beginning is None or beginning.is_stored):
                problem = Problem("handed_back", f"{self._instance} was stopped", "transient")
                await self._conclude(order, problem, submit)
            raise
        finally:
            if passage is not None:
                # Of what has not ended here, nobody knows how it would have.
                passage.abandon()
            self._held.pop(held, None)
        return decided

    async def _conclude(
        self,
        order: Order,
        result: bytes | Problem,
        submit: Callable[[Command], Awaitable[Decided]],
        offer: Offer | None = None,
        key: str = "",
    ) -> Decided | None:
        """Put the result into the log. If that can't be done in time, the supervisor finds the attempt forgotten."""
        where = (order.phase, order.item, order.attempt, self._instance)
        if isinstance(result, Problem):
            command: Command = Fail(*where, result, _CAUSES.get(result.code, "error"))
        else:
            command = Complete(*where, msgspec.Raw(result), offer, key)
        try:
            decided = await submit(command)
        except TooLarge as error:
            if isinstance(result, Problem):
                self._logger.warning("problem not stored", error=str(error))
                return None
            too_large = Problem("bad_output", "the result is too large", "permanent", str(error))
            return await self._conclude(order, too_large, submit)
        except BusError as error:
            self._logger.warning("result not stored", error=str(error))
            return None
        for event in decided.events:
            if isinstance(event, ResultRefused):
                self._logger.warning("result refused", reason=event.reason)
        return decided

    async def _call(self, order: Order, call: LLMCall) -> None:
        """Put a call of a language model on record. Raises InvalidName, TooLarge, Unavailable."""
        client = self._client
        called = LLMCalled(**msgspec.structs.asdict(call), plan=order.plan, item=order.item, instance=self._instance)
        record = envelope(
            LLM_CALLED,
            called,
            id=uuid4().hex,
            source=client.source,
            time=utc_now(),
            correlationid=order.correlation,
            runid=order.run,
            phase=order.phase,
            attempt=order.attempt,
            agent=self._agent.name,
        )
        await client.log.append(client.subjects.llm(call.provider), record)

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


async def _begun() -> bool:
    """The log has the attempt already."""
    return True


async def _flushed(emitter: Emitter) -> Problem | None:
    """Have all that was emitted in the log before the result is."""
    try:
        await emitter.flush()
    except BusError as error:
        return Problem("lost", "not all that was emitted could be stored", "transient", str(error))
    return None


def _next_start(decided: Decided | None, instance: str) -> PhaseStarted | None:
    """The attempt that a commit gave to this instance."""
    happened = decided.events if decided is not None else ()
    return next((each for each in happened if isinstance(each, PhaseStarted) and each.instance == instance), None)
