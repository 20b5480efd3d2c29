"""An attempt: what a handler is given, how it is called, and what the log keeps of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from functools import partial
from typing import Any
from uuid import uuid4

import msgspec
import structlog

from bus.client import Client
from bus.clock import utc_now
from bus.errors import BusError, TooLarge
from bus.format.envelope import envelope
from bus.handlers.agent import Capability
from bus.handlers.context import Context, Pulse, Report
from bus.handlers.emitting import Emitter
from bus.handlers.handling import Answer, Halted, perform
from bus.handlers.llm import LLM_CALLED, LLMCall, LLMCalled
from bus.handlers.progress import Reporter
from bus.handlers.scribe import Scribe, notebook
from bus.problem import Problem
from bus.registry.presence import Held
from bus.rules.commands import Command, Complete, Fail, Offer
from bus.rules.events import Cause, ResultRefused
from bus.rules.inputs import Order
from bus.runs.runs import Decided
from bus.worker.beginning import Beginning

logger = structlog.get_logger(__name__)

_CAUSES: dict[str, Cause] = {
    "timed_out": "timed_out",
    "silent": "silent",
    "crashed": "crashed",
    "handed_back": "handed_back",
}


class Attempt:
    """One attempt at an order, by an instance of an agent. With a `beginning` the log does not have it yet.

    `causation` is the id of what made it begin; `key` is what its result is kept under for others, if it is.
    """

    def __init__(
        self,
        client: Client,
        agent: str,
        instance: str,
        capability: Capability,
        order: Order,
        causation: str,
        pulse: Pulse,
        beginning: Beginning | None = None,
        key: str = "",
    ) -> None:
        self.held = Held(order.run, order.phase, order.item, order.attempt)
        self.order = order
        self._client = client
        self._agent = agent
        self._instance = instance
        self._capability = capability
        self._causation = causation
        self._pulse = pulse
        self._key = key
        report: Report = Reporter(client.runs, self.held, instance, pulse).report
        if beginning is None:
            self._report, self._begun = report, _begun
            self._submit: Callable[[Command], Awaitable[Decided]] = partial(
                client.runs.submit, order.run, causation=causation
            )
        else:
            self._report, self._begun = beginning.reporting(report), beginning.store
            self._submit = beginning.conclude
        self._emitter = Emitter(
            client.log,
            self.held,
            source=client.source,
            correlation=order.correlation,
            causation=causation,
            begun=self._begun,
        )

    async def perform(self, deadline_at: datetime, state: Any, answer: Answer) -> bytes | Problem | Halted:
        """What the handler gives, within its bounds; `state` is what its agent's lifespan made."""
        return await perform(
            self._capability,
            self.order.input,
            self._context(deadline_at, state),
            timeout_s=max((deadline_at - utc_now()).total_seconds(), 0.0),
            silence_s=self.order.silence_timeout_s or self._capability.silence_s,
            answer=answer,
        )

    async def flush(self) -> Problem | None:
        """Have all that was emitted in the log before the result is."""
        try:
            await self._emitter.flush()
        except BusError as error:
            return Problem("lost", "not all that was emitted could be stored", "transient", str(error))
        return None

    async def conclude(self, result: bytes | Problem, offer: Offer | None = None) -> Decided | None:
        """Put the result into the log. If that can't be done in time, the supervisor finds the attempt forgotten."""
        where = (self.order.phase, self.order.item, self.order.attempt, self._instance)
        if isinstance(result, Problem):
            command: Command = Fail(*where, result, _CAUSES.get(result.code, "error"))
        else:
            command = Complete(*where, msgspec.Raw(result), offer, self._key)
        try:
            decided = await self._submit(command)
        except TooLarge as error:
            if isinstance(result, Problem):
                logger.warning("problem not stored", error=str(error))
                return None
            return await self.conclude(Problem("bad_output", "the result is too large", "permanent", str(error)))
        except BusError as error:
            logger.warning("result not stored", error=str(error))
            return None
        for event in decided.events:
            if isinstance(event, ResultRefused):
                logger.warning("result refused", reason=event.reason)
        return decided

    def _context(self, deadline_at: datetime, state: Any) -> Context:
        order = self.order
        scribe = Scribe(self._client.runs, self.held, self._instance, self._pulse, self._begun, self._call)
        return Context(
            run=order.run,
            plan=order.plan,
            phase=order.phase,
            item=order.item,
            attempt=order.attempt,
            agent=self._agent,
            instance=self._instance,
            correlation=order.correlation,
            sticky=order.sticky,
            causation=self._causation,
            deadline_at=deadline_at,
            begun=order.begun,
            undoes=order.undoes,
            priority=order.priority,
            sender=order.sender,
            report=self._report,
            sink=self._emitter.emit,
            pulse=self._pulse,
            notebook=notebook(order, scribe),
            state=state,
            door=self._client,
        )

    async def _call(self, call: LLMCall) -> None:
        """Put a call of a language model on record. Raises InvalidName, TooLarge, Unavailable."""
        client, order = self._client, self.order
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
            agent=self._agent,
        )
        await client.log.append(client.subjects.llm(call.provider), record)


async def _begun() -> bool:
    """The log has the attempt already."""
    return True
