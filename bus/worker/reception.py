"""The reception: what an instance is handed directly, by an asker who waits for it. The rules are
`bus.messages.handover`'s.
"""

from __future__ import annotations

from datetime import timedelta

import msgspec
import structlog

from bus.broker.connection import Message
from bus.client import Client
from bus.clock import utc_now
from bus.errors import BusError, CircuitOpen, MalformedMessage, TooLarge
from bus.format.envelope import Envelope, decode, decode_data
from bus.guards.circuit import Circuit, Passage
from bus.handlers.agent import Agent, Capability
from bus.handlers.context import SAID, Context, Pulse
from bus.handlers.handling import Answer, Halted, answer, perform
from bus.messages.handover import (
    ASKED,
    HANDED,
    Answered,
    Asked,
    Busy,
    Failed,
    Handed,
    Recorded,
    Reply,
    asked_decoder,
    handed_decoder,
)
from bus.problem import Problem
from bus.registry.presence import Held
from bus.rules.commands import Begin, Take
from bus.rules.inputs import Order
from bus.rules.route import need
from bus.runs.runs import Decided
from bus.runs.task import WORK
from bus.worker.attempts import Attempts
from bus.worker.beginning import Beginning
from bus.worker.room import Room

logger = structlog.get_logger(__name__)

# Work that can't begin by then waits in the stream instead, where somebody else may take it.
_IN_LINE_S = 0.02


class Reception:
    """Of one instance. It begins nothing while `attempts` are draining."""

    def __init__(self, client: Client, agent: Agent, instance: str, attempts: Attempts, apart: Answer) -> None:
        self._client = client
        self._agent = agent
        self._instance = instance
        self._attempts = attempts
        self._apart = apart

    async def serve(self, capability: Capability, room: Room, message: Message, circuit: Circuit | None = None) -> None:
        """Do what is asked and say what came of it; that it was not done here, if there is no room for it, or its
        `circuit` does not let it through."""
        try:
            asked = decode(message.data)
            handed = _handed(asked)
            is_taking = not self._attempts.draining and not self._attempts.is_paused(capability)
            if handed is not None and room.is_behind(handed.priority):
                is_taking = False
            if not is_taking or not await room.enter(_IN_LINE_S, handed=True):
                self._say(message, Busy())
                return
            try:
                passage = await circuit.enter() if circuit is not None else None
                await self._serve(capability, message, asked, handed, passage)
            except CircuitOpen:
                self._say(message, Busy())
            finally:
                room.leave()
        except MalformedMessage as error:
            logger.warning("unreadable handover", capability=capability.name, error=str(error))
            self._say(message, Busy())

    async def _serve(
        self,
        capability: Capability,
        message: Message,
        asked: Envelope,
        handed: Handed | None,
        passage: Passage | None,
    ) -> None:
        with structlog.contextvars.bound_contextvars(
            agent=self._agent.name,
            instance=self._instance,
            run=asked.runid,
            correlation=asked.correlationid or asked.runid,
            causation=asked.causationid,
            phase=WORK,
            attempt=1,
        ):
            match asked.type:
                case _ if handed is not None and asked.runid is not None:
                    await self._store(capability, message, asked, asked.runid, handed, passage)
                case type if type == ASKED and asked.runid is not None:
                    question = decode_data(asked, asked_decoder, "a question")
                    self._say(message, await self._answer(capability, asked, asked.runid, question, passage))
                case _:
                    raise MalformedMessage(f"{asked.type!r} can't be handed over")

    async def _store(
        self,
        capability: Capability,
        message: Message,
        asked: Envelope,
        run: str,
        handed: Handed,
        passage: Passage | None,
    ) -> None:
        """Work for the log."""
        if handed.task.capability != capability.name:
            raise MalformedMessage(f"work for {handed.task.capability!r} was handed over for {capability.name!r}")
        pulse = Pulse()
        is_said = False

        def say(reply: Reply) -> None:
            nonlocal is_said
            if not is_said:
                is_said = True
                self._say(message, reply)

        def stored(decided: Decided) -> None:
            self._attempts.hold(Held(run, WORK, None, 1), pulse)
            say(Recorded(decided.state.position))

        plan = handed.task.plan
        came_at = utc_now()
        begin = Begin(
            plan,
            handed.input,
            correlation=asked.correlationid,
            since=came_at,
            priority=handed.priority,
            sender=handed.sender,
            sticky=handed.sticky,
            arm=handed.arm,
        )
        needed = need(capability.name, handed.arm)
        take = Take(WORK, None, 1, needed, self._agent.name, self._instance, capability.timeout_s)
        beginning = Beginning(
            self._client.runs, run, begin, take, causation=asked.causationid, pulse=pulse, stored=stored
        )
        order = Order(
            run=run,
            plan=plan.name,
            phase=WORK,
            attempt=1,
            input=msgspec.json.decode(handed.input),
            correlation=asked.correlationid or run,
            sticky=handed.sticky,
            priority=handed.priority,
            sender=handed.sender,
        )
        bound_s = min(capability.timeout_s, handed.task.timeout_s)
        beginning.arm()
        try:
            decided = await self._attempts.make(
                capability, order, came_at + timedelta(seconds=bound_s), beginning, pulse, passage
            )
            if decided is not None:
                say(_said_of(decided))
        finally:
            beginning.disarm()
            say(Busy())

    async def _answer(
        self, capability: Capability, asked: Envelope, run: str, question: Asked, passage: Passage | None
    ) -> Reply:
        """A question that the log never hears of."""
        context = Context(
            run=run,
            plan="",
            phase=WORK,
            agent=self._agent.name,
            instance=self._instance,
            correlation=asked.correlationid or run,
            sticky=question.sticky,
            causation=asked.causationid,
            deadline_at=question.deadline_at,
            report=lambda _fraction, _note: SAID,
            state=self._attempts.state,
            door=self._client,
        )
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
        return Failed(result) if isinstance(result, Problem) else Answered(msgspec.Raw(result))

    def _say(self, message: Message, reply: Reply) -> None:
        if not message.reply:
            return
        try:
            self._client.connection.publish(message.reply, msgspec.json.encode(reply))
        except TooLarge as error:
            large = Problem("bad_output", "the result is too large", "permanent", str(error))
            position = reply.position if isinstance(reply, Answered) else 0
            self._say(message, Recorded(position) if position else Failed(large))
        except BusError as error:
            # Whoever asked finds it in the log.
            logger.warning("not answered", error=str(error))


def _handed(asked: Envelope) -> Handed | None:
    """The work that is handed over, if it is for the log. Raises MalformedMessage."""
    return decode_data(asked, handed_decoder, "work that was handed over") if asked.type == HANDED else None


def _said_of(decided: Decided) -> Reply:
    """The result as the log has accepted it; if it is none, where the log tells the rest."""
    state = decided.state
    output = state.phases[WORK].output
    if state.status == "completed" and output is not None:
        return Answered(output.raw, state.position)
    return Recorded(state.position)
