"""The scribe of an attempt: puts what its handler notes into the log, for the instance that holds the attempt."""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Awaitable, Callable

from bus.errors import MalformedMessage, Refused, TooLarge, Unavailable
from bus.handlers.context import Pulse
from bus.handlers.llm import LLMCall
from bus.handlers.notebook import Called, Intended, Note, Notebook, Saved, Settled, Withdrawn
from bus.registry.presence import Held
from bus.rules.commands import Intend, Save, Settle
from bus.rules.inputs import Order
from bus.runs.runs import Runs

# The log gives up sooner; this is for a worker that ends while a thread waits.
_LONGEST_S = 120.0


Say = Callable[[LLMCall], Awaitable[None]]


class Scribe:
    """Writes from any thread. What is refused means that nobody waits for the handler any more."""

    def __init__(
        self, runs: Runs, held: Held, instance: str, pulse: Pulse, begun: Callable[[], Awaitable[bool]], say: Say
    ) -> None:
        """`begun` has the attempt itself in the log before anything is written of it; False: it can't be had there."""
        self._runs = runs
        self._held = held
        self._instance = instance
        self._pulse = pulse
        self._begun = begun
        self._say = say
        self._loop = asyncio.get_running_loop()

    async def write(self, note: Note) -> None:
        """It is in the log when this returns. Raises Refused, Unavailable, and MalformedMessage if it is too large."""
        if asyncio.get_running_loop() is self._loop:
            await self._submit(note)
        else:
            await asyncio.wrap_future(self._submitted(note))

    def write_now(self, note: Note) -> None:
        """As `write`, from a thread that waits."""
        try:
            self._submitted(note).result(_LONGEST_S)
        except concurrent.futures.TimeoutError:
            raise Unavailable(f"what the handler did was not stored within {_LONGEST_S:g} s") from None

    def _submitted(self, note: Note) -> concurrent.futures.Future[None]:
        submitting = self._submit(note)
        try:
            return asyncio.run_coroutine_threadsafe(submitting, self._loop)
        except RuntimeError:
            submitting.close()
            raise Unavailable("the worker has ended") from None

    async def _submit(self, note: Note) -> None:
        if isinstance(note, Called):
            # Whoever the attempt belongs to by now: what was called is to be paid.
            await self._say(note.call)
            return
        if not await self._begun():
            raise Refused(self._pulse.ended)
        try:
            await self._runs.submit(self._held.run, self._command(note))
        except Refused as refused:
            self._pulse.drop(refused.reason)
            raise
        except TooLarge as error:
            raise MalformedMessage(f"what the handler did can't be stored: {error}") from error

    def _command(self, note: Intended | Settled | Withdrawn | Saved) -> Intend | Settle | Save:
        held = self._held
        where = (held.phase, held.item, held.attempt, self._instance)
        match note:
            case Intended():
                return Intend(*where, note.effect)
            case Settled():
                return Settle(*where, note.effect, note.outcome)
            case Withdrawn():
                return Settle(*where, note.effect, reason=note.reason.encode("utf-8", "replace").decode())
            case Saved():
                return Save(*where, note.state)


def notebook(order: Order, scribe: Scribe) -> Notebook:
    """The notebook of an attempt, with what was written before it."""
    effects = {name: None if outcome is None else outcome.raw for name, outcome in order.effects.items()}
    return Notebook(effects, None if order.saved is None else order.saved.raw, scribe)
