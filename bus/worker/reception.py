"""The reception: what an instance is handed directly, by an asker who waits for it. The rules are
`bus.messages.handover`'s.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial

import msgspec
import structlog

from bus.alarms import Alarms
from bus.broker.connection import Message
from bus.client import Client
from bus.clock import utc_now
from bus.errors import BusError, CircuitOpen, InvalidName, MalformedMessage, TooLarge
from bus.format.envelope import Envelope, decode, decode_data
from bus.format.payload import is_inline
from bus.guards.circuit import Circuit, Passage
from bus.handlers.agent import Agent, Capability
from bus.handlers.context import Pulse
from bus.handlers.handling import Answer
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
from bus.worker.questions import Questions
from bus.worker.room import Room
from bus.worker.withdrawal import Withdrawal

logger = structlog.get_logger(__name__)

# Work that can't begin by then waits in the stream instead, where somebody else may take it.
_IN_LINE_S = 0.02
# A question has no other place to wait, but others may have a hand free.
_LONGEST_PATIENCE_S = 1.0


class Reception:
    """Of one instance. It begins nothing while `attempts` are draining."""

    def __init__(self, client: Client, agent: Agent, instance: str, attempts: Attempts, apart: Answer) -> None:
        self._client = client
        self._agent = agent
        self._instance = instance
        self._attempts = attempts
        self._alarms = Alarms()
        self._questions = Questions(client, agent, instance, attempts, apart)

    async def serve(self, capability: Capability, room: Room, message: Message, circuit: Circuit | None = None) -> None:
        """Do what is asked and say what came of it; that it was not done here, if there is no room for it, or its
        `circuit` does not let it through."""
        try:
            await self._heed(capability, room, message, circuit)
        except (MalformedMessage, InvalidName) as error:
            logger.warning("unreadable handover", capability=capability.name, error=str(error))
            self._say(message, Busy())
        except BusError as error:
            logger.warning("not taken", capability=capability.name, error=str(error))
            self._say(message, Busy())

    async def _heed(self, capability: Capability, room: Room, message: Message, circuit: Circuit | None) -> None:
        body = message.data
        asked = decode(body if is_inline(body) else await self._client.log.unpack(body))
        if asked.runid is None or asked.type not in (HANDED, ASKED):
            raise MalformedMessage(f"{asked.type!r} of run {asked.runid!r} can't be handed over")
        if asked.type == HANDED:
            handed = decode_data(asked, handed_decoder, "work that was handed over")
            if room.is_behind(handed.priority):
                self._say(message, Busy())
                return
            storing = partial(self._store, capability, message, asked, asked.runid, handed)
            await self._with_room(capability, room, message, circuit, storing, _IN_LINE_S)
            return
        question = decode_data(asked, asked_decoder, "a question")
        pulse = Pulse()
        replying = partial(self._reply, capability, message, asked, asked.runid, question, pulse)
        patience_s = min(max(question.patience_s, 0.0), _LONGEST_PATIENCE_S)
        subject = self._client.subjects.withdrawn(asked.runid)
        with Withdrawal(self._client.connection, self._alarms, subject, pulse):
            await self._with_room(capability, room, message, circuit, replying, patience_s)

    async def _with_room(
        self,
        capability: Capability,
        room: Room,
        message: Message,
        circuit: Circuit | None,
        serving: Callable[[Passage | None], Awaitable[None]],
        within_s: float,
    ) -> None:
        is_taking = not self._attempts.draining and not self._attempts.is_paused(capability)
        if not is_taking or not await room.enter(within_s, handed=True):
            self._say(message, Busy())
            return
        try:
            await serving(await circuit.enter() if circuit is not None else None)
        except CircuitOpen:
            self._say(message, Busy())
        finally:
            room.leave()

    def _bound(self, asked: Envelope, run: str) -> AbstractContextManager[object]:
        return structlog.contextvars.bound_contextvars(
            agent=self._agent.name,
            instance=self._instance,
            run=run,
            correlation=asked.correlationid or run,
            causation=asked.causationid,
            phase=WORK,
            attempt=1,
        )

    async def _reply(
        self,
        capability: Capability,
        message: Message,
        asked: Envelope,
        run: str,
        question: Asked,
        pulse: Pulse,
        passage: Passage | None,
    ) -> None:
        """A question that the log never hears of."""
        with self._bound(asked, run):
            self._say(message, await self._questions.reply(capability, asked, run, question, pulse, passage))

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
                # What is stored tells itself to who follows it: a word more would cost each side as much again.
                if not handed.followed or isinstance(reply, Busy):
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
            self._client.runs,
            run,
            begin,
            take,
            causation=asked.causationid,
            pulse=pulse,
            alarms=self._alarms,
            stored=stored,
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
            with self._bound(asked, run):
                decided = await self._attempts.make(
                    capability, order, came_at + timedelta(seconds=bound_s), beginning, pulse, passage
                )
            if decided is not None:
                say(_said_of(decided))
        finally:
            beginning.disarm()
            say(Busy())

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


def _said_of(decided: Decided) -> Reply:
    """The result as the log has accepted it; if it is none, where the log tells the rest."""
    state = decided.state
    output = state.phases[WORK].output
    if state.status == "completed" and output is not None:
        return Answered(output.raw, state.position)
    return Recorded(state.position)
