"""Questions that the log never hears of: an instance answers them, or says why there is no answer."""

from __future__ import annotations

from uuid import uuid4

import msgspec

from bus.client import Client
from bus.clock import utc_now
from bus.errors import BusError, TooLarge
from bus.format.envelope import Envelope, envelope
from bus.guards.circuit import Passage
from bus.handlers.agent import Agent, Capability
from bus.handlers.context import SAID, Context, Pulse
from bus.handlers.handling import Answer, Halted, answer, perform
from bus.messages.handover import LARGE_ANSWER, Answered, Asked, Busy, Enclosed, Failed, Reply
from bus.problem import Problem
from bus.runs.task import WORK
from bus.worker.attempts import Attempts

# What is around an answer in its message.
_AROUND_BYTES = 256


class Questions:
    """As one instance answers them."""

    def __init__(self, client: Client, agent: Agent, instance: str, attempts: Attempts, apart: Answer) -> None:
        self._client = client
        self._agent = agent
        self._instance = instance
        self._attempts = attempts
        self._apart = apart

    async def reply(
        self,
        capability: Capability,
        asked: Envelope,
        run: str,
        question: Asked,
        pulse: Pulse,
        passage: Passage | None,
    ) -> Reply:
        """What the handler answers; `pulse` is dropped when nobody waits for that any more."""
        context = Context(
            run=run,
            plan="",
            phase=WORK,
            agent=self._agent.name,
            instance=self._instance,
            correlation=asked.correlationid or run,
            causation=asked.causationid,
            deadline_at=question.deadline_at,
            report=lambda _fraction, _note: SAID,
            pulse=pulse,
            state=self._attempts.state,
            door=self._client,
        )
        try:
            if not pulse.wanted:
                # It was withdrawn while it waited for a free hand.
                return Busy()
            result = await perform(
                capability,
                msgspec.json.decode(question.input),
                context,
                timeout_s=max(context.left_s(utc_now(), capability.timeout_s), 0.0),
                silence_s=capability.silence_s,
                answer=answer if capability.isolation is None else self._apart,
            )
            if isinstance(result, Halted):
                return Busy()
            if passage is not None:
                passage.end(result if isinstance(result, Problem) else None)
        finally:
            if passage is not None:
                # Of what has not ended here, nobody knows how it would have.
                passage.abandon()
        if isinstance(result, Problem):
            return Failed(result)
        if len(result) + _AROUND_BYTES <= self._client.connection.max_payload:
            return Answered(msgspec.Raw(result))
        return await self._enclosed(capability.name, run, msgspec.Raw(result))

    async def _enclosed(self, capability: str, run: str, output: msgspec.Raw) -> Reply:
        """An answer that no message can hold: it is stored among the payloads, for who asked to fetch it there."""
        client = self._client
        message = envelope(LARGE_ANSWER, output, id=uuid4().hex, source=client.source, time=utc_now(), runid=run)
        try:
            return Enclosed(msgspec.Raw(await client.log.pack(client.subjects.hand(capability), message)))
        except TooLarge as error:
            return Failed(Problem("bad_output", "the result is too large", "permanent", str(error)))
        except BusError as error:
            return Failed(Problem("lost", "the result could not be stored", "transient", str(error)))
